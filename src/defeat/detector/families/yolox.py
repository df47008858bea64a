"""YOLOX (Ge et al., arXiv 2107.08430), from the modules of LibreYOLO.

The network, the assignment (SimOTA) and the IoU loss are LibreYOLO's; what is done with them is here and in
`detector/yolo.py`: preparation, background of unannotated images, and what methods read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from defeat.detector.base import DetectorSpec
from defeat.detector.libreyolo_models import require_libreyolo, yolox_network
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

STAGES = ("stem", "dark2", "dark3", "dark4", "dark5")  # stages of the backbone
LEVELS = STAGES[2:]  # those whose outputs the neck takes
# Order of channels; onnxruntime refuses a file with `flip` before the slices of the stem.
BLUE_GREEN_RED = [2, 1, 0]
BOX_WEIGHT = 5.0  # of the IoU loss, as published
LARGEST_LOG_SIDE = 10.0  # of sides in strides, so that no box is infinite
LARGEST_LOG_SCORE = -1e-6  # so that the logit of a score of 1 is finite


@dataclass(frozen=True)
class YOLOXOptions(YOLOOptions):
    """Options of the family."""

    nms_thresh: float = bounded(0.65, 0.0, 1.0)
    """IoU threshold of non-maximum suppression."""


class YOLOXBackbone(YOLOBackbone):
    """CSPDarknet with its path aggregation network; values of images are B, G, R in 0..255."""

    def forward(self, images: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Feature maps of body and neck by stride, for (B, 3, H, W) normalised images, whose channels are R, G, B."""
        body = self.body(images[:, BLUE_GREEN_RED])
        maps = dict(zip(STRIDES, (body[level] for level in LEVELS), strict=True))
        return maps, dict(zip(STRIDES, self.fpn(body), strict=True))


class Head(nn.Module):
    """The decoupled head of each level, with LibreYOLO's names.

    Args:
        parts: LibreYOLO's head.
    """

    def __init__(self, parts: Any) -> None:
        super().__init__()
        self.stems, self.cls_convs, self.reg_convs = parts.stems, parts.cls_convs, parts.reg_convs
        self.cls_preds, self.reg_preds, self.obj_preds = parts.cls_preds, parts.reg_preds, parts.obj_preds

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """For each map (B, C, H, W): box, logit of objectness, logits of the classes, (B, 5+K, H, W)."""
        outputs = []
        for index, level in enumerate(levels):
            shared = self.stems[index](level)
            of_box, of_class = self.reg_convs[index](shared), self.cls_convs[index](shared)
            parts = (self.reg_preds[index](of_box), self.obj_preds[index](of_box), self.cls_preds[index](of_class))
            outputs.append(torch.cat(parts, dim=1).float())  # also under autocast, as boxes would move by pixels
        return outputs


