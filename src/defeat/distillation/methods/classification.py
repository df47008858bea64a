"""Imitation of class predictions only (Hinton et al., 2015; for detectors Chen et al., NeurIPS 2017)."""

from collections.abc import Sequence

from torch import Tensor

from defeat.distillation.base import Method, checked_weights
from defeat.distillation.classification import ClassImitation, ClassTerm
from defeat.distillation.schedule import Schedule
from defeat.errors import InputError
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target


class Classification(Method):
    """The student's class predictions imitate the teacher's, on one group of proposals or anchors.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        class_weight: weight of the term.
        group: which predictions it is averaged over: positive, negative, all, teacher_correct (where the teacher
            predicts the label) or positive_teacher_correct.
        comparison: kl, KL(teacher || student), or bce, ten times the binary cross entropy (DeFeat's published code).
        temperature: temperature of the divergence, above 0.
        proposals: whose proposals two-stage detectors score: teacher, student or both.
        warmup: fraction of the run over which the term rises linearly from zero, 0..1.
        decay: how the term changes over the epochs: constant, linear, cosine or up_down.

    Raises:
        InputError: an option is not valid, or the two detectors' predictions can't be compared.
    """

    paper = "Chen et al., NeurIPS 2017; Hinton et al., 2015, arXiv 1503.02531"
    reads = ("proposals", "dense")

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        class_weight: float = 1.0,
        group: str = "all",
        comparison: str = "kl",
        temperature: float = 1.0,
        proposals: str = "teacher",
        warmup: float = 0.05,
        decay: str = "constant",
    ) -> None:
        super().__init__(student, teacher)
        self.weights = checked_weights(class_weight=class_weight)
        self.schedule = Schedule(decay, warmup)
        terms = {group: ClassTerm(class_weight, group, comparison, temperature)}
        self.head = ClassImitation(student, teacher, terms, proposals)
        if self.head.reason:
            raise InputError(f"This pair can't be distilled by its class predictions: {self.head.reason}.")

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute `head_GROUP`."""
        return self.schedule.scaled(self.head(student, teacher), progress)
