"""YOLOv9 (Wang et al., ECCV 2024; arXiv 2402.13616), from the modules of LibreYOLO.

The network, the assignment (task-aligned, Feng et al., ICCV 2021) and the terms of the loss are LibreYOLO's; what is
done with them is in this file: preparation, background of unannotated images, and what methods read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defeat.detector.backbone import Backbone
from defeat.detector.base import Detector, DetectorSpec, info_of, output_of
from defeat.detector.libreyolo_models import (
    REG_MAX,
    Parts,
    is_checkpoint,
    network,
    read_checkpoint,
    require_libreyolo,
)
from defeat.detector.normalisation import apply_norm
from defeat.detector.options import automatic, bounded, fitted_to_data, require_valid, with_usual_values
from defeat.detector.points import SQUARE, Assignment, PaddedTargets, assign_objects, fitted_candidates
from defeat.detector.selection import BOXES, SCORES, Raw, Selection, by_level, dense_candidates, select_dense
from defeat.detector.statistics import ObjectStatistics
from defeat.errors import InputError
from defeat.types import Batch, DensePredictions, Detections, DetectorOutput, Maps

STRIDES = (8, 16, 32)
STAGES = ("conv1", "elan1", "elan2", "elan3", "spp")  # last module of each stage of the backbone
BACKBONE = "yolo9_t"
USUAL_NECK = 256  # the default of --neck-channels, which has no effect
GREY = 114 / 255  # value of padding, as published


@dataclass(frozen=True)
class YOLO9Options:
    """Options of the family; the defaults are those of LibreYOLO's evaluation.

    `auto` options are derived from size and objects of the training data.
    """

    strides: ClassVar[tuple[int, ...]] = STRIDES
    pyramid: ClassVar[bool] = False

    class_channels: int = bounded(0, 0)
    """Channels of the classification towers; 0 for the published number, which depends on the number of classes."""
    score_thresh: float = bounded(0.001, 0.0, 1.0)
    """Detections with a lower score are dropped."""
    nms_thresh: float = bounded(0.6, 0.0, 1.0)
    """IoU threshold of non-maximum suppression."""
    detections_per_img: int = bounded(300, 1)
    """Maximum number of detections per image."""
    topk_candidates: int | Literal["auto"] = fitted_to_data(1000, "{} candidates per level")
    """Maximum number of candidates per level before non-maximum suppression."""

    def __post_init__(self) -> None:
        """Refuse invalid options."""
        require_valid(self)

    def fitted(self, statistics: ObjectStatistics, neck_channels: int) -> "YOLO9Options":
        """Replace `auto` by values derived from the data; `neck_channels` has no effect."""
        if "topk_candidates" not in automatic(self):
            return self
        return replace(self, topk_candidates=fitted_candidates(statistics))


class YOLO9Backbone(Backbone):
    """GELAN with its path aggregation network, which has other channels at each stride.

    Args:
        parts: the network.
    """

    def __init__(self, parts: Parts) -> None:
        body_channels = dict(zip(STRIDES, parts.body_channels, strict=True))
        neck_channels = dict(zip(STRIDES, parts.neck_channels, strict=True))
        super().__init__(parts.body, parts.neck, body_channels, neck_channels, (0.0,) * 3, (1.0,) * 3)

    def forward(self, images: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Feature maps of body and neck by stride, for (B, 3, H, W) normalised images."""
        body = self.body(images)
        return dict(zip(STRIDES, body, strict=True)), dict(zip(STRIDES, self.fpn(*body), strict=True))


class Head(nn.Module):
    """Towers of convolutions for each level, with LibreYOLO's names."""

    def __init__(self, box_towers: nn.ModuleList, class_towers: nn.ModuleList) -> None:
        super().__init__()
        self.cv2, self.cv3 = box_towers, class_towers

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """For each map (B, C, H, W): logits of four distributions and of the classes, (B, 4M+K, H, W)."""
        # Convert to float32 also under autocast: half precision would move decoded boxes by pixels.
        return [
            torch.cat((box(level), classes(level)), dim=1).float()
            for box, classes, level in zip(self.cv2, self.cv3, levels, strict=True)
        ]


