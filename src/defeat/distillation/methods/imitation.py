"""Imitation of whole maps, the plain baseline (FitNets: Romero et al., ICLR 2015, arXiv 1412.6550)."""

from collections.abc import Sequence

from torch import Tensor

from defeat.distillation.base import Method, check_weights
from defeat.distillation.imitation import MapImitation
from defeat.distillation.regions import PAINTERS
from defeat.distillation.schedule import Schedule
from defeat.errors import unknown_name
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target


class Imitation(Method):
    """The student imitates the teacher's neck everywhere, or on one region.

    The difference between the teacher's map and the adapted student's, summed over the region, over twice the number of
    its elements in the batch, averaged over the levels.

    Args:
        student: what is known about the student.
        teacher: what is known about the teacher.
        map_weight: weight of the term.
        region: where: whole, object (ground truth, each box on one level), near_object (FGFI's anchors) or gaussian.
        difference: what the maps are compared by: squared, absolute or divisive.
        scale: what makes the term independent of the magnitude of features: standardise (both sides), teacher (the
            teacher's side alone) or none (published).
        initialisation: of the adaptation layers: default or published (near zero).
        warmup: part of the run over which the term rises linearly from zero, 0..1.
        decay: how the term changes over the epochs: constant, linear, cosine or up_down.

    Raises:
        InputError: an option is not valid, or the two necks share no stride.
    """

    paper = "Romero et al., ICLR 2015, arXiv 1412.6550"
    reads = ("neck",)

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        map_weight: float = 4.0,
        region: str = "whole",
        difference: str = "squared",
        scale: str = "standardise",
        initialisation: str = "default",
        warmup: float = 0.05,
        decay: str = "constant",
    ) -> None:
        super().__init__(student, teacher)
        check_weights(map_weight=map_weight)
        if region not in PAINTERS:
            raise unknown_name("region", region, PAINTERS)
        self.schedule = Schedule(decay, warmup)
        self.neck = MapImitation(
            student,
            teacher,
            "neck",
            PAINTERS[region],
            object_weight=map_weight,
            difference=difference,
            scale=scale,
            initialisation=initialisation,
        )

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute `neck_object`, the term on the region."""
        return self.schedule.scaled(self.neck(student, teacher, targets), progress)
