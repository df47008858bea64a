"""FCOS (Tian et al., ICCV 2019; arXiv 2006.09214 for the improved version), from torchvision's parts.

Class logits of `dense` are those of the classification branch, without centerness. Detections are scored with
sqrt(class score x centerness), but centerness is trained at the points of objects only: at the background, where nearly
all points are, its value is arbitrary, and a class term on the product would make the student follow it.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import fcos as torchvision_fcos
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from defeat.detector.backbone import Backbone
from defeat.detector.base import Detector, DetectorSpec, decoding, info_of, output_of
from defeat.detector.composed import FIVE_LEVELS, converted_backbone, converted_spec, five_levels
from defeat.detector.normalisation import GroupNorm
from defeat.detector.options import automatic, bounded, fitted_to_data, require_valid, with_usual_values
from defeat.detector.points import (
    Assignment,
    PaddedTargets,
    assign_objects,
    fitted_candidates,
    group_count,
)
from defeat.detector.published import StrideAnchors
from defeat.detector.selection import BOXES, FACTORS, SCORES, Raw, Selection, by_level, dense_candidates, select_dense
from defeat.detector.statistics import ObjectStatistics
from defeat.detector.towers import rest_of, run_recorded
from defeat.types import Batch, DensePredictions, Detections, DetectorOutput, Maps, Towers

STRIDES = FIVE_LEVELS
LARGEST = 8  # a level learns objects whose farthest side is 4 to 8 strides from a point; the first and last more


@dataclass(frozen=True)
class FCOSOptions:
    """Options of the family; the defaults are those of torchvision.

    `auto` options are derived from size and objects of the training data; without data, they are those of torchvision.
    """

    strides: ClassVar[tuple[int, ...]] = STRIDES

    center_sampling_radius: float = bounded(1.5, 0.1, 100.0)
    """Points up to this many strides from the centre of an object, in both directions, can be positive."""
    score_thresh: float = bounded(0.2, 0.0, 1.0)
    """Detections with a lower score, sqrt(class score x centerness), are dropped."""
    nms_thresh: float = bounded(0.6, 0.0, 1.0)
    """IoU threshold of non-maximum suppression."""
    detections_per_img: int = bounded(100, 1)
    """Maximum number of detections per image."""
    topk_candidates: int | Literal["auto"] = fitted_to_data(1000, "{} candidates per level")
    """Maximum number of candidates per level before non-maximum suppression."""
    score: Literal["root", "product"] = "root"
    """Score of a detection: root, sqrt(class score x centerness); or product, class score x centerness, where the
    threshold and the number of candidates are for the class score alone (published)."""
    points: Literal["corners", "centres"] = "corners"
    """Points are at multiples of the stride (corners, torchvision), or half a stride further (centres, published)."""
    distances: Literal["linear", "exponential"] = "linear"
    """Distances to the sides are max(0, output) strides, or exp(output) pixels (first version of the paper)."""
    level_scales: bool = False
    """Whether each level has a learned factor for the output of the distances (published: true)."""
    centerness_branch: Literal["boxes", "classes"] = "boxes"
    """The branch that predicts centerness: boxes, or classes (first version of the paper)."""
    p6_activation: bool = True
    """Whether P6 passes a ReLU before P7 is computed."""
    antialias: bool = True
    """Whether images are antialiased when they are shrunk (torchvision and MMDetection: false)."""

    def __post_init__(self) -> None:
        """Refuse invalid options."""
        require_valid(self)

    def fitted(self, statistics: ObjectStatistics, neck_channels: int) -> "FCOSOptions":
        """Replace `auto` by values derived from the data; `neck_channels` has no effect."""
        if "topk_candidates" not in automatic(self):
            return self
        return replace(self, topk_candidates=fitted_candidates(statistics))


class Head(nn.Module):
    """Classification, box regression and centerness at every point, with the names of torchvision's head.

    Args:
        classification_head: `conv` and `cls_logits`.
        regression_head: `conv`, `bbox_reg` and `bbox_ctrness`.
        options: options of the family.
    """

    def __init__(self, classification_head: nn.Module, regression_head: nn.Module, options: FCOSOptions) -> None:
        super().__init__()
        self.classification_head, self.regression_head = classification_head, regression_head
        self.exponential = options.distances == "exponential"
        self.centerness_of_classes = options.centerness_branch == "classes"
        self.scales = nn.Parameter(torch.ones(len(STRIDES))) if options.level_scales else None

    def forward(self, levels: list[Tensor], box_levels: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Predict for L feature maps.

        Args:
            levels: feature maps (B, C, H, W).
            box_levels: those of the regression branch, where they are others.

        Returns:
            `cls_logits` (B, N, K), `bbox_regression` (B, N, 4): distances to left, top, right and bottom in strides, 0
            or more; and `bbox_ctrness` (B, N, 1) logits.
        """
        pairs = zip(levels, box_levels or levels, strict=True)
        outputs = [self._predict(index, *pair) for index, pair in enumerate(pairs)]
        return {name: torch.cat([output[name] for output in outputs], dim=1) for name in outputs[0]}

    def _predict(self, index: int, class_level: Tensor, box_level: Tensor) -> dict[str, Tensor]:
        classification: Any = self.classification_head
        regression: Any = self.regression_head
        classes, boxes = classification.conv(class_level), regression.conv(box_level)
        outputs = {
            "cls_logits": classification.cls_logits(classes),
            "bbox_regression": regression.bbox_reg(boxes),
            "bbox_ctrness": regression.bbox_ctrness(classes if self.centerness_of_classes else boxes),
        }
        # Convert to float32 also under autocast: half precision would move decoded boxes by pixels.
        flat = {name: output.flatten(2).transpose(1, 2).float() for name, output in outputs.items()}
        sides = flat["bbox_regression"]
        if self.scales is not None:
            sides = sides * self.scales[index]
        return flat | {"bbox_regression": sides.exp() / STRIDES[index] if self.exponential else F.relu(sides)}


