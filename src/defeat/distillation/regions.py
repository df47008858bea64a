"""Which cells of a feature map a student imitates: objects, what lies near them, or everything.

Each function takes the ground-truth boxes of a batch and the shapes of its maps, and paints all boxes of all images at
once, on the device of the boxes: never a loop over boxes, never boxes times cells in memory. A region is (B, H, W) by
stride, bool or a weight in 0..1. Letters: G boxes of the whole batch, A anchors of a cell, B images, H W cells.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CANONICAL_SIDE = 56.0  # boxes of this side up to twice it belong to the first level
CANONICAL_STRIDE = 4  # stride of the first level, which holds all smaller boxes, too
ANCHOR_SCALE = 8.0  # side of a square anchor over the stride of its level
ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height over width
BOXES_AT_ONCE = 256  # of which all rows, anchors and numbers fit a processor's cache
CELLS_AT_ONCE = 1 << 18

Shape = tuple[int, int]
Regions = dict[int, Tensor]
Painter = Callable[[Tensor, Tensor, int, int, Shape], Tensor]


def object_regions(
    boxes: Sequence[Tensor], shapes: dict[int, Shape], canonical_side: float = CANONICAL_SIDE
) -> Regions:
    """Paint each ground-truth box on the one level that fits its size: the object region of DeFeat.

    Args:
        boxes: one (G, 4) tensor an image, pixels of the batch.
        shapes: height and width of each level in cells, by stride.
        canonical_side: see `box_strides`.

    Returns:
        (B, H, W) bool by stride.
    """
    return _each_box_on_its_level(_paint, boxes, shapes, canonical_side)


def object_regions_on_all_levels(boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> Regions:
    """Paint each ground-truth box on every level, as FGD does (Yang et al., CVPR 2022).

    Args:
        boxes: one (G, 4) tensor an image, pixels of the batch.
        shapes: height and width of each level in cells, by stride.

    Returns:
        (B, H, W) bool by stride.
    """
    return {stride: paint_boxes(boxes, stride, shape) for stride, shape in shapes.items()}


def near_object_regions(boxes: Sequence[Tensor], shapes: dict[int, Shape], phi: float = 0.5) -> Regions:
    """Mark cells whose anchors overlap an object nearly as well as the best anchor does (Wang et al., CVPR 2019).

    A cell belongs to the region when the IoU of one of its three anchors with a box of this level is greater than `phi`
    times the largest IoU that the box has with any anchor of the level. Anchors are centred on the cell's upper left
    corner, have an area of (8 strides)^2 and a height of 0.5, 1 or 2 widths.

    Args:
        boxes: one (G, 4) tensor an image, pixels of the batch.
        shapes: height and width of each level in cells, by stride.
        phi: 0..1; 0 marks every cell with an anchor that touches the object, 1 none.

    Returns:
        (B, H, W) bool by stride.
    """

    def paint(corners: Tensor, image: Tensor, images: int, stride: int, shape: Shape) -> Tensor:
        return _near(corners, image, images, stride, shape, phi)

    return _each_box_on_its_level(paint, boxes, shapes)


def gaussian_regions(boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> Regions:
    """Weight the cells of each box by a Gaussian around its centre (Sun et al., 2020, arXiv 2006.13108).

    The deviation is half the side of the box in either direction. Where boxes meet, the larger weight stands.

    Args:
        boxes: one (G, 4) tensor an image, pixels of the batch.
        shapes: height and width of each level in cells, by stride.

    Returns:
        (B, H, W) float32 in 0..1 by stride.
    """
    return _each_box_on_its_level(_gaussian, boxes, shapes)


def whole_regions(boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> Regions:
    """Mark every cell (Romero et al., ICLR 2015, taken to detectors); (B, H, W) bool by stride."""
    device = boxes[0].device
    return {stride: torch.ones(len(boxes), *shape, dtype=torch.bool, device=device) for stride, shape in shapes.items()}


def backbone_regions(boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> Regions:
    """Paint every box, whatever its size, on a map of stride 4, and resize that to each level by nearest neighbour.

    Args:
        boxes: one (G, 4) tensor an image, pixels of the batch.
        shapes: height and width of each level in cells, by stride.

    Returns:
        (B, H, W) bool by stride.
    """
    finest = min(shapes)
    height, width = (cells * finest // CANONICAL_STRIDE for cells in shapes[finest])
    painted = paint_boxes(boxes, CANONICAL_STRIDE, (height, width))[:, None].float()
    return {stride: F.interpolate(painted, size=shape, mode="nearest")[:, 0] > 0 for stride, shape in shapes.items()}


# Regions that can be chosen by name.
PAINTERS = {
    "whole": whole_regions,
    "object": object_regions,
    "near_object": near_object_regions,
    "gaussian": gaussian_regions,
}


def box_strides(boxes: Tensor, strides: Sequence[int], canonical_side: float = CANONICAL_SIDE) -> Tensor:
    """Choose the one level of the pyramid on which each box is painted.

    Level `floor(log2(sqrt((w + 1) (h + 1)) / 56))`, counted from stride 4 and clamped to the levels that there are
    (Guo et al., CVPR 2021, published code; the rule of Lin et al., CVPR 2017, equation 1, with other constants).

    Args:
        boxes: (G, 4) in pixels of the batch.
        strides: strides of the levels, ascending.
        canonical_side: boxes of this side up to twice it belong to stride 4, in pixels; 56 as published, for images
            whose short side has some 600 to 800 pixels.

    Returns:
        (G,) int64: a stride of `strides` for each box.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    side = ((width + 1) * (height + 1)).sqrt()
    wanted = torch.floor(torch.log2(side / canonical_side + 1e-6)) + math.log2(CANONICAL_STRIDE)
    available = torch.tensor(strides, device=boxes.device)
    nearest = (wanted[:, None] - available.double().log2()[None, :]).abs().argmin(dim=1)
    return available[nearest]


