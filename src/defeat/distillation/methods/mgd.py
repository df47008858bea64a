"""MGD: masked generative distillation (Yang et al., ECCV 2022, arXiv 2205.01529)."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from defeat.distillation.base import checked_weights
from defeat.distillation.maps import LevelMethod, LevelOptions, MapPair, published_weight
from defeat.errors import InputError
from defeat.types import DetectorInfo, Target


class MGD(LevelMethod):
    """From its own map, of which random cells are masked, the student generates the teacher's whole map.

    Two 3 x 3 convolutions with a ReLU between them, trained along with the student, generate the map of each level; the
    loss is the squared difference to the teacher's, added over cells and channels and divided by the number of images
    (equations 3 and 4 of the paper). Levels are added. Cells on padding don't count. The published weights are for
    features of ResNets with 256 channels and images of 800 pixels; neck and head are inherited (`--inherit neck+head`).

    Args:
        student: description of the student.
        teacher: description of the teacher.
        generation_weight: weight of the term; None for the published one, 0.00002 for one-stage and 0.0000005 for
            two-stage students.
        masked_share: probability with which a cell is masked, 0..1 (published: 0.65).
        options: options of the methods that compare levels, see `LevelOptions`.

    Raises:
        InputError: an option is not valid, or the two necks share no stride.
    """

    paper = "Yang et al., ECCV 2022, arXiv 2205.01529"

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        generation_weight: float | None = None,
        masked_share: float = 0.65,
        **options: Unpack[LevelOptions],
    ) -> None:
        if not 0 <= masked_share <= 1:
            raise InputError(f"masked_share must be between 0 and 1, not {masked_share}.")
        weight = published_weight(generation_weight, 2e-5, 5e-7, student)
        super().__init__(student, teacher, checked_weights(generation_weight=weight), **options)
        self.masked_share = masked_share
        self.generators = nn.ModuleDict(
            {str(stride): _generator(level.teacher_channels) for stride, level in self.maps.levels.items()}
        )

    def level_losses(self, maps: MapPair, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute `generation`."""
        kept = torch.rand_like(maps.student[:, :1]) >= self.masked_share
        generated = self.generators[str(maps.stride)](maps.student * kept)
        difference = (generated - maps.teacher).masked_fill(~maps.valid[:, None], 0)
        return {"generation": difference.square().sum() / len(difference)}


def _generator(channels: int) -> nn.Module:
    first, last = (nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(2))
    return nn.Sequential(first, nn.ReLU(), last)
