"""YOLOv9 (Wang et al., ECCV 2024; arXiv 2402.13616), from the modules of LibreYOLO.

The network, the assignment (task-aligned, Feng et al., ICCV 2021) and the terms of the loss are LibreYOLO's; what is
done with them is here and in `detector/yolo.py`: preparation, background of unannotated images, and what methods read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defeat.detector.base import DetectorSpec
from defeat.detector.libreyolo_models import REG_MAX, network, require_libreyolo
from defeat.detector.options import bounded, with_usual_values
from defeat.detector.points import Assignment, PaddedTargets
from defeat.detector.yolo import (
    STRIDES,
    Predictions,
    YOLOBackbone,
    YOLODetector,
    YOLOOptions,
    build_yolo,
    points_of,
    prepare_backbone,
    strides_of,
)
from defeat.types import Maps

STAGES = ("conv1", "elan1", "elan2", "elan3", "spp")  # last module of each stage of the backbone


@dataclass(frozen=True)
class YOLO9Options(YOLOOptions):
    """Options of the family."""

    class_channels: int = bounded(0, 0)
    """Channels of the classification towers; 0 for the published number, which depends on the number of classes."""


class YOLO9Backbone(YOLOBackbone):
    """GELAN with its path aggregation network; values of images are R, G, B in 0..1."""

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


class YOLO9(YOLODetector):
    """A one-stage detector without anchors: a sigmoid per class and four distributions at every point.

    Its losses are `classification`, `box` and `distribution`.
    """

    def class_rows(self) -> dict[str, Tensor]:
        """The last layer of the classification tower of each level has one row per class."""
        rows = torch.arange(len(self.info.classes))
        return {f"head.cv3.{level}.2.{kind}": rows for level in range(len(STRIDES)) for kind in ("weight", "bias")}

    def predictions(self, images: Tensor, maps: Maps) -> Predictions:
        """See `YOLODetector`; `own` is LibreYOLO's loss for images of this size."""
        outputs = self.head(list(maps.neck.values()))
        height, width = images.shape[-2:]
        loss = require_libreyolo().loss.YOLO9Loss(
            len(self.info.classes), REG_MAX, list(STRIDES), [int(width), int(height)], images.device
        )
        logits, distributions, boxes = loss.vec2box(outputs)
        return Predictions(logits, boxes, strides_of(outputs), distributions, loss)

    @torch.no_grad()
    def match(self, predictions: Predictions, targets: PaddedTargets) -> tuple[Tensor, Tensor]:
        """Assign objects to points.

        Returns:
            (B, N) int64, index of the object of each point, -1 for background; and (B, N, K) float32, the target of the
            classification: the alignment of classification and box, in 0..1, of the class of the object.
        """
        # Rows: label and corners. A row of zeros, after the last object of an image, is inside no point.
        rows = torch.cat((targets.labels[..., None].float(), targets.boxes), dim=-1)  # (B, G, 5)
        matcher = predictions.own.matcher
        matched, positive, index = matcher(
            rows, (predictions.logits.detach(), predictions.boxes.detach()), return_indices=True
        )
        return torch.where(positive, index, -1), matched[..., : predictions.logits.shape[-1]].float()

    def losses(
        self, predictions: Predictions, assignment: Assignment, quality: Tensor, negative_weight: float
    ) -> dict[str, Tensor]:
        """Terms with LibreYOLO's weights, each over the sum of the qualities; unknown background is ignored."""
        loss = predictions.own
        distributions = predictions.distributions
        assert distributions is not None
        positive = assignment.matched >= 0  # (B, N)
        total = quality.sum().clamp(min=1)
        entropy = F.binary_cross_entropy_with_logits(predictions.logits, quality, reduction="none").sum(dim=2)
        classification = (entropy * assignment.class_weights(negative_weight)).sum() / total
        if not positive.any():
            nothing = 0 * distributions.sum()
            return {"classification": loss.cls_weight * classification, "box": nothing, "distribution": nothing}
        objects = assignment.targets.boxes
        index = assignment.matched.clamp(min=0)[..., None].expand(-1, -1, 4)
        strides = predictions.strides[:, None]
        expected = objects.gather(1, index) / strides  # (B, N, 4)
        weights = quality.sum(dim=2)[positive]  # (P,)
        box = loss.box_loss(predictions.boxes / strides, expected, positive, weights, total)
        points = (loss.vec2box.anchor_grid / strides)[None]
        distribution = loss.dfl_loss(distributions, expected, points, positive, weights, total)
        return {
            "classification": loss.cls_weight * classification,
            "box": loss.box_weight * box,
            "distribution": loss.dfl_weight * distribution,
        }

    def scores(self, output: Tensor) -> Tensor:
        """See `YOLODetector`."""
        return output[:, 4 * REG_MAX :].flatten(2).transpose(1, 2).sigmoid()

    def boxes(self, output: Tensor, stride: int) -> Tensor:
        """Boxes as LibreYOLO's loss has them, whose own code makes points for a fixed size of the image."""
        points = points_of(output, stride)
        distributions = output[:, : 4 * REG_MAX].flatten(2).unflatten(1, (4, REG_MAX)).softmax(dim=2)  # (B, 4, M, H*W)
        values = torch.arange(REG_MAX, dtype=output.dtype, device=output.device)[:, None]
        distances = (distributions * values).sum(dim=2).transpose(1, 2) * stride  # (B, H*W, 4) left, top, right, bottom
        return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)


def build(spec: DetectorSpec, weights: str) -> YOLO9:
    """Build a detector from its description, see `build_yolo`."""
    return build_yolo(spec, weights, built)


def built(spec: DetectorSpec) -> YOLO9:
    """Build a detector with random weights.

    Raises:
        InputError: unknown backbone, or LibreYOLO is not installed.
    """
    options: Any = with_usual_values(YOLO9Options(**spec.options))
    parts = network(spec.backbone, len(spec.classes), options.class_channels)
    backbone = YOLO9Backbone(parts, white=1.0)
    prepare_backbone(backbone, spec, STAGES)
    assert isinstance(parts.head, tuple)
    return YOLO9(backbone, Head(*parts.head), spec, options, anchors=f"YOLOv9 points {list(STRIDES)}", bins=REG_MAX)
