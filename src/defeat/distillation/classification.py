"""Imitation of class predictions: which predictions meet, which of them count, and how they are compared."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from defeat.distillation.align import rescale_boxes
from defeat.distillation.class_map import ClassMap, listed
from defeat.distillation.losses import (
    balanced_cross_entropy,
    masked_mean,
    sigmoid_cross_entropy,
    sigmoid_divergence,
    softmax_cross_entropy,
    softmax_divergence,
)
from defeat.errors import InputError, unknown_name
from defeat.types import DetectorInfo, DetectorOutput

PROPOSALS = ("teacher", "student", "both")
COMPARISONS = ("kl", "bce", "balanced")
AVERAGES = ("all", "group")


@dataclass(frozen=True)
class Predictions:
    """Class logits of student and teacher for the same boxes or anchors, of the K classes that both know.

    Attributes:
        student: (R, K+1) softmax logits, background last, or (R, K) sigmoid logits.
        teacher: the same of the teacher.
        labels: (R,) int64 in 0..K-1, K for background, -1 where undecided or of a class that only the student knows.
        classes: K.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    classes: int

    @property
    def softmax(self) -> bool:
        """Whether the logits hold a background column."""
        return self.student.shape[1] > self.classes

    def teacher_labels(self) -> Tensor:
        """(R,) what the teacher takes each for; by sigmoid, background is where no class reaches one half."""
        score, label = self.teacher.max(dim=1)
        return label if self.softmax else torch.where(score > 0, label, self.classes)


# Which predictions a term is averaged over: (R,) bool.
GROUPS: dict[str, Callable[[Predictions], Tensor]] = {
    "positive": lambda one: (one.labels >= 0) & (one.labels < one.classes),
    "negative": lambda one: one.labels == one.classes,
    "all": lambda one: one.labels >= 0,
    "teacher_correct": lambda one: one.labels == one.teacher_labels(),
    "positive_teacher_correct": lambda one: (one.labels == one.teacher_labels()) & (one.labels < one.classes),
}


@dataclass(frozen=True)
class ClassTerm:
    """One term of classification.

    Attributes:
        weight: weight of the term; 0 leaves it out.
        group: which predictions it is averaged over, one of `GROUPS`.
        comparison: `kl`, the divergence KL(teacher || student); `bce`, the published code's binary cross entropy; or
            `balanced`, for sigmoid predictions BCKD's cross entropy weighted by how far apart the scores are (softmax
            predictions keep the divergence).
        temperature: of the divergence, above 0.
        average: what the sum over the group is divided by: `group`, its own number, as published; or `all`, for softmax
            predictions the number of all that are decided, as in the detector's own loss. Of sampled proposals few are
            positive, and a mean over them alone pulls on each several times as hard as that loss. Sigmoid predictions
            are always averaged over the group: their detector's loss is divided by the number of positives.

    Raises:
        InputError: the group, the comparison or the average is unknown, or the temperature not valid.
    """

    weight: float
    group: str
    comparison: str = "kl"
    temperature: float = 1.0
    average: str = "group"

    def __post_init__(self) -> None:
        """Refuse what is not valid."""
        if self.group not in GROUPS:
            raise unknown_name("group of predictions", self.group, GROUPS)
        if self.comparison not in COMPARISONS:
            raise unknown_name("comparison", self.comparison, COMPARISONS)
        if self.average not in AVERAGES:
            raise unknown_name("average", self.average, AVERAGES)
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"Temperatures must be above 0 and finite, not {self.temperature}.")

    def __call__(self, predictions: Predictions) -> Tensor:
        """The weighted mean; zero, with a gradient of zero, where the group is empty."""
        found, wanted = predictions.student, predictions.teacher
        if self.comparison == "balanced" and not predictions.softmax:
            values = balanced_cross_entropy(found, wanted)
        elif self.comparison != "bce":
            divergence = softmax_divergence if predictions.softmax else sigmoid_divergence
            values = divergence(found, wanted, self.temperature)
        else:
            cross_entropy = softmax_cross_entropy if predictions.softmax else sigmoid_cross_entropy
            values = cross_entropy(found, wanted)
        over = GROUPS["all"](predictions) if self.average == "all" and predictions.softmax else None
        return self.weight * masked_mean(values, GROUPS[self.group](predictions), over)


