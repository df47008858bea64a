"""Generalized Focal Loss (Li et al., NeurIPS 2020; arXiv 2006.04388), with ATSS assignment (Zhang et al., CVPR 2020).

A score is the class and the quality of the box at once: its target is the IoU of the predicted box with the object. The
distance to each side of a box is a distribution over whole numbers of strides, and the box is its mean. Equations are
those of the GFL paper.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSClassificationHead
from torchvision.ops import generalized_box_iou_loss

from defeat.detector.backbone import Backbone
from defeat.detector.base import Detector, DetectorSpec, info_of, output_of
from defeat.detector.composed import FIVE_LEVELS, five_levels
from defeat.detector.normalisation import GroupNorm
from defeat.detector.options import automatic, bounded, fitted_to_data, require_valid, with_usual_values
from defeat.detector.points import (
    SQUARE,
    Assignment,
    PaddedTargets,
    assign_objects,
    fitted_candidates,
    group_count,
)
from defeat.detector.selection import BOXES, SCORES, Raw, Selection, by_level, dense_candidates, select_dense
from defeat.detector.statistics import ObjectStatistics, paired_iou
from defeat.detector.towers import rest_of, run_recorded
from defeat.types import Batch, DensePredictions, Detections, DetectorOutput, Maps, Towers

STRIDES = FIVE_LEVELS
TOWER = 4  # convolutions in each branch of the head
QUALITY_POWER = 2.0  # beta of the quality focal loss
BOX_WEIGHT, DISTRIBUTION_WEIGHT = 2.0, 0.25  # lambda 0 and 1
LEAST_TRUST = 0.2  # least weight of a positive point in the box losses, see `GFL._losses`
BELOW_LAST = 0.1  # targets stay this far below the last value of a distribution, which has no upper neighbour


@dataclass(frozen=True)
class GFLOptions:
    """Options of the family; the defaults are the published ones.

    `auto` options are derived from size and objects of the training data; without data, they are the published ones.
    """

    strides: ClassVar[tuple[int, ...]] = STRIDES

    reg_max: int = bounded(16, 1, 1000)
    """Largest distance from a point to a side of its box, in strides; a distribution has one value more."""
    atss_candidates: int = bounded(9, 1, 1000)
    """Points per level and object that are nearest to its centre and can be positive."""
    anchor_scale: float = bounded(8.0, 0.1, 1000.0)
    """Side in strides of the squares around points whose IoU with an object decides which candidates are positive."""
    score_thresh: float = bounded(0.05, 0.0, 1.0)
    """Detections with a lower score are dropped."""
    nms_thresh: float = bounded(0.6, 0.0, 1.0)
    """IoU threshold of non-maximum suppression."""
    detections_per_img: int = bounded(100, 1)
    """Maximum number of detections per image."""
    topk_candidates: int | Literal["auto"] = fitted_to_data(1000, "{} candidates per level")
    """Maximum number of candidates per level before non-maximum suppression."""
    p6_activation: bool = True
    """Whether P6 passes a ReLU before P7 is computed (MMDetection: false)."""
    antialias: bool = True
    """Whether images are antialiased when they are shrunk (MMDetection: false)."""

    def __post_init__(self) -> None:
        """Refuse invalid options."""
        require_valid(self)

    def fitted(self, statistics: ObjectStatistics, neck_channels: int) -> "GFLOptions":
        """Replace `auto` by values derived from the data; `neck_channels` has no effect."""
        if "topk_candidates" not in automatic(self):
            return self
        return replace(self, topk_candidates=fitted_candidates(statistics))


class RegressionHead(nn.Module):
    """Distributions of the distances to the four sides of a box.

    Args:
        channels: of the feature maps.
        reg_max: largest distance in strides.
        norm: builds the normalisation, given the number of channels.
    """

    def __init__(self, channels: int, reg_max: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(TOWER):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), norm(channels), nn.ReLU()]
        self.conv = nn.Sequential(*layers)
        self.bbox_reg = nn.Conv2d(channels, 4 * (reg_max + 1), 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))  # one per level, as all levels share the layers
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Logits of the distributions for L feature maps (B, C, H, W): (B, N, 4, M+1); left, top, right, bottom."""
        outputs = [self.bbox_reg(self.conv(level)) * scale for level, scale in zip(levels, self.scales, strict=True)]
        return torch.cat([output.flatten(2).transpose(1, 2).unflatten(2, (4, -1)) for output in outputs], dim=1)