@dataclass(frozen=True)
class Predictions:
    """Predictions at the points of all levels; N of them, K classes, distributions of M values.

    Attributes:
        logits: (B, N, K).
        distributions: (B, N, 4, M), logits.
        boxes: (B, N, 4), pixels of the batch.
        strides: (N,) int64.
        per_level: number of points of each level.
        loss: LibreYOLO's loss for images of this size.
    """

    logits: Tensor
    distributions: Tensor
    boxes: Tensor
    strides: Tensor
    per_level: list[int]
    loss: Any


class YOLO9(Detector):
    """A one-stage detector without anchors: a sigmoid per class and four distributions at every point."""

    padding = GREY  # as published

    def __init__(self, backbone: YOLO9Backbone, head: Head, spec: DetectorSpec, options: YOLO9Options) -> None:
        """Create it from its parts.

        Args:
            backbone: feature maps at strides 8, 16 and 32.
            head: the predictions.
            spec: description of the detector.
            options: options of the family, without `auto`.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.options = options
        self.selection = Selection.of(options)
        self.spec = spec
        self.info = info_of(
            spec,
            backbone,
            activation="sigmoid",
            background="none",
            offers=frozenset({"dense"}),
            anchors=f"YOLOv9 points {list(STRIDES)}",
            bins=REG_MAX,
        )

    def forward_train(self, batch: Batch, negative_weight: float = 1.0) -> DetectorOutput:
        """Compute the losses `classification`, `box` and `distribution`, and the fields that methods read."""
        assert self.training, "forward_train needs the training mode"
        maps = self.forward_maps(batch)
        predictions = self._predict(batch.images, maps)
        qualities: list[Tensor] = []

        def match(targets: PaddedTargets) -> Tensor:
            matched, quality = _match(predictions, targets)
            qualities.append(quality)
            return matched

        everything, training = assign_objects(batch, match)
        losses = _losses(predictions, training, qualities[-1], negative_weight)
        return self._output(batch, losses, maps, predictions, everything)

    def teach(self, batch: Batch, maps: Maps) -> DetectorOutput:
        """Return the feature maps and the predictions at every point."""
        predictions = self._predict(batch.images, maps)
        everything, _ = assign_objects(batch, lambda targets: _match(predictions, targets)[0])
        return self._output(batch, {}, maps, predictions, everything)

    def raw(self, images: Tensor, sizes: list[tuple[int, int]], maps: Maps | None = None) -> Raw:
        """Scores and boxes at the points of each level."""
        neck = (maps or Maps(*self.backbone(images))).neck
        outputs = self.head(list(neck.values()))
        boxes = [_decoded(output, stride) for output, stride in zip(outputs, STRIDES, strict=True)]
        scores = [output[:, 4 * REG_MAX :].flatten(2).transpose(1, 2).sigmoid() for output in outputs]
        return by_level(STRIDES, **{SCORES: scores, BOXES: boxes})

    def decode(self, raw: Raw, sizes: list[tuple[int, int]]) -> list[Detections]:
        """Select the detections, in pixels of the batch; those of which nothing is inside the image are left out."""
        return [_with_area(detections) for detections in select_dense(raw, sizes, self.selection)]

    def candidates(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """Boxes and scores at all points."""
        return dense_candidates(raw)

    def class_rows(self) -> dict[str, Tensor]:
        """The last layer of the classification tower of each level has one row per class."""
        rows = torch.arange(len(self.info.classes))
        return {f"head.cv3.{level}.2.{kind}": rows for level in range(len(STRIDES)) for kind in ("weight", "bias")}

    def _predict(self, images: Tensor, maps: Maps) -> Predictions:
        outputs = self.head(list(maps.neck.values()))
        height, width = images.shape[-2:]
        loss = require_libreyolo().loss.YOLO9Loss(
            len(self.info.classes), REG_MAX, list(STRIDES), [int(width), int(height)], images.device
        )
        logits, distributions, boxes = loss.vec2box(outputs)
        per_level = [output.shape[-2] * output.shape[-1] for output in outputs]
        counts = torch.tensor(per_level, device=boxes.device)
        strides = torch.tensor(STRIDES, device=boxes.device).repeat_interleave(counts)
        return Predictions(logits, distributions, boxes, strides, per_level, loss)

    def _output(
        self,
        batch: Batch,
        losses: dict[str, Tensor],
        maps: Maps,
        predictions: Predictions,
        assignment: Assignment,
    ) -> DetectorOutput:
        return output_of(
            batch,
            maps,
            losses,
            dense=DensePredictions(
                logits=predictions.logits,
                decode=lambda image, index: predictions.boxes[image, index],
                labels=assignment.labels(batch.classes),
                strides=predictions.strides,
                distributions=predictions.distributions,
                squares=torch.cat([_squares(level, stride) for stride, level in maps.neck.items()]),
            ),
        )


def _decoded(output: Tensor, stride: int) -> Tensor:
    """Boxes (B, H*W, 4) in pixels for the output (B, 4M+K, H, W) of the head, as LibreYOLO's loss has them.

    Its own code makes points for a fixed size of the image; these are for any, so that they can be traced.
    """
    points = _points(output, stride)
    distributions = output[:, : 4 * REG_MAX].flatten(2).unflatten(1, (4, REG_MAX)).softmax(dim=2)  # (B, 4, M, H*W)
    values = torch.arange(REG_MAX, dtype=output.dtype, device=output.device)[:, None]
    distances = (distributions * values).sum(dim=2).transpose(1, 2) * stride  # (B, H*W, 4) left, top, right, bottom
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)


def _with_area(detections: Detections) -> Detections:
    kept = (detections.boxes[:, 2:] > detections.boxes[:, :2]).all(dim=1)
    return Detections(detections.boxes[kept], detections.scores[kept], detections.labels[kept])


@torch.no_grad()
def _match(predictions: Predictions, targets: PaddedTargets) -> tuple[Tensor, Tensor]:
    """Assign objects to points.

    Returns:
        (B, N) int64, index of the object of each point, -1 for background; and (B, N, K) float32, the target of the
        classification: the alignment of classification and box, in 0..1, of the class of the object.
    """
    # Rows: label and corners. A row of zeros, after the last object of an image, is inside no point.
    rows = torch.cat((targets.labels[..., None].float(), targets.boxes), dim=-1)  # (B, G, 5)
    matcher = predictions.loss.matcher
    matched, positive, index = matcher(
        rows, (predictions.logits.detach(), predictions.boxes.detach()), return_indices=True
    )
    return torch.where(positive, index, -1), matched[..., : predictions.logits.shape[-1]].float()


def _losses(
    predictions: Predictions, assignment: Assignment, quality: Tensor, negative_weight: float
) -> dict[str, Tensor]:
    """Terms with LibreYOLO's weights, each over the sum of the qualities; unknown background is ignored."""
    loss = predictions.loss
    positive = assignment.matched >= 0  # (B, N)
    total = quality.sum().clamp(min=1)
    entropy = F.binary_cross_entropy_with_logits(predictions.logits, quality, reduction="none").sum(dim=2)
    classification = (entropy * assignment.class_weights(negative_weight)).sum() / total
    if not positive.any():
        nothing = 0 * predictions.distributions.sum()
        return {"classification": loss.cls_weight * classification, "box": nothing, "distribution": nothing}
    objects = assignment.targets.boxes
    index = assignment.matched.clamp(min=0)[..., None].expand(-1, -1, 4)
    strides = predictions.strides[:, None]
    expected = objects.gather(1, index) / strides  # (B, N, 4)
    weights = quality.sum(dim=2)[positive]  # (P,)
    box = loss.box_loss(predictions.boxes / strides, expected, positive, weights, total)
    points = (loss.vec2box.anchor_grid / strides)[None]
    distribution = loss.dfl_loss(predictions.distributions, expected, points, positive, weights, total)
    return {
        "classification": loss.cls_weight * classification,
        "box": loss.box_weight * box,
        "distribution": loss.dfl_weight * distribution,
    }