class ClassImitation:
    """Lets a student's class predictions follow a teacher's where the two can be compared.

    Two-stage detectors score the same proposals: the teacher's (the default: it proposes well from the first step on),
    the student's, or both. Of one-stage detectors with the same anchors every anchor counts; each class of theirs is a
    yes or no of its own, so the divergence is that of K Bernoulli variables. The split into positives and negatives
    matters even more there: an image has a hundred thousand negatives to a handful of positives, and a common mean
    would be the negatives' alone (Guo et al., CVPR 2021, section 3.3).

    The two are compared on the classes that both know and the background (see `ClassMap`); a box of a class that the
    teacher does not know counts neither as positive nor as negative.

    However far apart the two are, the gradient of a divergence stays bounded: for each logit, T (q - p) over what the
    term is divided by, q and p the probabilities of student and teacher at temperature T. Averaged over all proposals,
    a term of weight w pulls on each at most w T times as hard as the detector's own loss.

    Args:
        student: what is known about the student.
        teacher: what is known about the teacher.
        terms: the terms by name.
        proposals: whose proposals are scored: `teacher`, `student` or `both`.

    Attributes:
        field: `proposals` or `dense`, what is compared; None where nothing is.
        reason: why nothing can be compared; empty where something is, or nothing is asked for.

    Raises:
        InputError: `proposals` is unknown, or no class is shared.
    """

    def __init__(
        self, student: DetectorInfo, teacher: DetectorInfo, terms: dict[str, ClassTerm], proposals: str = "teacher"
    ) -> None:
        if proposals not in PROPOSALS:
            raise unknown_name("choice of proposals", proposals, PROPOSALS)
        self.terms = {name: term for name, term in terms.items() if term.weight > 0}
        self.proposals = proposals
        self.classes = ClassMap(student.classes, teacher.classes)
        if self.terms and not self.classes.pairs:
            raise InputError(
                f"Class predictions can't be compared: the teacher knows none of the student's classes "
                f"({listed(student.classes)}). Pair the classes with --class-map, or give these terms a weight of 0."
            )
        self.field, self.reason = _comparable(student, teacher) if self.terms else (None, "")

    def __call__(self, student: DetectorOutput, teacher: DetectorOutput) -> dict[str, Tensor]:
        """Compute the weighted terms `head_NAME`; with `both`, also `head_NAME_student` on the student's boxes."""
        losses: dict[str, Tensor] = {}
        if self.field is None:
            return losses
        for suffix, predictions in self._predictions(student, teacher).items():
            losses |= {f"head_{name}{suffix}": term(predictions) for name, term in self.terms.items()}
        return losses

    def _predictions(self, student: DetectorOutput, teacher: DetectorOutput) -> dict[str, Predictions]:
        if self.field == "dense":
            assert student.dense is not None
            assert teacher.dense is not None
            found, wanted = (one.logits.flatten(0, 1) for one in (student.dense, teacher.dense))
            return {"": self._shared(found, wanted, student.dense.labels.flatten())}
        scored = {}
        if self.proposals != "student":
            assert teacher.proposals is not None
            assert student.score_proposals is not None
            found = student.score_proposals(rescale_boxes(teacher.proposals.boxes, 1 / teacher.scale))
            scored[""] = self._shared(found, teacher.proposals.logits, teacher.proposals.labels)
        if self.proposals != "teacher":
            assert student.proposals is not None
            assert teacher.score_proposals is not None
            wanted = teacher.score_proposals(rescale_boxes(student.proposals.boxes, teacher.scale))
            own = self._shared(student.proposals.logits, wanted, student.proposals.labels)
            scored["_student" if scored else ""] = own
        return scored

    def _shared(self, found: Tensor, wanted: Tensor, labels: Tensor) -> Predictions:
        """What both say about the classes that both know."""
        classes = self.classes
        return Predictions(
            classes.student_logits(found.float()),
            classes.teacher_logits(wanted.float()),
            classes.labels(labels),
            len(classes.pairs),
        )


def _comparable(student: DetectorInfo, teacher: DetectorInfo) -> tuple[str | None, str]:
    offered = student.offers & teacher.offers
    if "proposals" in offered:
        return "proposals", ""
    if "dense" in offered and _grid(student) == _grid(teacher):
        return "dense", ""
    return None, "they share neither proposals nor anchors on images of one size"


def _grid(info: DetectorInfo) -> tuple[str, int, int]:
    """What decides where anchors are: two detectors with the same grid have the same anchors in every batch."""
    return info.anchors, info.size, info.max_size
