"""TADF: imitation under a Gaussian around each object (Sun et al., 2020, arXiv 2006.13108)."""

from collections.abc import Sequence

from torch import Tensor

from defeat.distillation.base import Method, check_weights
from defeat.distillation.imitation import MapImitation
from defeat.distillation.regions import gaussian_regions
from defeat.distillation.schedule import Schedule
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target


class TADF(Method):
    """The student imitates the teacher's neck on objects, most at their centres, and less and less during the run.

    The squared difference between the teacher's map and the adapted student's, weighted by a Gaussian over each box,
    over twice the sum of the weights in the batch, averaged over the levels. The paper's adaptive imitation of classes
    and boxes is not part of it.

    Args:
        student: what is known about the student.
        teacher: what is known about the teacher.
        object_weight: weight of the region.
        scale: what makes the term independent of the magnitude of features: standardise (both sides), teacher (the
            teacher's side alone) or none (published).
        initialisation: of the adaptation layers: default or published (near zero).
        warmup: part of the run over which the term rises linearly from zero, 0..1.
        decay: how the term changes over the epochs: constant, linear, cosine or up_down.

    Raises:
        InputError: an option is not valid, or the two necks share no stride.
    """

    paper = "Sun et al., 2020, arXiv 2006.13108"
    reads = ("neck",)

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        object_weight: float = 4.0,
        scale: str = "standardise",
        initialisation: str = "default",
        warmup: float = 0.05,
        decay: str = "linear",
    ) -> None:
        super().__init__(student, teacher)
        check_weights(object_weight=object_weight)
        self.schedule = Schedule(decay, warmup)
        self.neck = MapImitation(
            student,
            teacher,
            "neck",
            gaussian_regions,
            object_weight=object_weight,
            scale=scale,
            initialisation=initialisation,
        )

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute `neck_object`."""
        return self.schedule.scaled(self.neck(student, teacher, targets), progress)