class Head(nn.Module):
    """Class logits and distributions of distances at every point."""

    def __init__(self, classification_head: nn.Module, regression_head: RegressionHead) -> None:
        super().__init__()
        self.classification_head, self.regression_head = classification_head, regression_head

    def forward(self, levels: list[Tensor], box_levels: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Predict `cls_logits` (B, N, K) and `distributions` (B, N, 4, M+1), logits of both.

        Args:
            levels: feature maps (B, C, H, W).
            box_levels: those of the distributions, where they are others.
        """
        # Convert to float32 also under autocast: half precision would move decoded boxes by pixels.
        classes, distributions = self.classification_head(levels), self.regression_head(box_levels or levels)
        return {"cls_logits": classes.float(), "distributions": distributions.float()}


@dataclass(frozen=True)
class Points:
    """Points of all levels of a batch.

    Attributes:
        centres: (N, 2) x and y in pixels of the batch: multiples of the stride.
        strides: (N,) int64 stride of each.
        per_level: number of points of each level.
    """

    centres: Tensor
    strides: Tensor
    per_level: list[int]

    @classmethod
    def of(cls, maps: dict[int, Tensor]) -> "Points":
        """One point per cell of each feature map."""
        centres, strides = [], []
        for stride, level in maps.items():
            y, x = (torch.arange(side, device=level.device) * float(stride) for side in level.shape[-2:])
            rows, columns = torch.meshgrid(y, x, indexing="ij")
            centres.append(torch.stack((columns.flatten(), rows.flatten()), dim=1))
            strides.append(torch.full_like(columns.flatten(), stride, dtype=torch.int64))
        return cls(torch.cat(centres), torch.cat(strides), [level.shape[0] for level in centres])

    def decode(self, distributions: Tensor) -> Tensor:
        """Boxes (..., N, 4) in pixels: the mean of each distribution, logits (..., N, 4, M+1), in strides (eq. 5)."""
        values = torch.arange(distributions.shape[-1], dtype=distributions.dtype, device=distributions.device)
        distances = (distributions.softmax(dim=-1) @ values) * self.strides[:, None]
        return torch.cat((self.centres - distances[..., :2], self.centres + distances[..., 2:]), dim=-1)

    def squares(self, side: float) -> Tensor:
        """(N, 4) squares around the points, of a side in strides."""
        half = self.strides[:, None] * side / 2
        return torch.cat((self.centres - half, self.centres + half), dim=1)

    def select(self, indices: Tensor) -> "Points":
        """The points with these indices."""
        return Points(self.centres[indices], self.strides[indices], [])


class GFL(Detector):
    """A one-stage detector whose scores are the quality of its boxes, and whose boxes are distributions."""

    def __init__(self, backbone: Backbone, head: Head, spec: DetectorSpec, options: GFLOptions) -> None:
        """Create it from its parts.

        Args:
            backbone: body and pyramid with feature maps at strides 8 to 128.
            head: the predictions.
            spec: description of the detector.
            options: options of the family, without `auto`.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.options = options
        self.selection = Selection.of(options)
        self.antialias = options.antialias
        self.spec = spec
        self.info = info_of(
            spec,
            backbone,
            activation="sigmoid",
            background="none",
            offers=frozenset({"dense", "towers"}),
            anchors=f"GFL points {list(backbone.neck_channels)}",
            bins=options.reg_max + 1,
        )

    def forward_train(self, batch: Batch, negative_weight: float = 1.0) -> DetectorOutput:
        """Compute the losses `classification`, `box` and `distribution`, and the fields that methods read."""
        assert self.training, "forward_train needs the training mode"
        maps = self.forward_maps(batch)
        (head, towers), points = run_recorded(self.head, maps.neck), Points.of(maps.neck)
        everything, training = assign_objects(batch, partial(self._match, points))
        losses = self._losses(training, head, points, negative_weight)
        return self._output(batch, losses, maps, head, towers, points, everything)

    def teach(self, batch: Batch, maps: Maps) -> DetectorOutput:
        """Return the feature maps and the predictions at every point."""
        points = Points.of(maps.neck)
        everything, _ = assign_objects(batch, partial(self._match, points))
        return self._output(batch, {}, maps, *run_recorded(self.head, maps.neck), points, everything)

    def raw(self, images: Tensor, sizes: list[tuple[int, int]], maps: Maps | None = None) -> Raw:
        """Scores and boxes at the points of each level."""
        neck = (maps or Maps(*self.backbone(images))).neck
        head, points = self.head(list(neck.values())), Points.of(neck)
        parts = {SCORES: head["cls_logits"].sigmoid(), BOXES: points.decode(head["distributions"])}
        split = {name: part.split(points.per_level, dim=1) for name, part in parts.items()}
        return by_level(tuple(neck), **split)

    def decode(self, raw: Raw, sizes: list[tuple[int, int]]) -> list[Detections]:
        """Select the detections, in pixels of the batch."""
        return select_dense(raw, sizes, self.selection)

    def candidates(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """Boxes and scores at all points."""
        return dense_candidates(raw)

    def class_rows(self) -> dict[str, Tensor]:
        """The last layer of the classification head has one row per class."""
        rows = torch.arange(len(self.info.classes))
        return {f"head.classification_head.cls_logits.{kind}": rows for kind in ("weight", "bias")}

    def _match(self, points: Points, targets: PaddedTargets) -> Tensor:
        squares = points.squares(self.options.anchor_scale)
        return assign(points.centres, squares, points.per_level, targets, self.options.atss_candidates)

    def _losses(
        self, assignment: Assignment, head: dict[str, Tensor], points: Points, negative_weight: float
    ) -> dict[str, Tensor]:
        """Losses of equation 8; the background of unannotated images is ignored.

        As in the published experiments, both box losses are weighted by the score, without gradient, and averaged with
        these weights. Other than there, a weight is at least 0.2: a box that is learned late has a low quality, thus a
        low score, and would hardly be learned beside others (seen with few objects: some were never found).
        """
        image, point, boxes, labels = assignment.positives()
        logits = head["cls_logits"]
        distributions, positives = head["distributions"][image, point], points.select(point)  # (P, 4, M+1)
        predicted = positives.decode(distributions)
        quality = torch.zeros_like(logits)
        quality[image, point, labels] = paired_iou(predicted.detach(), boxes)
        costs = quality_focal_loss(logits, quality).sum(dim=2)  # (B, N)
        trust = logits.detach().sigmoid()[image, point].amax(dim=1).clamp(min=LEAST_TRUST)  # (P,)
        trust = trust / trust.sum()
        sides = torch.cat((positives.centres - boxes[:, :2], boxes[:, 2:] - positives.centres), dim=1)
        sides = (sides / positives.strides[:, None]).clamp(0, self.options.reg_max - BELOW_LAST)
        distribution = distribution_focal_loss(distributions, sides).mean(dim=1)
        return {
            "classification": (costs * assignment.class_weights(negative_weight)).sum() / max(1, len(point)),
            "box": BOX_WEIGHT * (generalized_box_iou_loss(predicted, boxes) * trust).sum(),
            "distribution": DISTRIBUTION_WEIGHT * (distribution * trust).sum(),
        }

    def _output(
        self,
        batch: Batch,
        losses: dict[str, Tensor],
        maps: Maps,
        head: dict[str, Tensor],
        towers: dict[str, dict[int, Tensor]],
        points: Points,
        assignment: Assignment,
    ) -> DetectorOutput:
        dense = DensePredictions(
            **_dense_fields(head, points),
            labels=assignment.labels(batch.classes),
            strides=points.strides,
            squares=points.squares(SQUARE),
        )

        def finish(classes: dict[int, Tensor], boxes: dict[int, Tensor]) -> DensePredictions:
            return replace(dense, **_dense_fields(rest_of(self.head)([*classes.values()], [*boxes.values()]), points))

        return output_of(batch, maps, losses, dense=dense, towers=Towers(**towers, finish=finish))


def _dense_fields(head: dict[str, Tensor], points: Points) -> dict[str, Any]:
    """The fields of `DensePredictions` that follow from the output of the head."""
    distributions = head["distributions"]
    decode = partial(_decode, distributions, points)
    return {"logits": head["cls_logits"], "decode": decode, "distributions": distributions}


def _decode(distributions: Tensor, points: Points, image: Tensor, index: Tensor) -> Tensor:
    """Some boxes (P, 4), with gradient, from logits (B, N, 4, M+1) of all points."""
    return points.select(index).decode(distributions[image, index])


def quality_focal_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """Quality focal loss (equation 6): cross entropy times |quality - score|^2; same shape as the logits.

    Args:
        logits: any shape.
        quality: targets in 0..1, 0 for background and other classes.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return entropy * (quality - logits.sigmoid()).abs().pow(QUALITY_POWER)


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Distribution focal loss (equation 7): cross entropy with the two whole numbers around a target.

    Args:
        logits: (..., M+1), of the probabilities of 0 to M.
        targets: (...), from 0 to below M.
    """
    lower = targets.floor()
    share = targets - lower  # of the upper neighbour
    negative_log = -logits.log_softmax(dim=-1)
    neighbours = torch.stack((lower, lower + 1), dim=-1).long()
    at_lower, at_upper = negative_log.gather(-1, neighbours).unbind(dim=-1)
    return at_lower * (1 - share) + at_upper * share


def assign(
    centres: Tensor, squares: Tensor, per_level: Sequence[int], targets: PaddedTargets, candidates: int
) -> Tensor:
    """Adaptive training sample selection, for all images at once (ATSS, algorithm 1).

    Of each level, the points nearest to the centre of an object are its candidates. Positive are those inside it whose
    squares have an IoU with it of at least the mean plus the standard deviation over its candidates. A point of several
    objects belongs to the one with the highest IoU.

    Args:
        centres: (N, 2) points in pixels.
        squares: (N, 4) boxes around the points.
        per_level: number of points of each level.
        targets: objects of the batch.
        candidates: number of candidates per level and object.

    Returns:
        (B, N) int64, index of the object, -1 for background.
    """
    count, objects = targets.real.shape
    if not objects:
        return torch.full((count, len(centres)), -1, device=centres.device)
    boxes = targets.boxes[:, :, None]  # (B, G, 1, 4)
    offsets = (boxes[..., :2] + boxes[..., 2:]) / 2 - centres
    nearest, first = [], 0
    for level in offsets.square().sum(dim=-1).split(list(per_level), dim=2):  # (B, G, points of the level)
        nearest.append(level.topk(min(candidates, level.shape[2]), largest=False).indices + first)
        first += level.shape[2]
    chosen = torch.cat(nearest, dim=2)  # (B, G, C), C candidates of all levels
    overlaps = _iou(boxes, squares[chosen])
    inside = torch.cat((centres[chosen] - boxes[..., :2], boxes[..., 2:] - centres[chosen]), dim=-1).amin(dim=-1) > 0
    threshold = overlaps.mean(dim=2, keepdim=True) + overlaps.std(dim=2, keepdim=True)
    overlaps = torch.where(inside & (overlaps >= threshold) & targets.real[:, :, None], overlaps, -1)
    points = chosen.flatten(1)
    best = overlaps.new_full((count, len(centres)), -1)
    best = best.scatter_reduce(1, points, overlaps.flatten(1), "amax")
    index = torch.arange(objects, device=points.device)[:, None].expand_as(chosen)
    wins = (overlaps >= 0) & (overlaps == best.gather(1, points).view_as(overlaps))
    index = torch.where(wins, index, objects).flatten(1)
    matched = torch.full_like(best, objects, dtype=torch.int64).scatter_reduce(1, points, index, "amin")
    return torch.where(matched == objects, -1, matched)


def _iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of broadcast boxes (..., 4): (...)."""
    shape = torch.broadcast_shapes(boxes.shape, others.shape)
    return paired_iou(boxes.expand(shape).reshape(-1, 4), others.expand(shape).reshape(-1, 4)).view(shape[:-1])


def build(spec: DetectorSpec, weights: str) -> GFL:
    """Build a detector from its description; `weights` are those of the backbone (see `find_weights`)."""
    options: Any = with_usual_values(GFLOptions(**spec.options))
    backbone = five_levels(spec, weights, activation=options.p6_activation)
    norm, channels = partial(GroupNorm, group_count(spec.neck_channels)), spec.neck_channels
    classification = FCOSClassificationHead(channels, 1, len(spec.classes), TOWER, norm_layer=norm)
    return GFL(backbone, Head(classification, RegressionHead(channels, options.reg_max, norm)), spec, options)
