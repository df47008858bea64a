"""COCO and PASCAL VOC average precision.

COCO's averages over ten IoU thresholds (0.50, 0.55 .. 0.95) and is computed by `faster_coco_eval`; PASCAL VOC's uses
the IoU threshold 0.5 only and is computed here. Boxes are `x1 y1 x2 y2` with exclusive ends, so a width is `x2 - x1`.
The golden values of the original implementation follow the same convention: they add no pixel to a width. (VOC's own
files have inclusive ends; their reader makes them exclusive, which gives the widths of the VOC development kit.)

Letters: D detections and G ground-truth boxes of an image, K classes, T IoU thresholds, R recall levels.
"""

import gc
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from faster_coco_eval import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster

from defeat.types import Detections, Target

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

VOC_IOU = 0.5
MAX_DETECTIONS = 100
COCO_AREAS = ("AP", "APs", "APm", "APl")
MOST_PAIRS = 500_000  # pairs of a class and an image at a time: about 500 MiB
NO_MASK: list[Any] = []  # otherwise the library makes a mask for each box

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scene:
    """Detections and ground truth of one image, in numpy.

    Attributes:
        image_id: the image's number, unique in its split.
        size: height and width in pixels.
        boxes: (D, 4) detected boxes in pixels.
        scores: (D,) in 0..1.
        labels: (D,) in 0..K-1.
        true_boxes: (G, 4) annotated boxes in pixels.
        true_labels: (G,) in 0..K-1.
        difficult: (G,) true for boxes that the metrics ignore, whether detected or not.
        crowd: (G,) true for boxes around a group of objects.
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
    def from_image(cls, detections: Detections, target: Target) -> "Scene":
        """Convert the detections and annotations of one image, from any device."""
        detections = detections.cpu()
        return cls(
            image_id=target.image_id,
            size=target.size,
            boxes=_floats(detections.boxes.detach().numpy()),
            scores=_floats(detections.scores.detach().numpy()),
            labels=detections.labels.numpy(),
            true_boxes=_floats(target.boxes.cpu().numpy()),
            true_labels=target.labels.cpu().numpy(),
            difficult=target.difficult.cpu().numpy(),
            crowd=target.crowd.cpu().numpy(),
        )

    @property
    def detections(self) -> Detections:
        """The detections of the image."""
        boxes, scores = (torch.from_numpy(values).float() for values in (self.boxes, self.scores))
        return Detections(boxes, scores, torch.from_numpy(self.labels))

    @property
    def required(self) -> Flags:
        """(G,) the boxes that must be detected: neither difficult nor a crowd."""
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


def mean_without_none(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None; None without any."""
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None


# ---------------------------------------------------------------------------------------------------------- PASCAL VOC


@dataclass(frozen=True)
class VocResult:
    """PASCAL VOC average precision of K classes, 0..1; None for a class without required objects.

    Attributes:
        eleven_points: (K,) VOC 2007: the mean, over recalls 0, 0.1 .. 1, of the best precision at that recall or above.
        area: (K,) since VOC 2010: the area under the monotonic precision-recall curve.
    """

    eleven_points: list[float | None]
    area: list[float | None]


def voc_average_precision(scenes: Sequence[Scene], classes: int) -> VocResult:
    """PASCAL VOC average precision at IoU 0.5.

    Detections of a class are processed in order of descending score. Each is assigned to the box of its class with the
    largest IoU. If that IoU is at least 0.5, the detection is ignored if the box is difficult or a crowd, and correct
    if no earlier detection was assigned to the box. All other detections are wrong.

    Args:
        scenes: the images; equal scores are processed in the order of the images.
        classes: K.
    """
    matches = [_match_voc(scene) for scene in scenes]
    scores = np.concatenate([np.zeros(0), *(image.scores for image in matches)])
    labels = np.concatenate([np.zeros(0, dtype=np.int64), *(image.labels for image in matches)])
    correct = np.concatenate([np.zeros(0, dtype=np.bool_), *(image.correct for image in matches)])
    objects = [np.zeros(0, dtype=np.int64), *(scene.true_labels[scene.required] for scene in scenes)]
    required = np.bincount(np.concatenate(objects), minlength=classes)
    order = np.lexsort((-scores, labels))  # by label, then by score; stable
    ends = np.cumsum(np.bincount(labels, minlength=classes))
    curves = [
        _curve(*of_label) for of_label in zip(np.split(correct[order], ends[:-1]), required.tolist(), strict=True)
    ]
    return VocResult(
        [None if curve is None else _eleven_points(*curve) for curve in curves],
        [None if curve is None else _area_under_curve(*curve) for curve in curves],
    )


