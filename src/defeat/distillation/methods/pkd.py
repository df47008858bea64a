"""PKD: distillation by the Pearson correlation of feature maps (Cao et al., NeurIPS 2022, arXiv 2207.02039)."""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from defeat.distillation.base import checked_weights
from defeat.distillation.differences import standardised_difference
from defeat.distillation.losses import region_mean
from defeat.distillation.maps import LevelMethod, LevelOptions, MapPair, published_weight
from defeat.distillation.processes import sum_over_processes
from defeat.errors import InputError
from defeat.types import DetectorInfo, Target

EPSILON = 1e-12  # added to the variance, the square of the published 1e-6


class PKD(LevelMethod):
    """The student's maps correlate with the teacher's in every channel.

    Both maps of a level are standardised in each channel over the n cells of the batch (with the unbiased variance);
    the loss is half their mean squared difference, which is (n - 1) / n (1 - r) with Pearson's correlation r averaged
    over the channels (equations 3 to 5 of the paper). Magnitudes and offsets of features have no influence, so that
    detectors of different kinds can be compared. Levels are added. As in `imitation`, cells on padding don't count.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        correlation_weight: weight of the term; None for the published one, 10 for one-stage and 6 for two-stage
            students.
        finest_levels: number of levels that are compared, beginning with the finest, 1 or more (published: 4).
        options: options of the methods that compare levels, see `LevelOptions`.

    Raises:
        InputError: an option is not valid, or the two necks share no stride.
    """

    paper = "Cao et al., NeurIPS 2022, arXiv 2207.02039"

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        correlation_weight: float | None = None,
        finest_levels: int = 4,
        **options: Unpack[LevelOptions],
    ) -> None:
        if finest_levels < 1:
            raise InputError(f"finest_levels must be 1 or more, not {finest_levels}.")
        weight = published_weight(correlation_weight, 10.0, 6.0, student)
        weights = checked_weights(correlation_weight=weight)
        super().__init__(student, teacher, weights, finest=finest_levels, **options)

    def level_losses(self, maps: MapPair, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute `correlation`."""
        count = sum_over_processes(maps.valid.sum().to(maps.student.dtype))
        per_cell = standardised_difference(maps.student, maps.teacher, maps.valid, EPSILON)
        mean = region_mean(per_cell, maps.valid, maps.teacher.shape[1])  # with the biased variance
        return {"correlation": mean * (count - 1).clamp(min=0) / count.clamp(min=1)}
