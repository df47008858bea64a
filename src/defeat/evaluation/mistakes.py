"""What kinds of mistakes a detector makes, and how much AP each kind costs.

The kinds are those of TIDE (Bolya et al., ECCV 2020, section 2.2), at an IoU of 0.5 for what is found and 0.1 for what
is background. The cost of a kind is the AP50 that the detector would gain if exactly these mistakes were put right:

- classification: on an object, with the wrong class. Put right by the right class.
- localisation: the right class, at an IoU between 0.1 and 0.5. Put right by the object's box.
- both: the wrong class at such an IoU; duplicate: a second detection of a found object; background: on nothing. Put
  right by leaving the detection out.
- missed: an object that no other correction would find. Put right by not asking for it.

Letters: D detections and G objects of the whole split, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from defeat.evaluation.average_precision import Flags, Floats, Numbers, Scene, box_iou, on_difficult
from defeat.evaluation.matching import area_under_curve, assign

FOUND, NEAR = 0.5, 0.1
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CORRECT, COUNTS_NOT = -1, -2  # beside the index of a kind
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))


@dataclass(frozen=True)
class Mistakes:
    """The mistakes of a detector on a split.

    Attributes:
        ap50: AP at IoU 0.5, 0..100; None when there is no object.
        cost: AP50 points that each kind of mistake costs, 0 or more.
        count: number of mistakes of each kind.
    """

    ap50: float | None
    cost: dict[str, float]
    count: dict[str, int]


@dataclass(frozen=True)
class _Judged:
    """Every detection of a split with its kind, and every object.

    Attributes:
        scores: (D,).
        labels: (D,) class of each detection.
        kinds: (D,) index of its kind, or `CORRECT`, or `COUNTS_NOT`.
        objects: (D,) index of the object that a classification or localisation mistake is about, else -1.
        true_labels: (G,) class of each object.
        found: (G,) whether an object was found.
    """

    scores: Floats
    labels: Numbers
    kinds: Numbers
    objects: Numbers
    true_labels: Numbers
    found: Flags


def find_mistakes(scenes: Sequence[Scene], classes: int) -> Mistakes:
    """Sort the mistakes on a split by their kinds.

    Args:
        scenes: the images with detections and annotations.
        classes: K.
    """
    judged = _joined([_judge(scene) for scene in scenes])
    right = judged.kinds == CORRECT
    # Of several detections that could be corrected to find an object, the one with the highest score is.
    fixable = np.isin(judged.kinds, (CLASSIFICATION, LOCALISATION)) & ~judged.found[judged.objects]
    order = np.flatnonzero(fixable)[np.argsort(-judged.scores[fixable], kind="stable")]
    _, first = np.unique(judged.objects[order], return_index=True)
    best = np.zeros_like(right)
    best[order[first]] = True
    missed = ~judged.found
    missed[judged.objects[fixable]] = False

    base = _ap50(judged, right, judged.kinds != COUNTS_NOT, classes)
    cost = {}
    for kind, name in enumerate(KINDS):
        mine = judged.kinds == kind
        corrected = mine & best
        labels = judged.labels.copy()
        if kind == CLASSIFICATION:
            labels[corrected] = judged.true_labels[judged.objects[corrected]]
        asked = replace(
            judged, labels=labels, true_labels=judged.true_labels[~missed] if kind == MISSED else judged.true_labels
        )
        after = _ap50(asked, right | corrected, (judged.kinds != COUNTS_NOT) & (~mine | corrected), classes)
        cost[name] = 0.0 if after is None or base is None else max(0.0, after - base)
    count = {name: int((judged.kinds == kind).sum()) for kind, name in enumerate(KINDS)}
    return Mistakes(base, cost, count | {"missed": int(missed.sum())})


def _judge(scene: Scene) -> _Judged:
    """The detections of one image, best first."""
    kept = np.flatnonzero(~on_difficult(scene))
    kept = kept[np.argsort(-scene.scores[kept], kind="stable")]
    boxes, labels = scene.boxes[kept], scene.labels[kept]
    objects, true_labels = scene.true_boxes[scene.demanded], scene.true_labels[scene.demanded]
    taken, on_crowd = np.full(len(kept), -1), np.zeros(len(kept), dtype=np.bool_)
    for label in np.unique(labels):
        mine, asked = np.flatnonzero(labels == label), np.flatnonzero(true_labels == label)
        crowds = scene.true_boxes[scene.crowd & (scene.true_labels == label)]
        found, crowd = assign(boxes[mine], objects[asked], crowds, np.array([FOUND]))
        hit = found[0] >= 0
        taken[mine[hit]] = asked[found[0][hit]]
        on_crowd[mine] = crowd[0]
    kinds, about = _kinds(boxes, labels, objects, true_labels)
    kinds[taken >= 0], kinds[on_crowd] = CORRECT, COUNTS_NOT
    about[(taken >= 0) | on_crowd] = -1
    was_found = np.zeros(len(objects), dtype=np.bool_)
    was_found[taken[taken >= 0]] = True
    return _Judged(scene.scores[kept], labels, kinds, about, true_labels, was_found)


def _kinds(boxes: Floats, labels: Numbers, objects: Floats, true_labels: Numbers) -> tuple[Numbers, Numbers]:
    """The kind of each detection, as if it were a mistake, and the object that it is about: (D,), (D,)."""
    kinds = np.full(len(boxes), BACKGROUND, dtype=np.int64)
    about = np.full(len(boxes), -1, dtype=np.int64)
    if not len(objects) or not len(boxes):
        return kinds, about
    iou, same = box_iou(boxes, objects), labels[:, None] == true_labels[None, :]
    own, other = np.where(same, iou, 0.0), np.where(same, 0.0, iou)
    kinds[iou.max(axis=1) > NEAR] = BOTH
    kinds[own.max(axis=1) >= FOUND] = DUPLICATE
    misnamed = other.max(axis=1) >= FOUND
    kinds[misnamed], about[misnamed] = CLASSIFICATION, other.argmax(axis=1)[misnamed]
    misplaced = (own.max(axis=1) >= NEAR) & (own.max(axis=1) <= FOUND)
    kinds[misplaced], about[misplaced] = LOCALISATION, own.argmax(axis=1)[misplaced]
    return kinds, about


def _joined(judged: Sequence[_Judged]) -> _Judged:
    """All images as one, objects numbered through."""
    starts = np.cumsum([0, *(len(one.true_labels) for one in judged)])
    objects = [np.where(one.objects >= 0, one.objects + start, -1) for one, start in zip(judged, starts, strict=False)]

    def join(parts: Sequence[npt.NDArray[Any]], kind: type) -> npt.NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype=kind), *parts])

    return _Judged(
        scores=join([one.scores for one in judged], np.float64),
        labels=join([one.labels for one in judged], np.int64),
        kinds=join([one.kinds for one in judged], np.int64),
        objects=join(objects, np.int64),
        true_labels=join([one.true_labels for one in judged], np.int64),
        found=join([one.found for one in judged], np.bool_),
    )


def _ap50(judged: _Judged, correct: Flags, counted: Flags, classes: int) -> float | None:
    """Mean over the classes that have an object, in percent; `counted` are the detections that are there."""
    precision = []
    for label in range(classes):
        asked = (judged.true_labels == label).sum()
        if not asked:
            continue
        mine = np.flatnonzero(counted & (judged.labels == label))
        mine = mine[np.argsort(-judged.scores[mine], kind="stable")]
        precision.append(area_under_curve(np.ones((1, len(mine))), correct[mine], np.array([float(asked)]))[0])
    return 100 * float(np.mean(precision)) if precision else None
