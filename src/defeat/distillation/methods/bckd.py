"""BCKD: bridging cross-task knowledge distillation (Yang et al., ICCV 2023, arXiv 2308.14286)."""

from collections.abc import Sequence

from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from defeat.distillation.base import Method, checked_weights
from defeat.distillation.classification import comparable_field
from defeat.distillation.losses import balanced_cross_entropy, masked_mean
from defeat.distillation.processes import average_count
from defeat.distillation.schedule import Schedule
from defeat.errors import InputError
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target


class BCKD(Method):
    """At the anchors or points of objects, the student's class scores and boxes follow the teacher's.

    Classes, each a binary classification: |t - s| BCE(s, t) with the scores t and s of teacher and student, the factor
    without gradient, added over the classes (equation 5 of the paper). Other than with a softmax over the classes, the
    optimum is the teacher's score itself, and predictions on which both agree don't count. Boxes: 1 - GIoU of both
    boxes (equation 7). Both are averaged over the positive predictions of the batch.

    Needs two one-stage detectors with sigmoid scores and the same anchors or points.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        class_weight: weight of the classes (published: 1).
        box_weight: weight of the boxes (published: 4).
        warmup: fraction of the run over which the terms rise linearly from zero, 0..1.
        decay: how the terms change over the epochs: constant, linear, cosine or up_down.

    Raises:
        InputError: an option is not valid, or the two detectors' predictions can't be compared.
    """

    paper = "Yang et al., ICCV 2023, arXiv 2308.14286"
    reads = ("dense",)

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        class_weight: float = 1.0,
        box_weight: float = 4.0,
        warmup: float = 0.0,
        decay: str = "constant",
    ) -> None:
        super().__init__(student, teacher)
        self.weights = checked_weights(class_weight=class_weight, box_weight=box_weight)
        self.schedule = Schedule(decay, warmup)
        kinds = {student.activation, teacher.activation}
        if comparable_field(student, teacher)[0] != "dense" or kinds != {"sigmoid"}:
            raise InputError(
                "bckd needs two one-stage detectors with sigmoid scores and the same anchors or points; this pair has "
                "no dense predictions in common."
            )
        if not self.classes.pairs:
            raise InputError("bckd needs a class that both detectors know: pair classes with --class-map.")

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute `head_class` and `head_box`, those with a weight above zero."""
        if not self.needs:
            return {}
        assert student.dense is not None
        assert teacher.dense is not None
        labels = self.classes.labels(student.dense.labels)  # (B, N)
        positive = (labels >= 0) & (labels < len(self.classes.pairs))
        losses: dict[str, Tensor] = {}
        if self.weights["class_weight"] > 0:
            own = self.classes.student_logits(student.dense.logits.flatten(0, 1).float())
            other = self.classes.teacher_logits(teacher.dense.logits.flatten(0, 1).float())
            losses["head_class"] = masked_mean(balanced_cross_entropy(own, other), positive.flatten())
        if self.weights["box_weight"] > 0:
            image, index = positive.nonzero(as_tuple=True)
            boxes = student.dense.decode(image, index), teacher.dense.decode(image, index)
            total = generalized_box_iou_loss(*boxes, reduction="sum")
            losses["head_box"] = total / average_count(positive.sum().to(total.dtype))
        return self.weighted(losses, progress)