@dataclass(frozen=True)
class _VocMatches:
    """The detections of an image that count, best first: scores, labels, and which of them are correct."""

    scores: Floats
    labels: Numbers
    correct: Flags


def _match_voc(scene: Scene) -> _VocMatches:
    order = np.argsort(-scene.scores, kind="stable")
    scores, labels = scene.scores[order], scene.labels[order]
    correct = np.zeros(len(order), dtype=np.bool_)
    if len(scene.true_boxes) == 0 or len(order) == 0:
        return _VocMatches(scores, labels, correct)
    same_class = labels[:, None] == scene.true_labels[None, :]
    iou = np.where(same_class, box_iou(scene.boxes[order], scene.true_boxes), -1.0)  # (D, G)
    best = iou.argmax(axis=1)
    hit = iou.max(axis=1) >= VOC_IOU
    ignored = hit & ~scene.required[best]
    candidates = np.flatnonzero(hit & ~ignored)
    _, first = np.unique(best[candidates], return_index=True)  # the detection with the highest score gets the box
    correct[candidates[first]] = True
    return _VocMatches(scores[~ignored], labels[~ignored], correct[~ignored])


def _curve(correct: Flags, required: int) -> tuple[Floats, Floats] | None:
    """Recall and precision down to each detection of a class; None for a class without required objects."""
    if required == 0:
        return None
    true_positives = np.cumsum(correct)
    return true_positives / required, true_positives / np.arange(1, len(correct) + 1)


def _eleven_points(recall: Floats, precision: Floats) -> float:
    best_precision = [precision[recall >= level].max(initial=0.0) for level in np.arange(0.0, 1.1, 0.1)]
    return float(np.mean(best_precision))


def _area_under_curve(recall: Floats, precision: Floats) -> float:
    monotonic = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * monotonic).sum())


# ---------------------------------------------------------------------------------------------------------------- COCO


@dataclass(frozen=True)
class CocoResult:
    """COCO average precision, 0..1; None without required objects.

    Attributes:
        overall: `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`; small is an area up to 32^2 pixels, medium up to 96^2.
        per_class: `AP` and `AP50` of each of the K classes.
    """

    overall: dict[str, float | None]
    per_class: list[dict[str, float | None]]


