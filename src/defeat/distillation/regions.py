"""Which cells of a feature map belong to objects."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CANONICAL_SIDE = 56.0  # boxes of this side up to twice it belong to the first level
CANONICAL_STRIDE = 4  # stride of the first level, which holds all smaller boxes, too


def box_strides(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Choose the one level of the pyramid on which each box is painted.

    Level `floor(log2(sqrt((w + 1) (h + 1)) / 56))`, counted from stride 4 and clamped to the levels that there are
    (Guo et al., CVPR 2021, published code; the rule of Lin et al., CVPR 2017, equation 1, with other constants).

    Args:
        boxes: (G, 4) in pixels of the batch.
        strides: strides of the levels, ascending.

    Returns:
        (G,) int64: a stride of `strides` for each box.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    side = ((width + 1) * (height + 1)).sqrt()
    wanted = torch.floor(torch.log2(side / CANONICAL_SIDE + 1e-6)) + math.log2(CANONICAL_STRIDE)
    available = torch.tensor(strides, device=boxes.device)
    nearest = (wanted[:, None] - available.double().log2()[None, :]).abs().argmin(dim=1)
    return available[nearest]


def paint_boxes(boxes: Sequence[Tensor], stride: int, shape: tuple[int, int]) -> Tensor:
    """Mark the cells of one level that the boxes cover.

    Corners are divided by the stride and truncated; cells `[y1:y2, x1:x2]` are painted, cut at the map. A box without
    extent after that paints its cell `(y1, x1)`. All boxes of all images are painted at once: each adds to four corners
    of a difference array, whose running sums tell how many boxes cover a cell.

    Args:
        boxes: one (G, 4) tensor an image, pixels of the batch.
        stride: pixels per cell.
        shape: height and width of the map, in cells.

    Returns:
        (B, H, W) bool.
    """
    height, width = shape
    counts = [len(one) for one in boxes]
    corners = (torch.cat(list(boxes)) / stride).to(torch.int64)  # (all G, 4)
    image = torch.repeat_interleave(torch.tensor(counts, device=corners.device))
    x1, y1, x2, y2 = corners.unbind(1)
    empty = (x2 <= x1) | (y2 <= y1)
    x2, y2 = torch.where(empty, x1 + 1, x2), torch.where(empty, y1 + 1, y2)
    x1, x2 = x1.clamp(0, width), x2.clamp(0, width)
    y1, y2 = y1.clamp(0, height), y2.clamp(0, height)
    change = torch.zeros(len(counts), height + 1, width + 1, dtype=torch.int32, device=corners.device)
    one = torch.ones_like(image, dtype=torch.int32)
    for row, column, sign in ((y1, x1, 1), (y2, x2, 1), (y1, x2, -1), (y2, x1, -1)):
        change.index_put_((image, row, column), sign * one, accumulate=True)
    return change.cumsum(1).cumsum(2)[:, :height, :width] > 0


def ground_truth_regions(boxes: Sequence[Tensor], shapes: dict[int, tuple[int, int]]) -> dict[int, Tensor]:
    """Paint each ground-truth box on the one level that fits its size: the object region of the paper.

    Args:
        boxes: one (G, 4) tensor an image, pixels of the batch.
        shapes: height and width of each level in cells, by stride.

    Returns:
        (B, H, W) bool by stride.
    """
    strides = sorted(shapes)
    levels = [box_strides(one, strides) for one in boxes]
    return {
        stride: paint_boxes([one[level == stride] for one, level in zip(boxes, levels, strict=True)], stride, shape)
        for stride, shape in shapes.items()
    }
