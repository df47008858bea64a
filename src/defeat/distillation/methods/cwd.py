"""CWD: channel-wise distillation of where each channel is active (Shu et al., ICCV 2021, arXiv 2011.13256)."""

from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from defeat.distillation.base import checked_weights
from defeat.distillation.maps import LevelMethod, LevelOptions, MapPair
from defeat.errors import InputError
from defeat.types import DetectorInfo, Target


class CWD(LevelMethod):
    """The student's channels are active at the cells where the teacher's are.

    A softmax over the cells of an image, at a temperature T, makes a distribution of each channel; the loss is
    KL(teacher || student), added over the channels and divided by their number C and the number of images N, times T^2
    (equations 3 and 4 of the paper). It is dominated by the cells where the teacher is active, mostly objects; adding a
    constant to a channel changes nothing. Levels are added. Cells on padding don't count.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        channel_weight: weight of the term (published for detectors: 10).
        temperature: temperature T of the softmax, above 0 (published: 1).
        options: options of the methods that compare levels, see `LevelOptions`.

    Raises:
        InputError: an option is not valid, or the two necks share no stride.
    """

    paper = "Shu et al., ICCV 2021, arXiv 2011.13256"

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        channel_weight: float = 10.0,
        temperature: float = 1.0,
        **options: Unpack[LevelOptions],
    ) -> None:
        if not 0 < temperature < float("inf"):
            raise InputError(f"temperature must be above 0, not {temperature}.")
        super().__init__(student, teacher, checked_weights(channel_weight=channel_weight), **options)
        self.temperature = temperature

    def level_losses(self, maps: MapPair, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute `channel`."""
        valid = maps.valid.flatten(1)[:, None]
        student, teacher = (self._log_activity(level, valid) for level in (maps.student, maps.teacher))
        per_cell = F.kl_div(student, teacher, reduction="none", log_target=True).masked_fill(~valid, 0)
        images, channels = maps.teacher.shape[:2]
        return {"channel": per_cell.sum() * self.temperature**2 / (channels * images)}

    def _log_activity(self, level: Tensor, valid: Tensor) -> Tensor:
        """Logarithm of the distribution of each channel (B, C, H, W) over the valid cells: (B, C, H W)."""
        lowest = torch.finfo(level.dtype).min
        return F.log_softmax((level.flatten(2) / self.temperature).masked_fill(~valid, lowest), dim=2)
