"""COCO's assignment of detections to objects, stored per image so that AP can be computed for samples of the images.

The assignment of an image does not depend on other images, so the AP of any sample of images, with any multiplicities,
follows from one pass over them. The values equal those of `coco_average_precision`.

Letters: D detections and G ground-truth boxes, I images, K classes, T IoU thresholds, S samples of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from defeat.evaluation.average_precision import (
    MAX_DETECTIONS,
    Flags,
    Floats,
    Numbers,
    Scene,
    box_iou,
    detections_on_difficult,
)

IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
NUMBERS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class over all images, best score first, equal scores in the order of the images.

    Attributes:
        image: (D,) index of the image that each detection belongs to, 0..I-1.
        scores: (D,) in 0..1.
        correct: (T, D) true where the detection is assigned to an object.
        counted: (T, D) false where the detection lies on a crowd and is ignored.
        objects: (I,) number of required objects of each image.
    """

    image: Numbers
    scores: Floats
    correct: Flags
    counted: Flags
    objects: Numbers


def match_scenes(scenes: Sequence[Scene], classes: int, thresholds: Floats = IOU_THRESHOLDS) -> list[ClassMatches]:
    """Assign detections to objects, class by class.

    In each image, the best 100 detections of a class are processed in order of descending score; each is assigned to
    the unassigned object with the largest IoU, if that is at least the threshold, or else may lie on a crowd.
    Detections on difficult objects are left out, as in `coco_average_precision`.

    Args:
        scenes: the images.
        classes: K.
        thresholds: (T,) IoU thresholds.
    """
    included = [~detections_on_difficult(scene) for scene in scenes]
    return [_match_class(scenes, included, label, thresholds) for label in range(classes)]


def _match_class(scenes: Sequence[Scene], included: Sequence[Flags], label: int, thresholds: Floats) -> ClassMatches:
    image, scores = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    correct = [np.zeros((len(thresholds), 0), dtype=np.bool_)]
    counted = [np.zeros((len(thresholds), 0), dtype=np.bool_)]
    objects = np.zeros(len(scenes), dtype=np.int64)
    for number, scene in enumerate(scenes):
        detections = np.flatnonzero((scene.labels == label) & included[number])
        detections = detections[np.argsort(-scene.scores[detections], kind="stable")][:MAX_DETECTIONS]
        of_class = scene.true_labels == label
        objects[number] = (of_class & scene.required).sum()
        assigned, on_crowd = assign(
            scene.boxes[detections],
            scene.true_boxes[of_class & scene.required],
            scene.true_boxes[of_class & scene.crowd],
            thresholds,
        )
        image.append(np.full(len(detections), number))
        scores.append(scene.scores[detections])
        correct.append(assigned >= 0)
        counted.append(~on_crowd)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return ClassMatches(
        np.concatenate(image)[order],
        np.concatenate(scores)[order],
        np.concatenate(correct, axis=1)[:, order],
        np.concatenate(counted, axis=1)[:, order],
        objects,
    )


def assign(boxes: Floats, objects: Floats, crowds: Floats, thresholds: Floats) -> tuple[npt.NDArray[np.int64], Flags]:
    """Assign detections of one class and image to its objects.

    Args:
        boxes: (D, 4) detections, best first.
        objects: (G, 4) required objects; each can be assigned once.
        crowds: (C, 4) crowds; any number of detections may lie on one, and the intersection is divided by the
            detection's area.
        thresholds: (T,) IoU thresholds.

    Returns:
        (T, D) index of the object assigned to each detection, -1 for none; (T, D) whether it lies on a crowd instead.
    """
    assigned = np.full((len(thresholds), len(boxes)), -1, dtype=np.int64)
    if len(objects) and len(boxes):
        iou = box_iou(boxes, objects)  # (D, G)
        free = np.ones((len(thresholds), len(objects)), dtype=np.bool_)
        for index in np.flatnonzero(iou.max(axis=1) >= thresholds.min()):
            candidates = free & (iou[index] >= thresholds[:, None])  # (T, G)
            # Of equal IoUs the last object is chosen, as in COCO's tools.
            best = len(objects) - 1 - np.where(candidates, iou[index], -1.0)[:, ::-1].argmax(axis=1)
            matched = np.flatnonzero(candidates.any(axis=1))  # indices of thresholds
            assigned[matched, index] = best[matched]
            free[matched, best[matched]] = False
    on_crowd = _fraction_inside(boxes, crowds)[None, :] >= thresholds[:, None]
    return assigned, on_crowd & (assigned < 0)


