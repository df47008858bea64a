"""Imitation of whole feature maps, the simplest method (FitNets: Romero et al., ICLR 2015, arXiv 1412.6550)."""

from typing import Unpack

from defeat.distillation.base import checked_weights
from defeat.distillation.imitation import MapOptions, NeckMethod
from defeat.distillation.regions import PAINTERS
from defeat.errors import unknown_name
from defeat.types import DetectorInfo


class Imitation(NeckMethod):
    """The student imitates the teacher's neck everywhere, or on one region.

    The difference between the teacher's map and the adapted student's, summed over the region, divided by twice the
    number of its elements in the batch, averaged over the levels.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        map_weight: weight of the term.
        region: whole, object (ground truth, each box on one level), near_object (FGFI's anchors) or gaussian.
        difference: loss between the maps: squared, absolute or divisive.
        options: options of all methods that imitate feature maps, see `MapOptions`.

    Raises:
        InputError: an option is not valid, or the two necks share no stride.
    """

    paper = "Romero et al., ICLR 2015, arXiv 1412.6550"

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        map_weight: float = 48.0,
        region: str = "whole",
        difference: str = "squared",
        **options: Unpack[MapOptions],
    ) -> None:
        weights = checked_weights(map_weight=map_weight)
        if region not in PAINTERS:
            raise unknown_name("region", region, PAINTERS)
        super().__init__(
            student,
            teacher,
            PAINTERS[region],
            map_weight,
            difference=difference,
            **options,
        )
        self.weights = weights
