"""Average precision in its two customary forms, from the same boxes.

COCO's averages over ten IoU thresholds (0.50, 0.55 .. 0.95) and is computed by `faster_coco_eval`; PASCAL VOC's looks
at IoU 0.5 alone and is computed here. Boxes are `x1 y1 x2 y2` with exclusive ends, so a width is `x2 - x1`. The golden
values of the original implementation follow the same convention: they add no pixel to a width. (VOC's own files have
inclusive ends; their reader makes them exclusive, which gives the widths of the VOC development kit.)

Letters: D detections and G ground-truth boxes of an image, K classes, T IoU thresholds, R recall levels.
"""

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster

from defeat.types import Detections, Target

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

VOC_IOU = 0.5
MAX_DETECTIONS = 100
COCO_AREAS = ("AP", "APs", "APm", "APl")
NO_MASK: list[Any] = []  # for the library, which would draw one for each box

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scene:
    """One image as the metrics see it, in numpy.

    Attributes:
        image_id: the image's number, unique in its split.
        size: height and width in pixels.
        boxes: (D, 4) detected boxes in pixels.
        scores: (D,) in 0..1.
        labels: (D,) in 0..K-1.
        true_boxes: (G, 4) annotated boxes in pixels.
        true_labels: (G,) in 0..K-1.
        difficult: (G,) true where a box is neither demanded nor punished.
        crowd: (G,) true where a box holds a group of objects.
    """

    image_id: int
    size: tuple[int, int]
    boxes: Floats
    scores: Floats
    labels: Numbers
    true_boxes: Floats
    true_labels: Numbers
    difficult: Flags
    crowd: Flags

    @classmethod
    def of(cls, detections: Detections, target: Target) -> "Scene":
        """The scene of one image's detections and annotations, on any device."""
        found = detections.cpu()
        return cls(
            image_id=target.image_id,
            size=target.size,
            boxes=_floats(found.boxes.detach().numpy()),
            scores=_floats(found.scores.detach().numpy()),
            labels=found.labels.numpy(),
            true_boxes=_floats(target.boxes.cpu().numpy()),
            true_labels=target.labels.cpu().numpy(),
            difficult=target.difficult.cpu().numpy(),
            crowd=target.crowd.cpu().numpy(),
        )

    @property
    def demanded(self) -> Flags:
        """(G,) the boxes that a detector must find."""
        return ~(self.difficult | self.crowd)


def box_iou(boxes: Floats, others: Floats) -> Floats:
    """Intersection over union of each of (D, 4) boxes with each of (G, 4) others: (D, G) in 0..1."""
    corner = np.maximum(boxes[:, None, :2], others[None, :, :2])
    end = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = np.clip(end - corner, 0, None).prod(axis=2)  # (D, G)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    other_area = (others[:, 2:] - others[:, :2]).prod(axis=1)
    union = area[:, None] + other_area[None, :] - intersection
    iou: Floats = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None; None when there is none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


# ---------------------------------------------------------------------------------------------------------- PASCAL VOC


@dataclass(frozen=True)
class VocResult:
    """PASCAL VOC average precision of K classes, 0..1; None for a class without a demanded object.

    Attributes:
        eleven_points: (K,) the rule of VOC 2007: the mean over recalls 0, 0.1 .. 1 of the best precision from there on.
        area: (K,) the rule since VOC 2010: the area under the curve of precision made monotonous.
    """

    eleven_points: list[float | None]
    area: list[float | None]