def coco_average_precision(scenes: Sequence[Scene], classes: int) -> CocoResult:
    """COCO average precision with at most 100 detections per image and class; an object's area is that of its box.

    Crowd boxes follow COCO's rule (`iscrowd`). Difficult boxes do not exist in COCO, and its tools overwrite the
    `ignore` flag of an annotation; here they are left out, together with the detections that PASCAL VOC's rule assigns
    to them. So a detection on a difficult box is ignored at every IoU threshold.

    Args:
        scenes: the images; equal scores are processed in the order of the images.
        classes: K.
    """
    if not any(scene.required.any() for scene in scenes):
        overall: dict[str, float | None] = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"))
        return CocoResult(overall, [{"AP": None, "AP50": None} for _ in range(classes)])
    with _garbage_collection_paused():
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
def _garbage_collection_paused() -> Iterator[None]:
    """Pause garbage collection, which takes a third of the time with a million small objects."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _coco_precision(scenes: Sequence[Scene], classes: int) -> Floats:
    """Precision at 10 IoU thresholds and 101 recalls, of K classes, for all, small, medium, large: (10, 101, K, 4).

    COCO's tools keep results of every class in every image: with many classes, a part of the classes at a time is
    computed, so that memory does not grow with them.
    """
    objects, detections = _objects(scenes), _detections(scenes)
    part = max(1, MOST_PAIRS // len(scenes))
    parts = [range(first, min(first + part, classes)) for first in range(0, classes, part)]
    return np.concatenate([_precision_of(scenes, labels, objects, detections) for labels in parts], axis=2)


@dataclass(frozen=True)
class _Rows:
    """Boxes of all images, sorted by label and within a label by image.

    Attributes:
        images: (N,) indices of the images.
        labels: (N,) labels.
        boxes: (N, 4) COCO's box format `x y width height`, pixels.
        values: (N,) scores of detections; 1 for crowd boxes among objects, else 0.
    """

    images: Numbers
    labels: Numbers
    boxes: Floats
    values: Floats

    @classmethod
    def of(cls, parts: Iterable[tuple[Floats, Numbers, npt.NDArray[Any]]]) -> "_Rows":
        """Join (boxes as corners, labels, values) of each image."""
        boxes, labels, values = zip(*parts, strict=True)
        joined = np.concatenate(boxes)
        joined[:, 2:] -= joined[:, :2]
        images = np.repeat(np.arange(len(boxes)), [len(each) for each in boxes])
        of_all = np.concatenate(labels)
        order = np.argsort(of_all, kind="stable")
        return cls(images[order], of_all[order], joined[order], np.concatenate(values)[order].astype(np.float64))

    def of_labels(self, labels: range) -> Iterator[tuple[int, int, list[float], float]]:
        """Image, label, box and value of each row with one of these labels, ordered by image."""
        first, last = np.searchsorted(self.labels, [labels.start, labels.stop])
        order = first + np.argsort(self.images[first:last], kind="stable")
        columns = (self.images, self.labels, self.boxes, self.values)
        return zip(*(column[order].tolist() for column in columns), strict=True)


def _objects(scenes: Sequence[Scene]) -> _Rows:
    """The annotated boxes, without difficult ones."""
    counted = [~scene.difficult | scene.crowd for scene in scenes]
    return _Rows.of(
        (scene.true_boxes[mask], scene.true_labels[mask], scene.crowd[mask])
        for scene, mask in zip(scenes, counted, strict=True)
    )


def _detections(scenes: Sequence[Scene]) -> _Rows:
    """The detections, without those of difficult boxes."""
    counted = [~detections_on_difficult(scene) for scene in scenes]
    return _Rows.of(
        (scene.boxes[mask], scene.labels[mask], scene.scores[mask]) for scene, mask in zip(scenes, counted, strict=True)
    )


def _precision_of(scenes: Sequence[Scene], labels: range, objects: _Rows, detections: _Rows) -> Floats:
    """Precision of some of the classes, as `_coco_precision`; image ids are indices of the images.

    So equal scores keep the order of the images.
    """
    annotations = [
        {"image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": int(crowd)}
        for image, label, box, crowd in objects.of_labels(labels)
    ]
    if not annotations:
        return np.full((10, 101, len(labels), len(COCO_AREAS)), -1.0)
    for identifier, annotation in enumerate(annotations, start=1):
        annotation["id"] = identifier  # 0 would mean "unmatched"
    results = [
        {"image_id": image, "category_id": label, "bbox": box, "score": score, "segmentation": NO_MASK}
        for image, label, box, score in detections.of_labels(labels)
    ]
    images = [{"id": number, "height": scene.size[0], "width": scene.size[1]} for number, scene in enumerate(scenes)]
    categories = [{"id": label, "name": str(label)} for label in labels]
    ground_truth = COCO(
        {"images": images, "annotations": annotations, "categories": categories}, print_function=_log.debug
    )
    evaluation = COCOeval_faster(ground_truth, ground_truth.loadRes(results), iouType="bbox", print_function=_log.debug)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    precision: Floats = np.asarray(evaluation.eval["precision"], dtype=np.float64)[..., -1]
    assert precision.shape == (10, 101, len(labels), len(COCO_AREAS)), precision.shape
    return precision


def detections_on_difficult(scene: Scene) -> Flags:
    """(D,) true where the box of the same class with the largest IoU is difficult, at an IoU of 0.5 or more."""
    difficult = scene.difficult & ~scene.crowd
    if not difficult.any() or len(scene.boxes) == 0:
        return np.zeros(len(scene.boxes), dtype=np.bool_)
    candidates = scene.required | difficult
    same_class = scene.labels[:, None] == scene.true_labels[None, candidates]
    iou = np.where(same_class, box_iou(scene.boxes, scene.true_boxes[candidates]), 0.0)  # (D, G)
    mask: Flags = (iou.max(axis=1) >= VOC_IOU) & difficult[candidates][iou.argmax(axis=1)]
    return mask


def _mean_precision(precision: Floats) -> float | None:
    defined = precision[precision > -1]  # -1: no required object of that class and size
    return float(defined.mean()) if defined.size else None


def _floats(values: npt.NDArray[Any]) -> Floats:
    return values.astype(np.float64)