def build(spec: DetectorSpec, weights: str) -> YOLO9:
    """Build a detector from its description.

    Args:
        spec: with a backbone of the family, and the default number of neck channels.
        weights: `none` or `auto` for random weights, as there are none of the backbone alone; or a checkpoint of
            LibreYOLO, whose weights are kept but for the rows of other classes.

    Raises:
        InputError: unknown backbone, other number of neck channels, or weights that do not match.
    """
    if spec.neck_channels != USUAL_NECK:
        raise InputError(
            f"--neck-channels {spec.neck_channels}: its backbone fixes the widths of yolo9; leave the option out."
        )
    if weights in ("none", "auto"):
        return _built(spec)
    if not is_checkpoint(weights):
        raise InputError(f"--weights {weights} is not a checkpoint of LibreYOLO; give one, or 'none'.")
    return _with_classes(from_checkpoint(weights), spec, weights)


def _built(spec: DetectorSpec) -> YOLO9:
    options: Any = with_usual_values(YOLO9Options(**spec.options))
    parts = network(spec.backbone, len(spec.classes), options.class_channels)
    backbone = YOLO9Backbone(parts)
    backbone.body = apply_norm(backbone.body, spec.norm)
    if spec.norm == "bn_eval":
        backbone.freeze_statistics(backbone.body.modules())
    backbone.freeze_stages(spec.frozen_stages, STAGES, spec.backbone)
    return YOLO9(backbone, Head(parts.box_towers, parts.class_towers), spec, options)