def voc_average_precision(scenes: Sequence[Scene], classes: int) -> VocResult:
    """PASCAL VOC average precision at IoU 0.5.

    Detections of a class are visited from the highest score on. Each belongs to the box of its class with which its IoU
    is largest. It is correct if that IoU is at least 0.5 and no earlier detection took the box, it does not count if
    that box is difficult or a crowd, and is wrong otherwise.

    Args:
        scenes: the images; equal scores are visited in their order.
        classes: K.
    """
    judged = [_judge(scene) for scene in scenes]
    scores = np.concatenate([np.zeros(0), *(one.scores for one in judged)])
    labels = np.concatenate([np.zeros(0, dtype=np.int64), *(one.labels for one in judged)])
    correct = np.concatenate([np.zeros(0, dtype=np.bool_), *(one.correct for one in judged)])
    objects = [np.zeros(0, dtype=np.int64), *(scene.true_labels[scene.demanded] for scene in scenes)]
    demanded = np.bincount(np.concatenate(objects), minlength=classes)
    order = np.argsort(-scores, kind="stable")
    curves = [_curve(correct[order[labels[order] == label]], int(demanded[label])) for label in range(classes)]
    return VocResult(
        [None if curve is None else _eleven_points(*curve) for curve in curves],
        [None if curve is None else _area_under_curve(*curve) for curve in curves],
    )


@dataclass(frozen=True)
class _Judged:
    """The detections of an image that count, best first: scores, labels and which of them are correct."""

    scores: Floats
    labels: Numbers
    correct: Flags


def _judge(scene: Scene) -> _Judged:
    order = np.argsort(-scene.scores, kind="stable")
    scores, labels = scene.scores[order], scene.labels[order]
    correct = np.zeros(len(order), dtype=np.bool_)
    if len(scene.true_boxes) == 0 or len(order) == 0:
        return _Judged(scores, labels, correct)
    same_class = labels[:, None] == scene.true_labels[None, :]
    iou = np.where(same_class, box_iou(scene.boxes[order], scene.true_boxes), -1.0)  # (D, G)
    best = iou.argmax(axis=1)
    hit = iou.max(axis=1) >= VOC_IOU
    excused = hit & ~scene.demanded[best]
    candidates = np.flatnonzero(hit & ~excused)
    _, first = np.unique(best[candidates], return_index=True)  # the highest score takes the box
    correct[candidates[first]] = True
    return _Judged(scores[~excused], labels[~excused], correct[~excused])


def _curve(correct: Flags, demanded: int) -> tuple[Floats, Floats] | None:
    """Recall and precision down to each detection of a class; None where nothing of it is demanded."""
    if demanded == 0:
        return None
    true_positives = np.cumsum(correct)
    return true_positives / demanded, true_positives / np.arange(1, len(correct) + 1)


def _eleven_points(recall: Floats, precision: Floats) -> float:
    best_from_here = [precision[recall >= level].max(initial=0.0) for level in np.arange(0.0, 1.1, 0.1)]
    return float(np.mean(best_from_here))


def _area_under_curve(recall: Floats, precision: Floats) -> float:
    monotonous = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * monotonous).sum())


# ---------------------------------------------------------------------------------------------------------------- COCO


@dataclass(frozen=True)
class CocoResult:
    """COCO average precision, 0..1; None where there is no demanded object.

    Attributes:
        overall: `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`; small is an area up to 32^2 pixels, medium up to 96^2.
        per_class: `AP` and `AP50` of each of the K classes.
    """

    overall: dict[str, float | None]
    per_class: list[dict[str, float | None]]