def paint_boxes(boxes: Sequence[Tensor], stride: int, shape: Shape) -> Tensor:
    """Mark the cells of one level that the boxes cover.

    Corners are divided by the stride and truncated; cells `[y1:y2, x1:x2]` are painted, cut at the map. A box without
    extent after that paints its cell `(y1, x1)`.

    Args:
        boxes: one (G, 4) tensor an image, pixels of the batch.
        stride: pixels per cell.
        shape: height and width of the map, in cells.

    Returns:
        (B, H, W) bool.
    """
    return _paint(*_joined(boxes), len(boxes), stride, shape)


def _each_box_on_its_level(
    paint: Painter, boxes: Sequence[Tensor], shapes: dict[int, Shape], canonical_side: float = CANONICAL_SIDE
) -> Regions:
    corners, image = _joined(boxes)
    level = box_strides(corners, sorted(shapes), canonical_side)
    return {
        stride: paint(corners[level == stride], image[level == stride], len(boxes), stride, shape)
        for stride, shape in shapes.items()
    }


def _joined(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """All boxes (G, 4), and the image that each belongs to (G,)."""
    corners = torch.cat(list(boxes))
    counts = torch.tensor([len(one) for one in boxes], device=corners.device)
    return corners, torch.repeat_interleave(counts)


def _cells(corners: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """First and last cells `x1 y1 x2 y2` of each box, ends open, and which boxes had no extent: they get one cell."""
    x1, y1, x2, y2 = (corners / stride).to(torch.int64).unbind(1)
    empty = (x2 <= x1) | (y2 <= y1)
    return x1, y1, torch.where(empty, x1 + 1, x2), torch.where(empty, y1 + 1, y2), empty


def _paint(corners: Tensor, image: Tensor, images: int, stride: int, shape: Shape) -> Tensor:
    """Each box adds to four corners of a difference array, whose running sums count the boxes on a cell: (B, H, W)."""
    height, width = shape
    x1, y1, x2, y2, _ = _cells(corners, stride)
    x1, x2, y1, y2 = x1.clamp(0, width), x2.clamp(0, width), y1.clamp(0, height), y2.clamp(0, height)
    change = torch.zeros(images, height + 1, width + 1, dtype=torch.int32, device=corners.device)
    one = torch.ones_like(image, dtype=torch.int32)
    for row, column, sign in ((y1, x1, 1), (y2, x2, 1), (y1, x2, -1), (y2, x1, -1)):
        change.index_put_((image, row, column), sign * one, accumulate=True)
    return change.cumsum(1).cumsum(2)[:, :height, :width] > 0


def _near(corners: Tensor, image: Tensor, images: int, stride: int, shape: Shape, phi: float) -> Tensor:
    """Find for each box, anchor shape and row the first and the last column of the region: (B, H, W).

    The anchors of one shape differ in their place alone, so their intersection with a box is an overlap of columns
    times an overlap of rows. The best of all is that of the best column and the best row; and in a given row the
    columns whose overlap is large enough follow each other without a gap.
    """
    height, width = shape
    side = ANCHOR_SCALE * stride
    ratios = torch.tensor(ANCHOR_RATIOS, dtype=torch.float64, device=corners.device)[:, None]  # (A, 1)
    half_width, half_height = side / ratios.sqrt() / 2, side * ratios.sqrt() / 2
    change = torch.zeros(images * height * (width + 1), dtype=torch.int32, device=corners.device)
    order = (corners[:, 3] - corners[:, 1]).argsort()  # boxes of one height need as many rows
    for some in order.split(BOXES_AT_ONCE):
        part = corners[some]
        x1, y1, x2, y2 = (corner[:, None, None] for corner in part.double().unbind(1))  # (G, 1, 1)
        across = _overlap(_nearest(x1, x2, stride, width), half_width, x1, x2)  # (G, A, 1), in the best column
        along = _overlap(_nearest(y1, y2, stride, height), half_height, y1, y2)  # (G, A, 1), in the best row
        areas = (x2 - x1) * (y2 - y1) + side**2  # (G, 1, 1)
        best = across * along
        threshold = phi * (best / (areas - best)).amax(dim=1, keepdim=True)  # (G, 1, 1)
        # IoU = I / (areas - I) is above the threshold where I is greater than this; rounding must not decide ties.
        intersection = threshold * areas / (1 + threshold) * (1 + 1e-12)
        rows = _rows_near(part, side, stride, height)[:, None]  # (G, 1, rows), beyond the map where there are no more
        along = _overlap(rows * stride, half_height, y1, y2)  # (G, A, rows)
        touches = (along > 0) & (rows < height)
        needed = intersection / stride / along.clamp_(min=1e-12)  # overlap of columns, in cells
        enough = touches & (needed < torch.minimum(2 * half_width, x2 - x1) / stride)
        first = torch.floor((x1 - half_width) / stride + needed).add_(1).clamp_(0, width).to(torch.int64)
        end = torch.ceil((x2 + half_width) / stride - needed).clamp_(0, width).to(torch.int64)
        row = (image[some][:, None, None] * height + rows.clamp(max=height - 1)) * (width + 1)
        mark = enough.logical_and_(first < end).to(torch.int32).flatten()
        change.scatter_add_(0, (row + first).flatten(), mark)
        change.scatter_add_(0, (row + end).flatten(), mark.neg_())
    return change.view(images, height, width + 1).cumsum(2)[..., :width] > 0


def _nearest(begin: Tensor, end: Tensor, stride: int, cells: int) -> Tensor:
    """Where, in pixels, the anchors stand that overlap a box the most along one axis: nearest to its centre."""
    return ((begin + end) / (2 * stride)).round().clamp(0, cells - 1) * stride


def _rows_near(corners: Tensor, side: float, stride: int, height: int) -> Tensor:
    """Rows in which an anchor can touch each box, `height` beyond the map: (G, as many as the tallest box needs)."""
    reach = side / min(ANCHOR_RATIOS) ** 0.5 / 2  # half of the tallest anchor
    first = ((corners[:, 1] - reach) / stride).floor().clamp(0, height).to(torch.int64)
    end = ((corners[:, 3] + reach) / stride).ceil().clamp(0, height).to(torch.int64)
    most = max(1, int((end - first).amax())) if len(corners) else 1
    rows: Tensor = first[:, None] + torch.arange(most, device=corners.device)
    return rows.clamp(max=height)


def _overlap(centres: Tensor, half: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Length that anchors and boxes share along one axis, at least 0: (G, A, centres)."""
    return (torch.minimum(centres + half, end) - torch.maximum(centres - half, begin)).clamp(min=0)


def _gaussian(corners: Tensor, image: Tensor, images: int, stride: int, shape: Shape) -> Tensor:
    """Write the weight of each cell of each box into a map that keeps the largest: (B, H, W)."""
    height, width = shape
    x1, y1, x2, y2, empty = _cells(corners, stride)
    left, right, top, bottom = x1.clamp(0, width), x2.clamp(0, width), y1.clamp(0, height), y2.clamp(0, height)
    half_width, half_height = (x2 - x1) / 2, (y2 - y1) / 2
    # Offsets from the centre, in halves of a side.
    off_left, off_top = (left - x1) / half_width - 1, (top - y1) / half_height - 1
    step_x, step_y = 1 / half_width, 1 / half_height
    for value in (off_left, off_top, step_x, step_y):
        value.masked_fill_(empty, 0)  # its one cell has weight 1
    region = torch.zeros(images * height * width, device=corners.device)
    for boxes in _bounded((right - left) * (bottom - top)):
        of, place = _counted((bottom - top)[boxes])
        box = boxes[of]  # (rows of all these boxes,)
        off_y = off_top[box] + place * step_y[box]
        first = (image[box] * height + top[box] + place) * width + left[box]
        of, place = _counted((right - left)[box])  # (cells of all these boxes,)
        off_x, step, off_y, first = (row.index_select(0, of) for row in (off_left[box], step_x[box], off_y, first))
        weight = torch.exp(((off_x + place * step).square() + off_y.square()) / -2)
        region.scatter_reduce_(0, first + place, weight, "amax")
    return region.view(images, height, width)


def _bounded(cells: Tensor) -> Iterator[Tensor]:
    """Split boxes of so many cells into groups with a bounded number of cells: the boxes of each group."""
    group = cells.cumsum(0) // CELLS_AT_ONCE
    for number in group.unique().tolist():
        yield (group == number).nonzero()[:, 0]


def _counted(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Number the parts of items of so many parts: the item of each part, and its place in the item from 0."""
    item = torch.repeat_interleave(counts)
    begin = counts.cumsum(0) - counts
    return item, torch.arange(len(item), device=item.device) - begin.index_select(0, item)