class YOLOX(YOLODetector):
    """A one-stage detector without anchors: objectness, a sigmoid per class and a box at every point.

    The score of a class is the product of both sigmoids. Its losses are `objectness`, `classification` and `box`.
    """

    def class_rows(self) -> dict[str, Tensor]:
        """The layer of each level that predicts the classes has one row per class."""
        rows = torch.arange(len(self.info.classes))
        return {f"head.cls_preds.{level}.{kind}": rows for level in range(len(STRIDES)) for kind in ("weight", "bias")}

    def predictions(self, images: Tensor, maps: Maps) -> Predictions:
        """See `YOLODetector`; `own` are the logits of objectness and classes, (B, N, 1+K), and the points in cells."""
        outputs = self.head(list(maps.neck.values()))
        boxes = torch.cat([self.boxes(output, stride) for output, stride in zip(outputs, STRIDES, strict=True)], dim=1)
        logits = torch.cat([output[:, 4:].flatten(2).transpose(1, 2) for output in outputs], dim=1)
        cells = torch.cat([points_of(output, 1, offset=0.0) for output in outputs])  # (N, 2)
        scores = F.logsigmoid(logits[..., 1:]) + F.logsigmoid(logits[..., :1])
        scores = scores.clamp(max=LARGEST_LOG_SCORE)
        of_classes = scores - torch.log(-torch.expm1(scores))
        return Predictions(of_classes, boxes, strides_of(outputs), own=(logits, cells))

    @torch.no_grad()
    def match(self, predictions: Predictions, targets: PaddedTargets) -> tuple[Tensor, Tensor]:
        """Assign objects to points by SimOTA.

        Returns:
            (B, N) int64, index of the object of each point, -1 for background; and (B, N) float32, the IoU of the
            predicted box with it, 0 for background.
        """
        logits, cells = predictions.own
        matched = torch.full(predictions.boxes.shape[:2], -1, dtype=torch.int64, device=logits.device)
        quality = torch.zeros(matched.shape, device=logits.device)
        boxes, objects = (box_convert(corners, "xyxy", "cxcywh") for corners in (predictions.boxes, targets.boxes))
        strides = predictions.strides[None].to(boxes.dtype)
        x, y = cells.T[:, None].to(boxes.dtype)  # (1, N) each
        assigner = _assigner(logits.shape[-1] - 1)
        with torch.autocast(logits.device.type, enabled=False):
            for image, count in enumerate(targets.real.sum(dim=1).tolist()):
                if count == 0:
                    continue
                _, positive, overlap, index, _ = assigner.get_assignments(
                    image,
                    count,
                    objects[image, :count],
                    targets.labels[image, :count],
                    boxes[image],
                    strides,
                    x,
                    y,
                    logits[..., 1:],
                    logits[..., :1],
                )
                matched[image, positive] = index
                quality[image, positive] = overlap.to(quality.dtype)
        return matched, quality

    def losses(
        self, predictions: Predictions, assignment: Assignment, quality: Tensor, negative_weight: float
    ) -> dict[str, Tensor]:
        """Terms with the published weights, each divided by the number of positive points."""
        logits, _ = predictions.own
        positive = assignment.matched >= 0  # (B, N)
        count = positive.sum().clamp(min=1)
        objectness = F.binary_cross_entropy_with_logits(logits[..., 0], positive.float(), reduction="none")
        _, _, boxes, labels = assignment.positives()
        classes = F.one_hot(labels, logits.shape[-1] - 1) * quality[positive][:, None]
        classification = F.binary_cross_entropy_with_logits(logits[..., 1:][positive], classes, reduction="sum")
        predicted, expected = (
            box_convert(corners, "xyxy", "cxcywh") for corners in (predictions.boxes[positive], boxes)
        )
        overlap = require_libreyolo("yolox").loss.IoULoss(reduction="sum")(predicted, expected)
        return {
            "objectness": (objectness * assignment.class_weights(negative_weight)).sum() / count,
            "classification": classification / count,
            "box": BOX_WEIGHT * overlap / count,
        }

    def scores(self, output: Tensor) -> Tensor:
        """Scores of the best class of each point; those of the others are zero, as published."""
        scores = output[:, 4:].flatten(2).transpose(1, 2).sigmoid()
        of_classes = scores[..., 1:] * scores[..., :1]
        return of_classes * F.one_hot(of_classes.argmax(dim=2), of_classes.shape[2])

    def boxes(self, output: Tensor, stride: int) -> Tensor:
        """Boxes: the centre relative to the corner of a cell, and the logarithms of the sides, in strides."""
        values = output[:, :4].flatten(2).transpose(1, 2)
        centre = values[..., :2] * stride + points_of(output, stride, offset=0.0)
        half = values[..., 2:].clamp(max=LARGEST_LOG_SIDE).exp() * stride / 2
        return torch.cat((centre - half, centre + half), dim=-1)


@cache
def _assigner(classes: int) -> Any:
    """LibreYOLO's head for its assignment, without memory for weights; random numbers are not drawn."""
    with torch.device("meta"):
        return require_libreyolo("yolox").nn.YOLOXHead(classes, width=1 / 256)


def build(spec: DetectorSpec, weights: str) -> YOLOX:
    """Build a detector from its description, see `build_yolo`."""
    return build_yolo(spec, weights, built)


def built(spec: DetectorSpec) -> YOLOX:
    """Build a detector with random weights.

    Raises:
        InputError: unknown backbone, or LibreYOLO is not installed.
    """
    options: Any = with_usual_values(YOLOXOptions(**spec.options))
    parts = yolox_network(spec.backbone, len(spec.classes))
    backbone = YOLOXBackbone(parts, white=255.0)
    prepare_backbone(backbone, spec, STAGES)
    return YOLOX(backbone, Head(parts.head), spec, options, anchors=f"YOLOX points {list(STRIDES)}")
