"""Which detection found which object: COCO's assignment, kept for each image so that images can be counted anew.

The assignment of one image does not depend on any other, so the average precision of any choice of images, each counted
any number of times, follows from one pass over them. The figures equal those of `coco_average_precision`.

Letters: D detections and G ground-truth boxes, I images, K classes, T IoU thresholds, S samples of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from defeat.evaluation.average_precision import MAX_DETECTIONS, Flags, Floats, Numbers, Scene, box_iou, on_difficult

IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
NUMBERS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class over all images, best score first, equal scores in the order of the images.

    Attributes:
        image: (D,) index of the image that each detection belongs to, 0..I-1.
        scores: (D,) in 0..1.
        correct: (T, D) true where the detection found an object.
        counted: (T, D) false where the detection lies on a crowd and counts neither way.
        objects: (I,) number of demanded objects of each image.
    """

    image: Numbers
    scores: Floats
    correct: Flags
    counted: Flags
    objects: Numbers


def match_scenes(scenes: Sequence[Scene], classes: int, thresholds: Floats = IOU_THRESHOLDS) -> list[ClassMatches]:
    """Assign detections to objects, class by class.

    In each image the best 100 detections of a class are visited from the highest score on; each takes the free object
    with which its IoU is largest and at least the threshold, or else may lie on a crowd. Detections on difficult
    objects are left out, as in `coco_average_precision`.

    Args:
        scenes: the images.
        classes: K.
        thresholds: (T,) IoU thresholds.
    """
    kept = [~on_difficult(scene) for scene in scenes]
    return [_match_class(scenes, kept, label, thresholds) for label in range(classes)]


def _match_class(scenes: Sequence[Scene], kept: Sequence[Flags], label: int, thresholds: Floats) -> ClassMatches:
    image, scores = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    correct = [np.zeros((len(thresholds), 0), dtype=np.bool_)]
    counted = [np.zeros((len(thresholds), 0), dtype=np.bool_)]
    objects = np.zeros(len(scenes), dtype=np.int64)
    for number, scene in enumerate(scenes):
        mine = np.flatnonzero((scene.labels == label) & kept[number])
        mine = mine[np.argsort(-scene.scores[mine], kind="stable")][:MAX_DETECTIONS]
        of_class = scene.true_labels == label
        objects[number] = (of_class & scene.demanded).sum()
        found, lies_on_crowd = assign(
            scene.boxes[mine],
            scene.true_boxes[of_class & scene.demanded],
            scene.true_boxes[of_class & scene.crowd],
            thresholds,
        )
        image.append(np.full(len(mine), number))
        scores.append(scene.scores[mine])
        correct.append(found >= 0)
        counted.append(~lies_on_crowd)
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
        objects: (G, 4) demanded objects; each can be found once.
        crowds: (C, 4) crowds; any number of detections may lie on one, and the overlap is counted over the detection.
        thresholds: (T,) IoU thresholds.

    Returns:
        (T, D) index of the object that each detection found, -1 for none; (T, D) whether it lies on a crowd instead.
    """
    found = np.full((len(thresholds), len(boxes)), -1, dtype=np.int64)
    if len(objects) and len(boxes):
        iou = box_iou(boxes, objects)  # (D, G)
        free = np.ones((len(thresholds), len(objects)), dtype=np.bool_)
        for place in np.flatnonzero(iou.max(axis=1) >= thresholds.min()):
            usable = free & (iou[place] >= thresholds[:, None])  # (T, G)
            # Of equal IoUs the last object wins, as in COCO's tools.
            best = len(objects) - 1 - np.where(usable, iou[place], -1.0)[:, ::-1].argmax(axis=1)
            levels = np.flatnonzero(usable.any(axis=1))
            found[levels, place] = best[levels]
            free[levels, best[levels]] = False
    on_crowd = _share_inside(boxes, crowds)[None, :] >= thresholds[:, None]
    return found, on_crowd & (found < 0)


def _share_inside(boxes: Floats, crowds: Floats) -> Floats:
    """The largest part of each (D, 4) box that lies inside one of the crowds: (D,) in 0..1."""
    if not len(crowds) or not len(boxes):
        return np.zeros(len(boxes))
    sides = np.minimum(boxes[:, None, 2:], crowds[None, :, 2:]) - np.maximum(boxes[:, None, :2], crowds[None, :, :2])
    inside = np.clip(sides, 0, None).prod(axis=2).max(axis=1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    share: Floats = np.divide(inside, area, out=np.zeros_like(inside), where=area > 0)
    return share


def average_precision_of_samples(matches: Sequence[ClassMatches], weights: npt.NDArray[np.integer]) -> Floats:
    """AP (over T thresholds) of each class on samples of the images, e.g. those of a bootstrap.

    It equals a full evaluation of a data set that holds each image as many times as its weight says. (Where detections
    of one class in one image have equal scores, that figure depends on their order, and copies of an image may differ.)

    Args:
        matches: one a class.
        weights: (S, I) how many times each sample holds each image, 0 or more.

    Returns:
        (S, K) in 0..1; NaN where a sample holds no object of the class.
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
    times = weights[:, match.image].astype(np.float64)  # (S, D) how often each detection occurs
    levels = [
        area_under_curve(times if counted.all() else times[:, counted], correct[counted], objects)
        for correct, counted in zip(match.correct, match.counted, strict=True)
    ]
    precision: Floats = np.mean(levels, axis=0)
    return np.where(objects > 0, precision, np.nan)


def area_under_curve(times: Floats, correct: Flags, objects: Floats) -> Floats:
    """Mean of the monotonous precision at 101 recalls: (S,).

    Precision only rises at a correct detection, so the curve is needed there alone: H hits.
    """
    hits = np.flatnonzero(correct)
    if len(hits) == 0:
        return np.zeros(len(times))
    starts = np.concatenate([[0], hits[:-1] + 1])
    detections = np.add.reduceat(times[:, : hits[-1] + 1], starts, axis=1).cumsum(axis=1)  # (S, H) down to each hit
    true_positives = times[:, hits].cumsum(axis=1)
    precision = np.divide(true_positives, detections, out=np.zeros_like(detections), where=detections > 0)
    monotonous = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true_positives / np.maximum(objects, 1)[:, None]
    reached = np.searchsorted(RECALLS, recall.ravel(), side="right").reshape(recall.shape)  # of the 101 recalls
    area: Floats = (monotonous * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
    return area


def average_precision_of_images(matches: Sequence[ClassMatches]) -> Floats:
    """AP of each image as if it were a data set of its own, averaged over the classes in it.

    Returns:
        (I,) in 0..1; NaN for an image without a demanded object.
    """
    images = len(matches[0].objects) if matches else 0
    total, classes = np.zeros(images), np.zeros(images)
    for match in matches:
        grouped = np.argsort(match.image, kind="stable")  # keeps the order of the scores within an image
        ends = np.searchsorted(match.image[grouped], np.arange(images), side="right")
        for image in np.flatnonzero(match.objects):
            mine = grouped[ends[image - 1] if image else 0 : ends[image]]
            objects = match.objects[[image]].astype(np.float64)
            areas = [
                area_under_curve(np.ones((1, int(counted.sum()))), correct[counted], objects)[0]
                for correct, counted in zip(match.correct[:, mine], match.counted[:, mine], strict=True)
            ]
            total[image] += np.mean(areas)
            classes[image] += 1
    mean: Floats = np.divide(total, classes, out=np.full(images, np.nan), where=classes > 0)
    return mean
