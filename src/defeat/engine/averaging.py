"""The average of a student's weights over the steps of its training."""

from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import PARAM_LIST, AveragedModel

from defeat.detector import Detector

PREFIX = "average."  # of its names among those of a DetectionModule


class StudentAverage(AveragedModel):
    """An exponential moving average of a student's weights, and of its running statistics.

    Lightning's `WeightAveraging` averages a whole `LightningModule`, with adaptation layers, and copies the teacher and
    everything else that hangs on it. This copies the student alone. It is a part of the run's module, so that it
    is moved, checkpointed and restored with it; it has no gradient, so that no optimiser sees it.

    Weights that are not trained stay bit for bit the student's, and counters such as those of batch normalisation are
    copied.

    Args:
        student: the detector that is trained.
        decay: what a step leaves of the average, 0..1; less in the first steps, see `ramped`.
    """

    def __init__(self, student: Detector, decay: float) -> None:
        @torch.no_grad()
        def average(averages: PARAM_LIST, current: PARAM_LIST, updates: Tensor | int) -> None:
            share = 1 - ramped(decay, int(updates))
            for mean, value in zip(averages, current, strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value, share)
                else:
                    mean.copy_(value)

        super().__init__(student, multi_avg_fn=average, use_buffers=True)
        self.requires_grad_(False)

    @property
    def student(self) -> Detector:
        """The detector with the averaged weights."""
        return cast(Detector, self.module)


def ramped(decay: float, updates: int) -> float:
    """The decay after so many updates: low at first, so that first weights are soon forgotten also in a short run.

    With (1 + n) / (10 + n) the average covers about the last tenth of all steps, until `decay` is reached.
    """
    return min(decay, (1 + updates) / (10 + updates))
