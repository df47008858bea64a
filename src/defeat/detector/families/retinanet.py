"""RetinaNet (Lin et al., ICCV 2017), from torchvision's parts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import box_iou

from defeat.detector.backbone import Backbone
from defeat.detector.base import (
    Detector,
    DetectorSpec,
    anchors_per_level,
    decoding,
    describe_anchors,
    info_of,
    output_of,
    torchvision_targets,
)
from defeat.detector.composed import FIVE_LEVELS, converted_backbone, converted_spec, five_levels
from defeat.detector.normalisation import GroupNorm
from defeat.detector.options import automatic, bounded, fitted_to_data, require_valid, with_usual_values
from defeat.detector.points import fitted_candidates, group_count
from defeat.detector.published import LimitedBoxCoder, build_anchors, initialise_pyramid, one_stage_loss
from defeat.detector.selection import BOXES, SCORES, Raw, Selection, by_level, dense_candidates, select_dense
from defeat.detector.statistics import ObjectStatistics, fit_sides
from defeat.detector.towers import rest_of, run_recorded
from defeat.errors import InputError
from defeat.types import Batch, DensePredictions, Detections, DetectorOutput, Maps, Target, Towers

STRIDES = FIVE_LEVELS
OCTAVES = tuple(2 ** (third / 3) for third in range(3))


@dataclass(frozen=True)
class RetinaNetOptions:
    """Options of the family; the defaults are those of torchvision.

    `auto` options are derived from size and objects of the training data; without data, they are those of torchvision.
    """

    strides: ClassVar[tuple[int, ...]] = STRIDES

    anchor_sizes: tuple[int, ...] | Literal["auto"] = fitted_to_data(
        (32, 64, 128, 256, 512), "anchors {} px", from_teacher=True, same_size=True
    )
    """Side of the smallest anchor per level in pixels of the resized image, from stride 8 to 128; every level has two
    more, larger by 2^(1/3) and 2^(2/3)."""
    score_thresh: float = bounded(0.05, 0.0, 1.0)
    """Detections with a lower score are dropped."""
    nms_thresh: float = bounded(0.5, 0.0, 1.0)
    """IoU threshold of non-maximum suppression."""
    detections_per_img: int = bounded(300, 1)
    """Maximum number of detections per image."""
    topk_candidates: int | Literal["auto"] = fitted_to_data(1000, "{} candidates per level")
    """Maximum number of candidates per level before non-maximum suppression."""
    fg_iou_thresh: float = bounded(0.5, 0.0, 1.0)
    """Anchors with at least this IoU with an object are positive."""
    bg_iou_thresh: float = bounded(0.4, 0.0, 1.0)
    """Anchors with less than this IoU with all objects are negative."""
    head_norm: Literal["auto", "none", "gn"] = fitted_to_data("none", "head norm {}", from_teacher=True)
    """Normalisation of the head: none, or gn (group normalisation as in torchvision's second version, in 32 groups or
    fewer if there are less than 64 channels), which makes the head learn much faster."""
    loss_average: Literal["image", "batch"] = "image"
    """Losses are averaged over the positive anchors of each image and then over images (image, torchvision), or over
    those of the whole batch (batch, published configurations)."""
    round_anchors: bool = True
    """Whether sides and corners of anchors are rounded to whole pixels (published: false)."""
    exact_strides: bool = False
    """Whether anchors are at a distance of exactly the stride, instead of image over feature map (MMDetection and
    Detectron2: true)."""
    limited_shrinking: bool = False
    """Whether predicted boxes shrink at most to 16/1000 of their anchor (MMDetection: true)."""
    p6_source: Literal["neck", "body"] = "neck"
    """P6 is computed from the last level of the neck (torchvision), or of the body (published)."""
    p6_activation: bool = True
    """Whether P6 passes a ReLU before P7 is computed (MMDetection: false)."""
    antialias: bool = True
    """Whether images are antialiased when they are shrunk (torchvision and MMDetection: false)."""
    initialisation: Literal["torchvision", "published"] = "torchvision"
    """Initialisation of the pyramid: torchvision or published."""

    def __post_init__(self) -> None:
        """Refuse invalid options."""
        require_valid(self)
        if self.bg_iou_thresh > self.fg_iou_thresh:
            raise InputError(
                f"--detector.bg-iou-thresh must be at most --detector.fg-iou-thresh ({self.fg_iou_thresh}), not "
                f"{self.bg_iou_thresh}."
            )

    def fitted(self, statistics: ObjectStatistics, neck_channels: int) -> "RetinaNetOptions":
        """Replace `auto` by values derived from the data; the head is normalised."""
        names = automatic(self)
        values: dict[str, Any] = {
            "topk_candidates": fitted_candidates(statistics),
            "head_norm": "gn" if neck_channels > 1 else "none",
        }
        fitted = {name: value for name, value in values.items() if name in names}
        if "anchor_sizes" in names:
            fitted["anchor_sizes"] = fit_sides(statistics, STRIDES, OCTAVES)
        return replace(self, **fitted)


class RetinaNet(Detector):
    """A one-stage detector: a sigmoid per class at every anchor, trained with the focal loss."""

    def __init__(
        self,
        backbone: Backbone,
        head: RetinaNetHead,
        anchor_generator: AnchorGenerator,
        spec: DetectorSpec,
        options: RetinaNetOptions,
        first_label: int = 0,
    ) -> None:
        """Create it from its parts.

        Args:
            backbone: body and pyramid with feature maps at strides 8 to 128.
            head: classification and box regression.
            anchor_generator: anchors of the five levels.
            spec: description of the detector.
            options: options of the family.
            first_label: column of the first class in the head; 1 in torchvision's checkpoints.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.anchor_generator = anchor_generator
        self.proposal_matcher = Matcher(options.fg_iou_thresh, options.bg_iou_thresh, allow_low_quality_matches=True)
        self.box_coder = (LimitedBoxCoder if options.limited_shrinking else BoxCoder)(weights=(1.0, 1.0, 1.0, 1.0))
        self.antialias = options.antialias
        self.selection = Selection.of(options)
        self.first_label = first_label
        self.loss_average = options.loss_average
        self.spec = spec
        self.info = info_of(
            spec,
            backbone,
            activation="sigmoid",
            background="none",
            offers=frozenset({"dense", "towers"}),
            anchors=describe_anchors(backbone.neck_channels, anchor_generator),
        )

    def forward_train(self, batch: Batch, negative_weight: float = 1.0) -> DetectorOutput:
        """Compute the losses `classification` and `box`, and the fields that methods read."""
        assert self.training, "forward_train needs the training mode"
        maps = self.forward_maps(batch)
        predictions, towers = run_recorded(self.head, maps.neck)
        head, anchors = _in_float32(predictions), self._anchors(batch.images, batch.sizes, maps)
        matched = self._match(batch.targets, anchors)
        losses = self._losses(batch, head, anchors, matched, negative_weight)
        return self._output(batch, losses, maps, head, towers, anchors, matched)

    def _losses(
        self,
        batch: Batch,
        head: dict[str, Tensor],
        anchors: list[Tensor],
        matched: list[Tensor],
        negative_weight: float,
    ) -> dict[str, Tensor]:
        count = len(batch.targets)
        if not all(target.annotated for target in batch.targets):
            matched, count = self._match_training_targets(batch, anchors)
        targets = torchvision_targets(batch.training_targets, self.first_label)
        if self.loss_average == "image" and negative_weight == 1:
            computed = self.head.compute_loss(targets, head, anchors, matched)
            losses = {"classification": computed["classification"], "box": computed["bbox_regression"]}
        else:
            arguments = (head["cls_logits"], head["bbox_regression"], targets, anchors, matched, self.box_coder)
            classification, box = one_stage_loss(*arguments, self.loss_average, negative_weight)
            losses = {"classification": classification, "box": box}
        if self.loss_average == "image":  # images without training targets must not count
            losses = {name: loss * (len(batch.targets) / max(1, count)) for name, loss in losses.items()}
        return losses

    def _match_training_targets(self, batch: Batch, anchors: list[Tensor]) -> tuple[list[Tensor], int]:
        """As `_match`, but ignore the background of unannotated images; and the number of images with a loss."""
        targets = batch.training_targets
        matched = [
            index if target.annotated else torch.where(index < 0, Matcher.BETWEEN_THRESHOLDS, index)
            for target, index in zip(targets, self._match(targets, anchors), strict=True)
        ]
        return matched, sum(target.annotated or len(target.labels) > 0 for target in targets)

    def teach(self, batch: Batch, maps: Maps) -> DetectorOutput:
        """Return the feature maps and the predictions at every anchor."""
        predictions, towers = run_recorded(self.head, maps.neck)
        anchors = self._anchors(batch.images, batch.sizes, maps)
        matched = self._match(batch.targets, anchors)
        return self._output(batch, {}, maps, _in_float32(predictions), towers, anchors, matched)

    def raw(self, images: Tensor, sizes: list[tuple[int, int]], maps: Maps | None = None) -> Raw:
        """Scores and boxes at the anchors of each level."""
        maps = maps or Maps(*self.backbone(images))
        head, anchors = _in_float32(self.head(list(maps.neck.values()))), self._anchors(images, sizes, maps)
        scores = head["cls_logits"][..., self.first_label :].sigmoid()
        per_level = anchors_per_level(maps.neck, self.anchor_generator)
        parts = {SCORES: scores.split(per_level, dim=1), BOXES: self._boxes(head, anchors).split(per_level, dim=1)}
        return by_level(tuple(maps.neck), **parts)

    def decode(self, raw: Raw, sizes: list[tuple[int, int]]) -> list[Detections]:
        """Select the detections, in pixels of the batch."""
        return select_dense(raw, sizes, self.selection)

    def candidates(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """Boxes and scores at all anchors."""
        return dense_candidates(raw)

    def class_rows(self) -> dict[str, Tensor]:
        """The last layer of the classification head has one row per anchor of a cell and class."""
        rows = torch.cat((torch.full((self.first_label,), -1), torch.arange(len(self.info.classes))))
        repeated = rows.repeat(self.anchor_generator.num_anchors_per_location()[0])
        return {f"head.classification_head.cls_logits.{kind}": repeated for kind in ("weight", "bias")}

    def _boxes(self, head: dict[str, Tensor], anchors: list[Tensor]) -> Tensor:
        """Decoded boxes (B, N, 4), without gradient; all images of a batch have the same anchors."""
        deltas = head["bbox_regression"].detach()
        repeated = anchors[0].expand_as(deltas).flatten(0, 1)
        boxes: Tensor = self.box_coder.decode_single(deltas.flatten(0, 1), repeated).view_as(deltas)
        return boxes

    def _anchors(self, images: Tensor, sizes: list[tuple[int, int]], maps: Maps) -> list[Tensor]:
        """The anchors (N, 4) of each image."""
        anchors: list[Tensor] = self.anchor_generator(ImageList(images, sizes), list(maps.neck.values()))
        return anchors

    def _match(self, targets: Sequence[Target], anchors: list[Tensor]) -> list[Tensor]:
        """Index of the object matched to each anchor, -1 for background, -2 for ignored."""
        return [
            self.proposal_matcher(box_iou(target.boxes, image_anchors))
            if len(target.boxes)
            else torch.full((len(image_anchors),), Matcher.BELOW_LOW_THRESHOLD, device=image_anchors.device)
            for target, image_anchors in zip(targets, anchors, strict=True)
        ]

    def _output(
        self,
        batch: Batch,
        losses: dict[str, Tensor],
        maps: Maps,
        head: dict[str, Tensor],
        towers: dict[str, dict[int, Tensor]],
        anchors: list[Tensor],
        matched: list[Tensor],
    ) -> DetectorOutput:
        strides = torch.tensor(list(maps.neck), device=batch.images.device)
        per_level = torch.tensor(anchors_per_level(maps.neck, self.anchor_generator), device=batch.images.device)
        dense = DensePredictions(
            **self._dense_fields(head, anchors),
            labels=self._labels(batch, matched),
            strides=strides.repeat_interleave(per_level),
            anchors=torch.stack(anchors),
        )

        def finish(classes: dict[int, Tensor], boxes: dict[int, Tensor]) -> DensePredictions:
            rest = rest_of(self.head)
            predictions = rest.classification_head([*classes.values()]), rest.regression_head([*boxes.values()])
            other = _in_float32(dict(zip(("cls_logits", "bbox_regression"), predictions, strict=True)))
            return replace(dense, **self._dense_fields(other, anchors))

        return output_of(batch, maps, losses, dense=dense, towers=Towers(**towers, finish=finish))

    def _dense_fields(self, head: dict[str, Tensor], anchors: list[Tensor]) -> dict[str, Any]:
        """The fields of `DensePredictions` that follow from the output of the head."""
        deltas = head["bbox_regression"]
        decode = decoding(self.box_coder.decode_single, deltas, anchors[0])
        return {"logits": head["cls_logits"][..., self.first_label :], "decode": decode, "deltas": deltas}

    def _labels(self, batch: Batch, matched: list[Tensor]) -> Tensor:
        """(B, N) label of each anchor, K for background, -1 for ignored."""
        labels = []
        for target, index in zip(batch.targets, matched, strict=True):
            with_background = torch.cat((target.labels, target.labels.new_tensor([batch.classes])))
            label = with_background[torch.where(index >= 0, index, len(target.labels))]
            labels.append(torch.where(index == Matcher.BETWEEN_THRESHOLDS, -1, label))
        return torch.stack(labels)


def _in_float32(head: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs of the head, (B, N, K) and (B, N, 4), which half precision under autocast would move by pixels."""
    return {name: output.float() for name, output in head.items()}


def _anchor_generator(options: Any) -> AnchorGenerator:
    octaves = tuple(tuple(size * octave for octave in OCTAVES) for size in options.anchor_sizes)
    if options.round_anchors:
        octaves = tuple(tuple(int(side) for side in octave) for octave in octaves)
    return build_anchors(octaves, STRIDES, options.round_anchors, options.exact_strides)


def build(spec: DetectorSpec, weights: str) -> RetinaNet:
    """Build a detector from its description; `weights` are those of the backbone (see `find_weights`)."""
    options: Any = with_usual_values(RetinaNetOptions(**spec.options))
    backbone = five_levels(spec, weights, options.p6_source, options.p6_activation)
    if options.initialisation == "published":
        initialise_pyramid(backbone.fpn)
    anchors = _anchor_generator(options)
    norm = partial(GroupNorm, group_count(spec.neck_channels)) if options.head_norm == "gn" else None
    head = RetinaNetHead(spec.neck_channels, anchors.num_anchors_per_location()[0], len(spec.classes), norm_layer=norm)
    # torchvision initialises the towers with a deviation of 0.01, for 256 channels; narrower towers need more.
    for tower in (head.classification_head.conv, head.regression_head.conv):
        for layer in tower.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01 * math.sqrt(256 / spec.neck_channels))
    return RetinaNet(backbone, head, anchors, spec, options)


def from_torchvision(core: TorchvisionRetinaNet, classes: tuple[str, ...], name: str) -> RetinaNet:
    """Convert a torchvision model with its weights."""
    backbone = converted_backbone(core, STRIDES)
    head_norm: Any = "gn" if _has_group_norm(core.head) else "none"
    options = with_usual_values(RetinaNetOptions(head_norm=head_norm, antialias=False))
    spec = converted_spec(core, "retinanet", name, classes, {"head_norm": head_norm})
    return RetinaNet(backbone, core.head, core.anchor_generator, spec, options, first_label=1)


def _has_group_norm(head: nn.Module) -> bool:
    """Whether a head has group normalisation, as in torchvision's second version."""
    return any(isinstance(layer, nn.GroupNorm) for layer in head.modules())
