"""Error types of a detector, and how much AP each of them costs.

The error types are those of TIDE (Bolya et al., ECCV 2020, section 2.2), with a foreground IoU threshold of 0.5 and a
background IoU threshold of 0.1. The cost of a type is the AP50 that the detector would gain if only these errors were
corrected:

- classification: on an object, with the wrong class. Corrected by setting the class.
- localisation: the right class, at an IoU between 0.1 and 0.5. Corrected by setting the box.
- both: the wrong class at such an IoU; duplicate: a second detection of a found object; background: on no object.
  Corrected by removing the detection.
- missed: an object that no other correction would find. Corrected by removing the object.

Letters: D detections and G objects of the whole split, K classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from defeat.evaluation.average_precision import Flags, Floats, Numbers, Scene, box_iou, detections_on_difficult
from defeat.evaluation.matching import area_under_curve, assign

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CORRECT, IGNORED = -1, -2  # for detections that are no errors; other values are indices of KINDS
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))


@dataclass(frozen=True)
class Mistakes:
    """The errors of a detector on a split.

    Attributes:
        ap50: AP at IoU 0.5, 0..100; None without objects.
        cost: AP50 points that each error type costs, 0 or more.
        count: number of errors of each type.
    """

    ap50: float | None
    cost: dict[str, float]
    count: dict[str, int]


@dataclass(frozen=True)
class _Classified:
    """All detections with their error types, and all objects.

    Attributes:
        scores: (D,).
        labels: (D,) class of each detection.
        kinds: (D,) index of its error type, or `CORRECT`, or `IGNORED`.
        objects: (D,) index of the object that a classification or localisation error concerns, else -1.
        true_labels: (G,) class of each object.
        found: (G,) whether an object was detected.
    """

    scores: Floats
    labels: Numbers
    kinds: Numbers
    objects: Numbers
    true_labels: Numbers
    found: Flags


def find_mistakes(scenes: Sequence[Scene], classes: int) -> Mistakes:
    """Classify the errors on a split, and compute the cost of each type.

    Args:
        scenes: the images with detections and annotations.
        classes: K.
    """
    detections = _concatenate([_classify(scene) for scene in scenes])
    correct, counted = detections.kinds == CORRECT, detections.kinds != IGNORED
    # Where several detections could be corrected to find the same object, the one with the highest score is.
    found = np.append(detections.found, False)[detections.objects]  # -1, without an object, is the last
    correctable = np.isin(detections.kinds, (CLASSIFICATION, LOCALISATION)) & ~found
    order = np.flatnonzero(correctable)[np.argsort(-detections.scores[correctable], kind="stable")]
    _, first = np.unique(detections.objects[order], return_index=True)
    best = np.zeros_like(correct)
    best[order[first]] = True
    missed = ~detections.found
    missed[detections.objects[correctable]] = False

    base = _ap50(detections, correct, counted, classes)
    cost = {}
    for kind, name in enumerate(KINDS):
        of_kind = detections.kinds == kind
        corrected = of_kind & best
        labels, true_labels = detections.labels.copy(), detections.true_labels
        if kind == CLASSIFICATION:
            labels[corrected] = true_labels[detections.objects[corrected]]
        if kind == MISSED:
            true_labels = true_labels[~missed]
        changed = replace(detections, labels=labels, true_labels=true_labels)
        after = _ap50(changed, correct | corrected, counted & (~of_kind | corrected), classes)
        cost[name] = 0.0 if after is None or base is None else max(0.0, after - base)
    count = {name: int((detections.kinds == kind).sum()) for kind, name in enumerate(KINDS)}
    return Mistakes(base, cost, count | {"missed": int(missed.sum())})


def count_errors(scene: Scene, threshold: float) -> Counter[tuple[str, int]]:
    """Count the errors in one image by error type and class.

    An undetected object counts for its own class, any other error for the detected class.

    Args:
        scene: the image with detections and annotations.
        threshold: least score of a detection, 0..1.
    """
    kept = scene.scores >= threshold
    of_image = _classify(replace(scene, boxes=scene.boxes[kept], scores=scene.scores[kept], labels=scene.labels[kept]))
    wrong = of_image.kinds >= 0
    pairs = zip(of_image.kinds[wrong], of_image.labels[wrong], strict=True)
    errors = Counter((KINDS[kind], int(label)) for kind, label in pairs)
    errors.update(("missed", int(label)) for label in of_image.true_labels[~of_image.found])
    return errors


def _classify(scene: Scene) -> _Classified:
    """Classify the detections of one image, best first."""
    included = np.flatnonzero(~detections_on_difficult(scene))
    included = included[np.argsort(-scene.scores[included], kind="stable")]
    boxes, labels = scene.boxes[included], scene.labels[included]
    objects, true_labels = scene.true_boxes[scene.required], scene.true_labels[scene.required]
    assigned, on_crowd = np.full(len(included), -1), np.zeros(len(included), dtype=np.bool_)
    for label in np.unique(labels):
        of_class, class_objects = np.flatnonzero(labels == label), np.flatnonzero(true_labels == label)
        crowds = scene.true_boxes[scene.crowd & (scene.true_labels == label)]
        matched, crowd = assign(boxes[of_class], objects[class_objects], crowds, np.array([FOREGROUND_IOU]))
        hit = matched[0] >= 0
        assigned[of_class[hit]] = class_objects[matched[0][hit]]
        on_crowd[of_class] = crowd[0]
    kinds, concerned = _error_types(boxes, labels, objects, true_labels)
    kinds[assigned >= 0], kinds[on_crowd] = CORRECT, IGNORED
    concerned[(assigned >= 0) | on_crowd] = -1
    found = np.zeros(len(objects), dtype=np.bool_)
    found[assigned[assigned >= 0]] = True
    return _Classified(scene.scores[included], labels, kinds, concerned, true_labels, found)


def _error_types(boxes: Floats, labels: Numbers, objects: Floats, true_labels: Numbers) -> tuple[Numbers, Numbers]:
    """The error type of each detection, as if it were an error, and the object that it concerns: (D,), (D,)."""
    kinds = np.full(len(boxes), BACKGROUND, dtype=np.int64)
    concerned = np.full(len(boxes), -1, dtype=np.int64)
    if not len(objects) or not len(boxes):
        return kinds, concerned
    iou, same = box_iou(boxes, objects), labels[:, None] == true_labels[None, :]
    same_class, other_class = np.where(same, iou, 0.0), np.where(same, 0.0, iou)
    kinds[iou.max(axis=1) > BACKGROUND_IOU] = BOTH
    kinds[same_class.max(axis=1) >= FOREGROUND_IOU] = DUPLICATE
    wrong_class = other_class.max(axis=1) >= FOREGROUND_IOU
    kinds[wrong_class], concerned[wrong_class] = CLASSIFICATION, other_class.argmax(axis=1)[wrong_class]
    wrong_box = (same_class.max(axis=1) >= BACKGROUND_IOU) & (same_class.max(axis=1) <= FOREGROUND_IOU)
    kinds[wrong_box], concerned[wrong_box] = LOCALISATION, same_class.argmax(axis=1)[wrong_box]
    return kinds, concerned


def _concatenate(images: Sequence[_Classified]) -> _Classified:
    """Concatenate all images, with object indices over the whole split."""
    starts = np.cumsum([0, *(len(image.true_labels) for image in images)])
    objects = [
        np.where(image.objects >= 0, image.objects + start, -1) for image, start in zip(images, starts, strict=False)
    ]

    def join(parts: Sequence[npt.NDArray[Any]], dtype: type) -> npt.NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype=dtype), *parts])

    return _Classified(
        scores=join([image.scores for image in images], np.float64),
        labels=join([image.labels for image in images], np.int64),
        kinds=join([image.kinds for image in images], np.int64),
        objects=join(objects, np.int64),
        true_labels=join([image.true_labels for image in images], np.int64),
        found=join([image.found for image in images], np.bool_),
    )


def _ap50(detections: _Classified, correct: Flags, counted: Flags, classes: int) -> float | None:
    """Mean over the classes that have an object, in percent, of the `counted` detections."""
    precision = []
    for label in range(classes):
        objects = (detections.true_labels == label).sum()
        if not objects:
            continue
        of_class = np.flatnonzero(counted & (detections.labels == label))
        of_class = of_class[np.argsort(-detections.scores[of_class], kind="stable")]
        area = area_under_curve(np.ones((1, len(of_class))), correct[of_class], np.array([float(objects)]))
        precision.append(area[0])
    return 100 * float(np.mean(precision)) if precision else None