def coco_average_precision(scenes: Sequence[Scene], classes: int) -> CocoResult:
    """COCO average precision with at most 100 detections an image and class; an object's area is that of its box.

    Crowd boxes follow COCO's own rule (`iscrowd`). Difficult boxes do not exist in COCO, and its tools overwrite the
    `ignore` flag of an annotation; here they are left out, together with the detections that PASCAL VOC's rule assigns
    to them. So a detection on a difficult box changes nothing, at every IoU threshold.

    Args:
        scenes: the images; equal scores are visited in their order.
        classes: K.
    """
    if not any(scene.demanded.any() for scene in scenes):
        nothing: dict[str, float | None] = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"))
        return CocoResult(nothing, [{"AP": None, "AP50": None} for _ in range(classes)])
    with _no_collection():
        precision = _coco_precision(scenes, classes)  # (T, R, K, areas)
    overall = {
        "AP": _mean_precision(precision[..., 0]),
        "AP50": _mean_precision(precision[0, ..., 0]),
        "AP75": _mean_precision(precision[5, ..., 0]),
    }
    overall |= {name: _mean_precision(precision[..., area]) for area, name in enumerate(COCO_AREAS) if area > 0}
    per_class = [
        {"AP": _mean_precision(precision[:, :, label, 0]), "AP50": _mean_precision(precision[0, :, label, 0])}
        for label in range(classes)
    ]
    return CocoResult(overall, per_class)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold back the search for reference cycles: among a million small objects it takes a third of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _coco_precision(scenes: Sequence[Scene], classes: int) -> Floats:
    """Precision at 10 IoU thresholds and 101 recalls, of K classes, for all, small, medium, large: (10, 101, K, 4)."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):  # own numbers: equal scores keep the order of the scenes
        annotations += _annotations(scene, number)
        results += _results(scene, number)
    for identifier, annotation in enumerate(annotations, start=1):
        annotation["id"] = identifier  # 0 would mean "unmatched"
    images = [{"id": number, "height": scene.size[0], "width": scene.size[1]} for number, scene in enumerate(scenes)]
    categories = [{"id": label, "name": str(label)} for label in range(classes)]
    truth = COCO({"images": images, "annotations": annotations, "categories": categories}, print_function=_log.debug)
    evaluation = COCOeval_faster(truth, truth.loadRes(results), iouType="bbox", print_function=_log.debug)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    precision: Floats = np.asarray(evaluation.eval["precision"], dtype=np.float64)[..., -1]
    assert precision.shape == (10, 101, classes, len(COCO_AREAS)), precision.shape
    return precision


def _annotations(scene: Scene, number: int) -> list[dict[str, Any]]:
    kept = np.flatnonzero(~scene.difficult | scene.crowd)
    boxes = _corner_and_size(scene.true_boxes[kept])
    return [
        {"image_id": number, "category_id": int(label), "bbox": box, "area": box[2] * box[3], "iscrowd": int(crowd)}
        for box, label, crowd in zip(boxes, scene.true_labels[kept], scene.crowd[kept], strict=True)
    ]


def _results(scene: Scene, number: int) -> list[dict[str, Any]]:
    kept = ~on_difficult(scene)
    boxes = _corner_and_size(scene.boxes[kept])
    found = zip(boxes, scene.labels[kept].tolist(), scene.scores[kept].tolist(), strict=True)
    return [
        {"image_id": number, "category_id": label, "bbox": box, "score": score, "segmentation": NO_MASK}
        for box, label, score in found
    ]


def on_difficult(scene: Scene) -> Flags:
    """(D,) the detections whose best box of their own class is a difficult one, at an IoU of 0.5 or more."""
    difficult = scene.difficult & ~scene.crowd
    if not difficult.any() or len(scene.boxes) == 0:
        return np.zeros(len(scene.boxes), dtype=np.bool_)
    candidates = scene.demanded | difficult
    same_class = scene.labels[:, None] == scene.true_labels[None, candidates]
    iou = np.where(same_class, box_iou(scene.boxes, scene.true_boxes[candidates]), 0.0)  # (D, G)
    on_difficult: Flags = (iou.max(axis=1) >= VOC_IOU) & difficult[candidates][iou.argmax(axis=1)]
    return on_difficult


def _corner_and_size(boxes: Floats) -> list[list[float]]:
    sized: list[list[float]] = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    return sized


def _mean_precision(precision: Floats) -> float | None:
    known = precision[precision > -1]  # -1: no demanded object of that class and size
    return float(known.mean()) if known.size else None


def _floats(values: npt.NDArray[Any]) -> Floats:
    return values.astype(np.float64)