def _fraction_inside(boxes: Floats, crowds: Floats) -> Floats:
    """The largest fraction of each (D, 4) box inside one of the crowds: (D,) in 0..1."""
    if not len(crowds) or not len(boxes):
        return np.zeros(len(boxes))
    sides = np.minimum(boxes[:, None, 2:], crowds[None, :, 2:]) - np.maximum(boxes[:, None, :2], crowds[None, :, :2])
    inside = np.clip(sides, 0, None).prod(axis=2).max(axis=1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    fraction: Floats = np.divide(inside, area, out=np.zeros_like(inside), where=area > 0)
    return fraction


def average_precision_of_samples(matches: Sequence[ClassMatches], weights: npt.NDArray[np.integer]) -> Floats:
    """AP (over T thresholds) of each class on samples of the images, e.g. those of a bootstrap.

    It equals a full evaluation of a data set that contains each image as many times as its weight says. (Where
    detections of one class in one image have equal scores, that AP depends on their order, and copies of an image may
    differ.)

    Args:
        matches: the matches of each class.
        weights: (S, I) how many times each sample contains each image, 0 or more.

    Returns:
        (S, K) in 0..1; NaN where a sample contains no object of the class.
    """
    result = np.full((len(weights), len(matches)), np.nan)
    for label, match in enumerate(matches):
        rows = max(1, NUMBERS_AT_ONCE // max(1, len(match.image)))
        for start in range(0, len(weights), rows):
            result[start : start + rows, label] = _average_precision(match, weights[start : start + rows])
    return result


def _average_precision(match: ClassMatches, weights: npt.NDArray[np.integer]) -> Floats:
    """AP of one class on each sample: (S,)."""
    objects = (weights * match.objects).sum(axis=1).astype(np.float64)  # (S,)
    counts = weights[:, match.image].astype(np.float64)  # (S, D) how often each detection occurs
    per_threshold = [
        area_under_curve(counts if counted.all() else counts[:, counted], correct[counted], objects)
        for correct, counted in zip(match.correct, match.counted, strict=True)
    ]
    precision: Floats = np.mean(per_threshold, axis=0)
    return np.where(objects > 0, precision, np.nan)


def area_under_curve(counts: Floats, correct: Flags, objects: Floats) -> Floats:
    """Mean of the monotonic precision at 101 recalls: (S,).

    Args:
        counts: (S, D) how often each detection occurs in each sample, best score first.
        correct: (D,) the true positives.
        objects: (S,) number of required objects.
    """
    hits = np.flatnonzero(correct)  # (H,) precision only rises at a hit, so the curve is computed only there
    if len(hits) == 0:
        return np.zeros(len(counts))
    starts = np.concatenate([[0], hits[:-1] + 1])
    detections = np.add.reduceat(counts[:, : hits[-1] + 1], starts, axis=1).cumsum(axis=1)  # (S, H) down to each hit
    true_positives = counts[:, hits].cumsum(axis=1)
    precision = np.divide(true_positives, detections, out=np.zeros_like(detections), where=detections > 0)
    monotonic = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true_positives / np.maximum(objects, 1)[:, None]
    reached = np.searchsorted(RECALLS, recall.ravel(), side="right").reshape(recall.shape)  # of the 101 recalls
    area: Floats = (monotonic * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
    return area


def average_precision_of_images(matches: Sequence[ClassMatches]) -> Floats:
    """AP of each image by itself, averaged over the classes in it.

    Returns:
        (I,) in 0..1; NaN for an image without a required object.
    """
    images = len(matches[0].objects) if matches else 0
    total, classes = np.zeros(images), np.zeros(images)
    for match in matches:
        grouped = np.argsort(match.image, kind="stable")  # keeps the order of the scores within an image
        ends = np.searchsorted(match.image[grouped], np.arange(images), side="right")
        for image in np.flatnonzero(match.objects):
            detections = grouped[ends[image - 1] if image else 0 : ends[image]]
            objects = match.objects[[image]].astype(np.float64)
            areas = [
                area_under_curve(np.ones((1, int(counted.sum()))), correct[counted], objects)[0]
                for correct, counted in zip(match.correct[:, detections], match.counted[:, detections], strict=True)
            ]
            total[image] += np.mean(areas)
            classes[image] += 1
    mean: Floats = np.divide(total, classes, out=np.full(images, np.nan), where=classes > 0)
    return mean
