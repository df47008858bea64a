"""Precision and recall over the score threshold, the threshold with the best F1, and the confusion matrix.

Letters: D detections, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from defeat.evaluation.average_precision import Floats, Numbers, Scene, box_iou, detections_on_difficult
from defeat.evaluation.matching import ClassMatches

IOU = 0.5  # from which a detection counts as that of an object


@dataclass(frozen=True)
class Curve:
    """Precision and recall of a class at IoU 0.5, if only detections with at least a score are kept.

    Attributes:
        scores: (D,) descending thresholds: the scores of the detections, each once.
        precision: (D,) share of the kept detections that are correct, 0..1.
        recall: (D,) share of the objects that are found, 0..1.
    """

    scores: Floats
    precision: Floats
    recall: Floats


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and what it gives: `precision`, `recall` and `f1`, their harmonic mean, 0..1."""

    threshold: float
    precision: float
    recall: float
    f1: float


def precision_recall(matches: ClassMatches) -> Curve:
    """The curve of a class from its matched detections; empty without objects."""
    counted = matches.counted[0]
    objects = int(matches.objects.sum())
    if not objects:
        return Curve(np.zeros(0), np.zeros(0), np.zeros(0))
    scores, correct = matches.scores[counted], matches.correct[0][counted]
    found, kept = np.cumsum(correct), np.arange(1, len(scores) + 1)
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.zeros(0, dtype=np.int64)
    return Curve(scores[last], found[last] / kept[last], found[last] / objects)


def best_f1(curve: Curve) -> OperatingPoint | None:
    """The threshold with the highest F1; None where there is no correct detection.

    The threshold lies half-way to the next lower score, so that rounding of scores does not matter.
    """
    total = curve.precision + curve.recall
    f1 = np.divide(2 * curve.precision * curve.recall, total, out=np.zeros_like(total), where=total > 0)
    if not len(f1) or not f1.any():
        return None
    best = int(f1.argmax())
    lower = curve.scores[best + 1] if best + 1 < len(curve.scores) else 0.0
    threshold = float((curve.scores[best] + lower) / 2)
    return OperatingPoint(threshold, float(curve.precision[best]), float(curve.recall[best]), float(f1[best]))


def best_points(matches: Sequence[ClassMatches]) -> list[OperatingPoint | None]:
    """The threshold with the highest F1 of each class."""
    return [best_f1(precision_recall(of_class)) for of_class in matches]


def confusion_matrix(scenes: Sequence[Scene], thresholds: Floats) -> Numbers:
    """Count what the objects of each class are detected as, (K+1, K+1).

    Rows are annotated classes, columns detected ones; the last row counts detections without an object, the last column
    objects without a detection. In each image, detections are processed in order of descending score; each takes the
    free object with the largest IoU of at least 0.5, whatever its class.

    Args:
        scenes: the images.
        thresholds: (K,) least score of a detection of each class.
    """
    classes = len(thresholds)
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for scene in scenes:
        kept = ~detections_on_difficult(scene) & (scene.scores >= thresholds[scene.labels])
        order = np.flatnonzero(kept)[np.argsort(-scene.scores[kept], kind="stable")]
        objects = np.flatnonzero(scene.required)
        free = np.ones(len(objects), dtype=np.bool_)
        iou = box_iou(scene.boxes[order], scene.true_boxes[objects])  # (kept, objects)
        for row, detection in enumerate(order):
            overlap = np.where(free, iou[row], 0.0)
            best = int(overlap.argmax()) if len(objects) else -1
            if best >= 0 and overlap[best] >= IOU:
                free[best] = False
                counts[scene.true_labels[objects[best]], scene.labels[detection]] += 1
            else:
                counts[classes, scene.labels[detection]] += 1
        np.add.at(counts[:, classes], scene.true_labels[objects[free]], 1)
    return counts
