"""Align a student's and a teacher's feature maps: level correspondence, resizing, adaptation layers."""

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
KERNELS = (0, 1, 3)


@dataclass(frozen=True)
class LevelPair:
    """A level of the student and the level of the teacher that it is compared with.

    Attributes:
        part: `neck` or `backbone`.
        stride: stride of the student's level.
        teacher_stride: stride of the teacher's level; where it differs, the teacher's map is resized.
        channels: channels of the student's map.
        teacher_channels: channels of the teacher's map.
        kernel: kernel size of the adaptation layer, in cells.
    """

    part: str
    stride: int
    teacher_stride: int
    channels: int
    teacher_channels: int
    kernel: int = 1


def match_levels(
    student: Mapping[int, int],
    teacher: Mapping[int, int],
    part: str,
    only: Sequence[int] | None = None,
    missing: str = "leave_out",
) -> dict[int, LevelPair]:
    """Match the levels of two networks by their strides.

    Args:
        student: channels of the student's maps by stride.
        teacher: channels of the teacher's maps by stride.
        part: name of the part in error messages: `neck` or `backbone`.
        only: strides of the student's levels to use; None for all.
        missing: handling of levels whose stride the teacher lacks: `leave_out`, or `nearest`, which matches them to the
            teacher's level of the nearest stride (by ratio; the finer of two equally near).

    Returns:
        The pairs by the student's stride, ascending.

    Raises:
        InputError: no level is matched, or `missing` is unknown.
    """
    if missing not in MISSING_LEVELS:
        raise unknown_name("choice of missing_levels", missing, MISSING_LEVELS)
    used = [stride for stride in sorted(student) if only is None or stride in only]
    nearest = {stride: min(sorted(teacher), key=lambda other: abs(math.log2(other / stride))) for stride in used}
    if missing == "leave_out":
        nearest = {stride: other for stride, other in nearest.items() if stride == other}
    if not nearest:
        requested = "" if only is None else f" among the requested strides {sorted(only)}"
        raise InputError(
            f"The student's {part} has strides {sorted(student)} and the teacher's {sorted(teacher)}: "
            f"they share no level{requested}. Choose detectors with a common stride, or missing_levels nearest."
        )
    return {
        stride: LevelPair(part, stride, other, student[stride], teacher[other])
        for stride, other in sorted(nearest.items())
    }


class Adaptation(nn.Module):
    """Adaptation layers: a convolution per level that maps the student's channels to the teacher's.

    They are used even where the channels match, as in the published code: they absorb differences between the two
    networks' feature spaces, so that the student's maps need not be equal to the teacher's, only as informative.

    Args:
        levels: the level pairs by the student's stride.
        initialisation: `default` (that of torch), `identity` (layers between equal channels start as the identity, for
            students whose neck and head start with the teacher's weights; other layers as with `default`), or
            `published` (truncated normal with deviation 1e-4, as in the original code: at first the layer learns and
            hardly any gradient reaches the student).
        activation: whether a ReLU follows each convolution.
        kernel: kernel size in cells: 3 (published), 1, at a ninth of the cost, or 0: 1 where channels differ, and no
            layer where they are equal.

    Attributes:
        kernel: kernel size in cells, as given.
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
            raise InputError(f"adaptation_kernel must be 0, 1 or 3, not {kernel}.")
        size: Any = {"kernel_size": kernel or 1, "padding": kernel // 2}
        self.layers = nn.ModuleDict(
            {
                str(stride): nn.Conv2d(pair.channels, pair.teacher_channels, **size)
                for stride, pair in levels.items()
                if self.kernel_of(pair)
            }
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

    def forward(self, student_map: Tensor, stride: int) -> Tensor:
        """Adapt the student's map (B, C, H, W) of a stride; returns (B, C of the teacher, H, W), float32."""
        if str(stride) not in self.layers:
            return student_map.relu() if self.activation else student_map
        if self.dtype is None:
            adapted: Tensor = self.layers[str(stride)](student_map)
        else:
            with torch.autocast(student_map.device.type, self.dtype):
                adapted = self.layers[str(stride)](student_map).float()
        return adapted.relu() if self.activation else adapted

    def kernel_of(self, pair: LevelPair) -> int:
        """Kernel size of the layer of a level; 0 where it has none."""
        return self.kernel or int(pair.channels != pair.teacher_channels)


def resize_map(teacher_map: Tensor, scale: float, shape: tuple[int, int], stretch: float = 1.0) -> Tensor:
    """Resize a teacher's map to the shape of the student's.

    Args:
        teacher_map: (B, C, H, W).
        scale: rows of cells of the teacher's map per row of the student's.
        shape: height and width of the student's map, in cells.
        stretch: the same ratio of columns, divided by `scale`.

    Returns:
        (B, C, *shape).
    """
    if scale == stretch == 1 and teacher_map.shape[-2:] == shape:
        return teacher_map
    # The teacher's padding may reach further than the student's: cut off the rest before resizing.
    sizes = zip(teacher_map.shape[-2:], shape, (scale, scale * stretch), strict=True)
    height, width = (min(size, max(1, round(student_size * ratio))) for size, student_size, ratio in sizes)
    teacher_map = teacher_map[..., :height, :width]
    if shape[1] == 1:  # where the result has one column, torch 2.14 repeats its first row on CPU
        return F.interpolate(teacher_map.mT, size=(1, shape[0]), mode="bilinear", antialias=True).mT
    return F.interpolate(teacher_map, size=shape, mode="bilinear", antialias=True)


def rescale_boxes(boxes: list[Tensor], scale: float, stretch: float = 1.0) -> list[Tensor]:
    """Convert boxes to pixels of another batch.

    Args:
        boxes: (G, 4) tensors.
        scale: rows of pixels there per row here.
        stretch: the same ratio of columns, divided by `scale`.
    """
    if scale == stretch == 1:
        return boxes
    if stretch == 1:
        return [image_boxes * scale for image_boxes in boxes]
    return [image_boxes * image_boxes.new_tensor([scale * stretch, scale] * 2) for image_boxes in boxes]