def from_checkpoint(source: str | Path) -> YOLO9:
    """Load a trained YOLOv9 of LibreYOLO.

    Raises:
        InputError: it can't be read, or is not a YOLOv9.
    """
    checkpoint = read_checkpoint(source)
    spec = DetectorSpec(
        family="yolo9",
        backbone=checkpoint.backbone,
        classes=checkpoint.classes,
        size=checkpoint.size,
        max_size=checkpoint.size,
        options={"class_channels": checkpoint.class_channels},
    )
    detector = _built(spec)
    try:
        detector.load_state_dict(dict(checkpoint.state))
    except RuntimeError as error:
        raise InputError(f"{source} has not the tensors of {checkpoint.backbone}.") from error
    return detector


def _with_classes(trained: YOLO9, spec: DetectorSpec, source: str) -> YOLO9:
    """A detector for other classes with all other weights of a trained one; rows of equal classes are kept."""
    if trained.spec.backbone != spec.backbone:
        raise InputError(f"--weights {source} is a {trained.spec.backbone}, not a {spec.backbone}: give --backbone.")
    class_channels = trained.spec.options["class_channels"]
    detector = _built(replace(spec, options={**spec.options, "class_channels": class_channels}))
    kept = detector.copy_weights(trained)
    if len(kept) < len(spec.classes):
        detector.notes = (
            f"{source}: all weights are kept but those of the classes; {len(kept)} of {len(spec.classes)} classes have "
            "the checkpoint's, and the others start anew.",
        )
    return detector


def _points(level: Tensor, stride: int) -> Tensor:
    """(H*W, 2) x and y of the points of a map (B, C, H, W), in pixels."""
    y, x = ((torch.arange(side, device=level.device) + 0.5) * stride for side in level.shape[-2:])
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((columns.flatten(), rows.flatten()), dim=1)


def _squares(level: Tensor, stride: int) -> Tensor:
    """(H*W, 4) squares around the points of a map (B, C, H, W), in pixels."""
    points, half = _points(level, stride), SQUARE * stride / 2
    return torch.cat((points - half, points + half), dim=1)
