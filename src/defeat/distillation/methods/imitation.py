"""Imitation of whole maps, the plain baseline (FitNets: Romero et al., ICLR 2015, arXiv 1412.6550)."""

from defeat.distillation.base import check_weights
from defeat.distillation.imitation import NeckMethod
from defeat.distillation.regions import PAINTERS
from defeat.errors import unknown_name
from defeat.types import DetectorInfo


class Imitation(NeckMethod):
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
        adaptation_kernel: side of the kernels of the adaptation layers, in cells: 3 (published) or 1, which costs less.
        missing_levels: what becomes of levels whose stride the teacher lacks: leave_out, or nearest (the level of the
            teacher with the nearest stride, resized).
        warmup: part of the run over which the term rises linearly from zero, 0..1.
        decay: how the term changes over the epochs: constant, linear, cosine or up_down.

    Raises:
        InputError: an option is not valid, or the two necks share no stride.
    """

    paper = "Romero et al., ICLR 2015, arXiv 1412.6550"

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        map_weight: float = 16.0,
        region: str = "whole",
        difference: str = "squared",
        scale: str = "standardise",
        initialisation: str = "default",
        adaptation_kernel: int = 3,
        missing_levels: str = "leave_out",
        warmup: float = 0.05,
        decay: str = "constant",
    ) -> None:
        check_weights(map_weight=map_weight)
        if region not in PAINTERS:
            raise unknown_name("region", region, PAINTERS)
        super().__init__(
            student,
            teacher,
            PAINTERS[region],
            map_weight,
            difference=difference,
            scale=scale,
            initialisation=initialisation,
            adaptation_kernel=adaptation_kernel,
            missing_levels=missing_levels,
            warmup=warmup,
            decay=decay,
        )