class FCOS(Detector):
    """A one-stage detector without anchors: every point predicts classes, distances to four sides, and centerness."""

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        anchor_generator: AnchorGenerator,
        spec: DetectorSpec,
        options: FCOSOptions,
        first_label: int = 0,
    ) -> None:
        """Create it from its parts.

        Args:
            backbone: body and pyramid with feature maps at strides 8 to 128.
            head: the predictions.
            anchor_generator: one square per point, centred on it, whose side is the stride.
            spec: description of the detector.
            options: options of the family.
            first_label: column of the first class in the head; 1 in torchvision's checkpoints.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.anchor_generator = anchor_generator
        self.box_coder = BoxLinearCoder(normalize_by_size=True)
        self.center_sampling_radius = options.center_sampling_radius
        self.selection = Selection.of(options)
        self.score, self.antialias = options.score, options.antialias
        self.first_label = first_label
        self.spec = spec
        self.info = info_of(
            spec,
            backbone,
            activation="sigmoid",
            background="none",
            offers=frozenset({"dense", "towers"}),
            anchors=f"FCOS {options.points} {list(backbone.neck_channels)} {anchor_generator.sizes}",
        )

    def forward_train(self, batch: Batch, negative_weight: float = 1.0) -> DetectorOutput:
        """Compute the losses `classification`, `box` and `centerness`, and the fields that methods read."""
        assert self.training, "forward_train needs the training mode"
        maps = self.forward_maps(batch)
        head, towers = run_recorded(self.head, maps.neck)
        points = self._points(batch.images, batch.sizes, maps)
        everything, training = assign_objects(batch, partial(self._match, points, self._per_level(maps.neck)))
        losses = self._losses(training, head, points, negative_weight)
        return self._output(batch, losses, maps, head, towers, points, everything)

    def teach(self, batch: Batch, maps: Maps) -> DetectorOutput:
        """Return the feature maps and the predictions at every point."""
        points = self._points(batch.images, batch.sizes, maps)
        everything, _ = assign_objects(batch, partial(self._match, points, self._per_level(maps.neck)))
        return self._output(batch, {}, maps, *run_recorded(self.head, maps.neck), points, everything)

    def raw(self, images: Tensor, sizes: list[tuple[int, int]], maps: Maps | None = None) -> Raw:
        """Scores and boxes at the points of each level."""
        maps = maps or Maps(*self.backbone(images))
        head, points = self.head(list(maps.neck.values())), self._points(images, sizes, maps)
        scores, centerness = head["cls_logits"][..., self.first_label :].sigmoid(), head["bbox_ctrness"].sigmoid()
        if self.score == "root":
            scores = (scores * centerness).sqrt()
        parts = {SCORES: scores, BOXES: self.box_coder.decode(head["bbox_regression"], points)}
        if self.score == "product":
            parts[FACTORS] = centerness[..., 0]
        per_level = self._per_level(maps.neck)
        return by_level(tuple(maps.neck), **{name: part.split(per_level, dim=1) for name, part in parts.items()})

    def decode(self, raw: Raw, sizes: list[tuple[int, int]]) -> list[Detections]:
        """Select the detections, in pixels of the batch."""
        return select_dense(raw, sizes, self.selection)

    def candidates(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """Boxes and scores at all points."""
        return dense_candidates(raw)

    def class_rows(self) -> dict[str, Tensor]:
        """The last layer of the classification head has one row per class."""
        rows = torch.cat((torch.full((self.first_label,), -1), torch.arange(len(self.info.classes))))
        return {f"head.classification_head.cls_logits.{kind}": rows for kind in ("weight", "bias")}

    def _points(self, images: Tensor, sizes: list[tuple[int, int]], maps: Maps) -> Tensor:
        """The square (N, 4) of each point; all images of a batch have the same."""
        squares: Tensor = self.anchor_generator(ImageList(images, sizes), list(maps.neck.values()))[0]
        return squares

    @staticmethod
    def _per_level(neck: dict[int, Tensor]) -> list[int]:
        return [level.shape[-2] * level.shape[-1] for level in neck.values()]

    def _match(self, points: Tensor, per_level: list[int], targets: PaddedTargets) -> Tensor:
        """(B, N) index of the object matched to each point, -1 for background."""
        sizes = points[:, 2] - points[:, 0]
        lower, upper = sizes * LARGEST / 2, sizes * LARGEST
        lower[: per_level[0]], upper[-per_level[-1] :] = 0, math.inf
        reach = self.center_sampling_radius * sizes
        return match_points((points[:, :2] + points[:, 2:]) / 2, lower, upper, reach, targets)

    def _losses(
        self, assignment: Assignment, head: dict[str, Tensor], points: Tensor, negative_weight: float
    ) -> dict[str, Tensor]:
        """Losses over the number of positive points of the batch; the background of unannotated images is ignored."""
        image, point, boxes, labels = assignment.positives()
        logits = head["cls_logits"]
        one_hot = torch.zeros_like(logits)
        one_hot[image, point, labels + self.first_label] = 1
        costs = sigmoid_focal_loss(logits, one_hot, reduction="none").sum(dim=2)  # (B, N)
        squares = points[point]
        predicted = self.box_coder.decode(head["bbox_regression"][image, point], squares)
        centerness = centerness_targets(self.box_coder.encode(squares, boxes))
        centerness_costs = F.binary_cross_entropy_with_logits(
            head["bbox_ctrness"][image, point, 0], centerness, reduction="sum"
        )
        count = max(1, len(point))
        return {
            "classification": (costs * assignment.class_weights(negative_weight)).sum() / count,
            "box": generalized_box_iou_loss(predicted, boxes, reduction="sum") / count,
            "centerness": centerness_costs / count,
        }

    def _output(
        self,
        batch: Batch,
        losses: dict[str, Tensor],
        maps: Maps,
        head: dict[str, Tensor],
        towers: dict[str, dict[int, Tensor]],
        points: Tensor,
        assignment: Assignment,
    ) -> DetectorOutput:
        per_level = torch.tensor(self._per_level(maps.neck), device=points.device)
        dense = DensePredictions(
            **self._dense_fields(head, points),
            labels=assignment.labels(batch.classes),
            strides=torch.tensor(list(maps.neck), device=points.device).repeat_interleave(per_level),
        )

        def finish(classes: dict[int, Tensor], boxes: dict[int, Tensor]) -> DensePredictions:
            rest = rest_of(self.head)
            return replace(dense, **self._dense_fields(rest([*classes.values()], [*boxes.values()]), points))

        return output_of(batch, maps, losses, dense=dense, towers=Towers(**towers, finish=finish))

    def _dense_fields(self, head: dict[str, Tensor], points: Tensor) -> dict[str, Any]:
        """The fields of `DensePredictions` that follow from the output of the head."""
        decode = decoding(self.box_coder.decode, head["bbox_regression"], points)
        return {"logits": head["cls_logits"][..., self.first_label :], "decode": decode}


def match_points(points: Tensor, lower: Tensor, upper: Tensor, reach: Tensor, targets: PaddedTargets) -> Tensor:
    """Match points to objects, for all images at once (arXiv 2006.09214, section 3.1).

    A point is positive for an object if it is inside its box, within reach of its centre, and if the farthest side is
    within the limits of the point's level. Of several objects, the smallest is matched.

    Args:
        points: (N, 2) x and y in pixels.
        lower: (N,) limit of the distance to the farthest side, in pixels, exclusive.
        upper: (N,) upper limit, exclusive.
        reach: (N,) limit of the distance to the centre in x and in y, exclusive.
        targets: objects of the batch.

    Returns:
        (B, N) int64, index of the matched object, -1 for background.
    """
    count = len(targets.boxes)
    if not targets.boxes.shape[1]:
        return torch.full((count, len(points)), -1, device=points.device)
    x, y = points[:, 0, None], points[:, 1, None]  # (N, 1)
    x1, y1, x2, y2 = targets.boxes[:, None].unbind(dim=-1)  # (B, 1, G)
    sides = (x - x1, y - y1, x2 - x, y2 - y)  # (B, N, G) each
    nearest = torch.minimum(torch.minimum(sides[0], sides[1]), torch.minimum(sides[2], sides[3]))
    farthest = torch.maximum(torch.maximum(sides[0], sides[1]), torch.maximum(sides[2], sides[3]))
    from_centre = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs())
    positive = (nearest > 0) & (from_centre < reach[:, None]) & targets.real[:, None]
    positive &= (farthest > lower[:, None]) & (farthest < upper[:, None])
    areas = torch.where(positive, (x2 - x1) * (y2 - y1), math.inf)
    smallest, index = areas.min(dim=2)
    return torch.where(smallest.isinf(), -1, index)


def centerness_targets(distances: Tensor) -> Tensor:
    """Targets of centerness: (P,) in 0..1, 1 at the centre of the object (equation 3).

    Args:
        distances: (P, 4) distances from the point to left, top, right and bottom of its object, above 0.
    """
    across, down = distances[:, [0, 2]], distances[:, [1, 3]]
    return (across.amin(1) / across.amax(1) * down.amin(1) / down.amax(1)).sqrt()


def build(spec: DetectorSpec, weights: str) -> FCOS:
    """Build a detector from its description; `weights` are those of the backbone (see `find_weights`)."""
    options: Any = with_usual_values(FCOSOptions(**spec.options))
    backbone = five_levels(spec, weights, activation=options.p6_activation)
    norm, channels = partial(GroupNorm, group_count(spec.neck_channels)), spec.neck_channels
    classification = torchvision_fcos.FCOSClassificationHead(channels, 1, len(spec.classes), norm_layer=norm)
    head = Head(classification, torchvision_fcos.FCOSRegressionHead(channels, 1, norm_layer=norm), options)
    return FCOS(backbone, head, _squares(options), spec, options)


def _squares(options: FCOSOptions) -> AnchorGenerator:
    sizes, ratios = tuple((stride,) for stride in STRIDES), ((1.0,),) * len(STRIDES)
    if options.points == "corners":
        return AnchorGenerator(sizes, ratios)
    squares = StrideAnchors(sizes, ratios, STRIDES)
    squares.cell_anchors = [square - square[:, :2].repeat(1, 2) for square in squares.cell_anchors]
    return squares


def from_torchvision(core: torchvision_fcos.FCOS, classes: tuple[str, ...], name: str) -> FCOS:
    """Convert a torchvision model with its weights."""
    backbone = converted_backbone(core, STRIDES)
    spec = converted_spec(core, "fcos", name, classes)
    options = with_usual_values(FCOSOptions(antialias=False))
    head = Head(core.head.classification_head, core.head.regression_head, options)
    return FCOS(backbone, head, core.anchor_generator, spec, options, first_label=1)
