"""Bring a student's and a teacher's maps together: which level meets which, at what size, with how many channels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defeat.errors import InputError, unknown_name

INITIALISATIONS = ("default", "identity", "published")
MISSING_LEVELS = ("leave_out", "nearest")
KERNELS = (1, 3)


@dataclass(frozen=True)
class LevelPair:
    """A level of the student and the level of the teacher that it is compared with.

    Attributes:
        part: what they belong to: `neck` or `backbone`.
        stride: of the student's level.
        teacher_stride: of the teacher's; where it differs, the teacher's map is resized.
        channels: channels of the student's map.
        teacher_channels: channels of the teacher's map.
        kernel: side in cells of the kernel that adapts the student's channels.
    """

    part: str
    stride: int
    teacher_stride: int
    channels: int
    teacher_channels: int
    kernel: int = 1


def paired_levels(
    student: Mapping[int, int],
    teacher: Mapping[int, int],
    part: str,
    only: Sequence[int] | None = None,
    missing: str = "leave_out",
) -> dict[int, LevelPair]:
    """Pair the levels of two networks by their strides.

    Args:
        student: channels of the student's maps by stride.
        teacher: the same of the teacher.
        part: what the maps belong to, for the message, e.g. `neck`.
        only: strides of the student's levels to use; None for all.
        missing: what becomes of a level whose stride the teacher lacks: `leave_out`, or `nearest`, which pairs it with
            the teacher's level of the nearest stride (by ratio; of two the finer).

    Returns:
        The pairs by the student's stride, ascending.

    Raises:
        InputError: no level is left, or `missing` is unknown.
    """
    if missing not in MISSING_LEVELS:
        raise unknown_name("way with missing levels", missing, MISSING_LEVELS)
    used = [stride for stride in sorted(student) if only is None or stride in only]
    nearest = {stride: min(sorted(teacher), key=lambda other: abs(math.log2(other / stride))) for stride in used}
    if missing == "leave_out":
        nearest = {stride: other for stride, other in nearest.items() if stride == other}
    if not nearest:
        asked = "" if only is None else f" at the strides {sorted(only)} that were asked for"
        raise InputError(
            f"The student's {part} has strides {sorted(student)} and the teacher's {sorted(teacher)}: "
            f"no level meets another{asked}. Choose detectors with a common stride, or missing_levels nearest."
        )
    return {
        stride: LevelPair(part, stride, other, student[stride], teacher[other])
        for stride, other in sorted(nearest.items())
    }


class Adaptation(nn.Module):
    """A convolution for each level that turns the student's channels into the teacher's.

    It is there even where the channels match, as in the published code: it takes up what differs between the two
    networks' feature spaces, so that the student's maps need not be equal to the teacher's, only as informative.

    Args:
        levels: the pairs by the student's stride.
        initialisation: `default` (that of torch), `identity` (a layer between equal channels begins by changing
            nothing, which fits a student whose neck and head begin with the weights of the teacher; others as by
            default), or `published` (truncated normal with deviation 1e-4, as in the original code: at first the layer
            learns and hardly any gradient reaches the student).
        activation: whether a ReLU follows each convolution.
        kernel: side of each convolution's kernel in cells: 3 (published), or 1, which costs a ninth.

    Attributes:
        kernel: as given.
        dtype: precision in which the convolutions compute; None for that of their weights.

    Raises:
        InputError: the initialisation or the kernel is unknown.
    """

    def __init__(
        self,
        levels: Mapping[int, LevelPair],
        initialisation: str = "identity",
        activation: bool = False,
        kernel: int = 1,
    ) -> None:
        super().__init__()
        self.activation, self.kernel = activation, kernel
        self.dtype: torch.dtype | None = None
        if initialisation not in INITIALISATIONS:
            raise unknown_name("initialisation", initialisation, INITIALISATIONS)
        if kernel not in KERNELS:
            raise InputError(f"adaptation_kernel must be 1 or 3, not {kernel}.")
        size: Any = {"kernel_size": kernel, "padding": kernel // 2}
        self.layers = nn.ModuleDict(
            {str(stride): nn.Conv2d(one.channels, one.teacher_channels, **size) for stride, one in levels.items()}
        )
        for layer in self.layers.values():
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            if initialisation == "published":
                nn.init.trunc_normal_(layer.weight, std=1e-4)
                nn.init.zeros_(layer.bias)
            elif initialisation == "identity" and layer.in_channels == layer.out_channels:
                nn.init.dirac_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, level: Tensor, stride: int) -> Tensor:
        """Adapt the student's map (B, C, H, W) of a stride; gives (B, C of the teacher, H, W), float32."""
        if self.dtype is None:
            adapted: Tensor = self.layers[str(stride)](level)
        else:
            with torch.autocast(level.device.type, self.dtype):
                adapted = self.layers[str(stride)](level).float()
        return adapted.relu() if self.activation else adapted


def resized_map(level: Tensor, scale: float, shape: tuple[int, int]) -> Tensor:
    """A teacher's map, resized to the cells of the student's.

    Args:
        level: (B, C, H, W) of the teacher.
        scale: cells of the teacher's map per cell of the student's, in either direction.
        shape: height and width of the student's map, in cells.

    Returns:
        (B, C, *shape).
    """
    if scale == 1 and level.shape[-2:] == shape:
        return level
    # The teacher's padding may reach further than the student's: leave out what lies beyond it before resizing.
    height, width = (min(have, max(1, round(want * scale))) for have, want in zip(level.shape[-2:], shape, strict=True))
    level = level[..., :height, :width]
    if shape[1] == 1:  # where the result has one column, torch 2.14 repeats its first row on a processor
        return F.interpolate(level.mT, size=(1, shape[0]), mode="bilinear", antialias=True).mT
    return F.interpolate(level, size=shape, mode="bilinear", antialias=True)


def rescale_boxes(boxes: list[Tensor], factor: float) -> list[Tensor]:
    """Boxes in pixels of another batch; `factor` is pixels there per pixel here."""
    return boxes if factor == 1 else [one * factor for one in boxes]
