"""Imitation of class predictions: which predictions are compared, which of them count, and by which loss."""

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
    """Class logits of student and teacher for the same boxes or anchors, for the K classes that both know.

    Attributes:
        student: (R, K+1) softmax logits, background last, or (R, K) sigmoid logits.
        teacher: logits of the teacher, of the same shape.
        labels: (R,) int64 in 0..K-1, K for background, -1 where undecided or of a class that only the student knows.
        classes: K.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    classes: int

    @property
    def softmax(self) -> bool:
        """Whether the logits have a background column."""
        return self.student.shape[1] > self.classes

    def teacher_labels(self) -> Tensor:
        """(R,) labels predicted by the teacher; with sigmoid, background where no class reaches a score of 0.5."""
        score, label = self.teacher.max(dim=1)
        return label if self.softmax else torch.where(score > 0, label, self.classes)


# Which predictions a term is averaged over: (R,) bool.
GROUPS: dict[str, Callable[[Predictions], Tensor]] = {
    "positive": lambda predictions: (predictions.labels >= 0) & (predictions.labels < predictions.classes),
    "negative": lambda predictions: predictions.labels == predictions.classes,
    "all": lambda predictions: predictions.labels >= 0,
    "teacher_correct": lambda predictions: predictions.labels == predictions.teacher_labels(),
    "positive_teacher_correct": lambda predictions: (
        (predictions.labels == predictions.teacher_labels()) & (predictions.labels < predictions.classes)
    ),
}


@dataclass(frozen=True)
class ClassTerm:
    """A classification term.

    Attributes:
        weight: weight of the term; 0 leaves it out.
        group: which predictions it is averaged over, one of `GROUPS`.
        comparison: `kl`, the divergence KL(teacher || student); `bce`, the published code's binary cross entropy; or
            `balanced`, for sigmoid predictions BCKD's cross entropy weighted by the distance of the scores (softmax
            predictions keep the divergence).
        temperature: temperature of the divergence, above 0.
        average: what the sum over the group is divided by: `group`, the size of the group, as published; or `all`, for
            softmax predictions the number of all decided ones, as in the detector's own loss. Few sampled proposals are
            positive, and with a mean over the positives the gradient at each is several times that of the detector's
            own loss. Sigmoid predictions are always averaged over the group: the detector's own loss is divided by the
            number of positives.

    Raises:
        InputError: the group, the comparison or the average is unknown, or the temperature is not valid.
    """

    weight: float
    group: str
    comparison: str = "kl"
    temperature: float = 1.0
    average: str = "group"

    def __post_init__(self) -> None:
        """Refuse invalid values."""
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
        student_logits, teacher_logits = predictions.student, predictions.teacher
        if self.comparison == "balanced" and not predictions.softmax:
            values = balanced_cross_entropy(student_logits, teacher_logits)
        elif self.comparison != "bce":
            divergence = softmax_divergence if predictions.softmax else sigmoid_divergence
            values = divergence(student_logits, teacher_logits, self.temperature)
        else:
            cross_entropy = softmax_cross_entropy if predictions.softmax else sigmoid_cross_entropy
            values = cross_entropy(student_logits, teacher_logits)
        decided = GROUPS["all"](predictions) if self.average == "all" and predictions.softmax else None
        return self.weight * masked_mean(values, GROUPS[self.group](predictions), decided)


class ClassImitation:
    """Makes the student's class predictions follow the teacher's where the two can be compared.

    Two-stage detectors score the same proposals: the teacher's (the default: they are good from the first step), the
    student's, or both. For one-stage detectors with the same anchors, every anchor counts; their classes are
    independent, so the divergence is that of K Bernoulli variables. The split into positives and negatives matters even
    more there: an image has a hundred thousand negatives and a handful of positives, so the negatives would dominate a
    common mean (Guo et al., CVPR 2021, section 3.3).

    The two are compared on the shared classes and the background (see `ClassMap`); a box of a class that the teacher
    does not know counts neither as positive nor as negative.

    The gradient of a divergence is bounded: for each logit it is T (q - p) over the divisor of the term, where q and p
    are the probabilities of student and teacher at temperature T. Averaged over all proposals, a term of weight w has
    at most w T times the gradient of the detector's own loss at each proposal.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        terms: the terms by name.
        proposals: whose proposals are scored: `teacher`, `student` or `both`.

    Attributes:
        field: the field of `DetectorOutput` that is compared, `proposals` or `dense`; None for no comparison.
        reason: why nothing can be compared; empty where a field is compared, or there are no terms.

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
        self.field, self.reason = comparable_field(student, teacher) if self.terms else (None, "")

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
            student_logits, teacher_logits = student.dense.logits.flatten(0, 1), teacher.dense.logits.flatten(0, 1)
            return {"": self._on_shared_classes(student_logits, teacher_logits, student.dense.labels.flatten())}
        scored = {}
        if self.proposals != "student":
            assert teacher.proposals is not None
            assert student.score_proposals is not None
            logits = student.score_proposals(
                rescale_boxes(teacher.proposals.boxes, 1 / teacher.scale, 1 / teacher.stretch)
            )
            scored[""] = self._on_shared_classes(logits, teacher.proposals.logits, teacher.proposals.labels)
        if self.proposals != "teacher":
            assert student.proposals is not None
            assert teacher.score_proposals is not None
            logits = teacher.score_proposals(rescale_boxes(student.proposals.boxes, teacher.scale, teacher.stretch))
            predictions = self._on_shared_classes(student.proposals.logits, logits, student.proposals.labels)
            scored["_student" if scored else ""] = predictions
        return scored

    def _on_shared_classes(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Predictions:
        classes = self.classes
        return Predictions(
            classes.student_logits(student_logits.float()),
            classes.teacher_logits(teacher_logits.float()),
            classes.labels(labels),
            len(classes.pairs),
        )


def comparable_field(student: DetectorInfo, teacher: DetectorInfo) -> tuple[str | None, str]:
    """The field of `DetectorOutput` to compare, or None and the reason."""
    offered = student.offers & teacher.offers
    if "proposals" in offered:
        return "proposals", ""
    if "dense" in offered and _anchor_layout(student) == _anchor_layout(teacher):
        return "dense", ""
    return None, "they share neither proposals nor anchors on images of one size"


def _anchor_layout(info: DetectorInfo) -> tuple[str, int, int]:
    """Determines the positions of anchors: detectors with equal layouts have the same anchors in every batch."""
    return info.anchors, info.size, info.max_size
