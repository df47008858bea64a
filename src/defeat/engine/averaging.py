"""Exponential moving average of a student's weights."""

from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import PARAM_LIST, AveragedModel

from defeat.detector import Detector

PREFIX = "average."  # of its tensors in the state dict of a DetectionModule


class StudentAverage(AveragedModel):
    """An exponential moving average of a student's weights and running statistics.

    Lightning's `WeightAveraging` averages a whole `LightningModule`, with the adaptation layers, and copies the teacher
    and everything else that it refers to. This class copies only the student. It is a submodule of the run's module, so
    that it is moved, checkpointed and restored with it; it has no gradient, so that no optimiser includes it.

    Frozen weights stay bit for bit those of the student, and counters such as those of batch normalisation are copied.

    Args:
        student: the detector that is trained.
        decay: decay per step, 0..1; lower in the first steps, see `effective_decay`.
    """

    def __init__(self, student: Detector, decay: float) -> None:
        @torch.no_grad()
        def average(averages: PARAM_LIST, current: PARAM_LIST, updates: Tensor | int) -> None:
            share = 1 - effective_decay(decay, int(updates))
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


def effective_decay(decay: float, updates: int) -> float:
    """The decay after a number of updates: low at first, so that even a short run forgets the initial weights.

    With (1 + n) / (10 + n), the average covers about the last tenth of all steps, until `decay` is reached.
    """
    return min(decay, (1 + updates) / (10 + updates))
