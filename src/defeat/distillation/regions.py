"""Which cells of a feature map a student imitates: objects, their surroundings, or all cells.

Each function takes the ground-truth boxes of a batch and the shapes of its feature maps, and marks the cells of all
boxes of all images at once, on the device of the boxes, without a loop over boxes and without a tensor of boxes times
cells. A region is (B, H, W) by stride, bool or a weight in 0..1. Letters: G boxes of the whole batch, A anchors per
cell, B images, H W cells.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CANONICAL_SIDE = 56.0  # boxes with sides from this to twice this belong to the first level
CANONICAL_STRIDE = 4  # stride of the first level, which also gets all smaller boxes
ANCHOR_SCALE = 8.0  # side of a square anchor over the stride of its level
ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height over width
BOXES_AT_ONCE = 256  # so that the temporaries fit a CPU's cache
CELLS_AT_ONCE = 1 << 18

Shape = tuple[int, int]
Regions = dict[int, Tensor]
Marker = Callable[[Tensor, Tensor, int, int, Shape], Tensor]


def object_regions(
    boxes: Sequence[Tensor], shapes: dict[int, Shape], canonical_side: float = CANONICAL_SIDE
) -> Regions:
    """Mark each ground-truth box on the level that fits its size: the object region of DeFeat.

    Args:
        boxes: one (G, 4) tensor per image, pixels of the batch.
        shapes: height and width of each level in cells, by stride.
        canonical_side: see `box_strides`.

    Returns:
        (B, H, W) bool by stride.
    """
    return _each_box_on_its_level(_mark_boxes, boxes, shapes, canonical_side)


def object_regions_on_all_levels(boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> Regions:
    """Mark each ground-truth box on every level, as FGD does (Yang et al., CVPR 2022).

    Args:
        boxes: one (G, 4) tensor per image, pixels of the batch.
        shapes: height and width of each level in cells, by stride.

    Returns:
        (B, H, W) bool by stride.
    """
    return {stride: paint_boxes(boxes, stride, shape) for stride, shape in shapes.items()}


def inverse_area_regions(boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> Regions:
    """Weight the cells of each box by one over its area, on every level, as FGD does (Yang et al., CVPR 2022).

    A box covers the cells from the one of its left upper corner to that of its right lower corner, both included. Where
    boxes overlap, the smallest one counts.

    Args:
        boxes: one (G, 4) tensor per image, pixels of the batch.
        shapes: height and width of each level in cells, by stride.

    Returns:
        (B, H, W) float32 in 0..1 by stride.
    """
    corners, image = _concatenate(boxes)
    return {stride: _inverse_areas(corners, image, len(boxes), stride, shape) for stride, shape in shapes.items()}


def near_object_regions(boxes: Sequence[Tensor], shapes: dict[int, Shape], phi: float = 0.5) -> Regions:
    """Mark cells whose anchors overlap an object nearly as well as the best anchor (Wang et al., CVPR 2019).

    A cell belongs to the region if the IoU of one of its three anchors with a box of this level is greater than `phi`
    times the largest IoU of the box with any anchor of the level. Anchors are centred on the cell's upper left corner,
    with an area of (8 strides)^2 and a height of 0.5, 1 or 2 widths.

    Args:
        boxes: one (G, 4) tensor per image, pixels of the batch.
        shapes: height and width of each level in cells, by stride.
        phi: 0..1; 0 marks every cell with an anchor that overlaps the object, 1 no cell.

    Returns:
        (B, H, W) bool by stride.
    """

    def mark(corners: Tensor, image: Tensor, images: int, stride: int, shape: Shape) -> Tensor:
        return _mark_near_boxes(corners, image, images, stride, shape, phi)

    return _each_box_on_its_level(mark, boxes, shapes)


def gaussian_regions(boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> Regions:
    """Weight the cells of each box by a Gaussian around its centre (Sun et al., 2020, arXiv 2006.13108).

    The standard deviation is half the side of the box in either direction. Where boxes overlap, the larger weight
    counts.

    Args:
        boxes: one (G, 4) tensor per image, pixels of the batch.
        shapes: height and width of each level in cells, by stride.

    Returns:
        (B, H, W) float32 in 0..1 by stride.
    """
    return _each_box_on_its_level(_gaussian_weights, boxes, shapes)


def whole_regions(boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> Regions:
    """Mark every cell (Romero et al., ICLR 2015, applied to detectors); (B, H, W) bool by stride."""
    device = boxes[0].device
    return {stride: torch.ones(len(boxes), *shape, dtype=torch.bool, device=device) for stride, shape in shapes.items()}


def backbone_regions(boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> Regions:
    """Mark boxes of all sizes on a map of stride 4, and resize it to each level by nearest neighbour.

    Args:
        boxes: one (G, 4) tensor per image, pixels of the batch.
        shapes: height and width of each level in cells, by stride.

    Returns:
        (B, H, W) bool by stride.
    """
    finest = min(shapes)
    height, width = (cells * finest // CANONICAL_STRIDE for cells in shapes[finest])
    painted = paint_boxes(boxes, CANONICAL_STRIDE, (height, width))[:, None].float()
    return {stride: F.interpolate(painted, size=shape, mode="nearest")[:, 0] > 0 for stride, shape in shapes.items()}


# Regions by option value.
PAINTERS = {
    "whole": whole_regions,
    "object": object_regions,
    "near_object": near_object_regions,
    "gaussian": gaussian_regions,
}


def box_strides(boxes: Tensor, strides: Sequence[int], canonical_side: float = CANONICAL_SIDE) -> Tensor:
    """Choose the pyramid level on which each box is marked.

    Level `floor(log2(sqrt((w + 1) (h + 1)) / 56))`, counted from stride 4 and clamped to the existing levels
    (Guo et al., CVPR 2021, published code; the rule of Lin et al., CVPR 2017, equation 1, with other constants).

    Args:
        boxes: (G, 4) in pixels of the batch.
        strides: strides of the levels, ascending.
        canonical_side: boxes with sides from this to twice this belong to stride 4, in pixels; 56 as published, for
            images whose short side has some 600 to 800 pixels.

    Returns:
        (G,) int64: a stride of `strides` for each box.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    side = ((width + 1) * (height + 1)).sqrt()
    level = torch.floor(torch.log2(side / canonical_side + 1e-6)) + math.log2(CANONICAL_STRIDE)
    available = torch.tensor(strides, device=boxes.device)
    nearest = (level[:, None] - available.double().log2()[None, :]).abs().argmin(dim=1)
    return available[nearest]


def paint_boxes(boxes: Sequence[Tensor], stride: int, shape: Shape) -> Tensor:
    """Mark the cells of one level that the boxes cover.

    Corners are divided by the stride and truncated; cells `[y1:y2, x1:x2]` inside the map are marked. A box that is
    empty after truncation marks its cell `(y1, x1)`.

    Args:
        boxes: one (G, 4) tensor per image, pixels of the batch.
        stride: pixels per cell.
        shape: height and width of the map, in cells.

    Returns:
        (B, H, W) bool.
    """
    return _mark_boxes(*_concatenate(boxes), len(boxes), stride, shape)


def _each_box_on_its_level(
    mark: Marker, boxes: Sequence[Tensor], shapes: dict[int, Shape], canonical_side: float = CANONICAL_SIDE
) -> Regions:
    corners, image = _concatenate(boxes)
    level = box_strides(corners, sorted(shapes), canonical_side)
    return {
        stride: mark(corners[level == stride], image[level == stride], len(boxes), stride, shape)
        for stride, shape in shapes.items()
    }


def _concatenate(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes of all images (G, 4), and the index of each box's image (G,)."""
    corners = torch.cat(list(boxes))
    counts = torch.tensor([len(image_boxes) for image_boxes in boxes], device=corners.device)
    return corners, torch.repeat_interleave(counts)


def _box_cells(corners: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cells `x1 y1 x2 y2` of each box, ends exclusive, and which boxes were empty; an empty box gets one cell."""
    x1, y1, x2, y2 = (corners / stride).to(torch.int64).unbind(1)
    empty = (x2 <= x1) | (y2 <= y1)
    return x1, y1, torch.where(empty, x1 + 1, x2), torch.where(empty, y1 + 1, y2), empty


def _mark_boxes(corners: Tensor, image: Tensor, images: int, stride: int, shape: Shape) -> Tensor:
    """Cells covered by a box: (B, H, W) bool.

    Each box changes four corners of a difference array, whose cumulative sums count the boxes on each cell.
    """
    height, width = shape
    x1, y1, x2, y2, _ = _box_cells(corners, stride)
    x1, x2, y1, y2 = x1.clamp(0, width), x2.clamp(0, width), y1.clamp(0, height), y2.clamp(0, height)
    change = torch.zeros(images, height + 1, width + 1, dtype=torch.int32, device=corners.device)
    ones = torch.ones_like(image, dtype=torch.int32)
    for row, column, sign in ((y1, x1, 1), (y2, x2, 1), (y1, x2, -1), (y2, x1, -1)):
        change.index_put_((image, row, column), sign * ones, accumulate=True)
    return change.cumsum(1).cumsum(2)[:, :height, :width] > 0


def _mark_near_boxes(corners: Tensor, image: Tensor, images: int, stride: int, shape: Shape, phi: float) -> Tensor:
    """Cells with an anchor whose IoU with a box is above the threshold: (B, H, W) bool.

    The anchors of one shape differ only in position, so their intersection with a box is an overlap of columns times an
    overlap of rows. The largest intersection is that of the best column and the best row, and in each row the columns
    with enough overlap are contiguous. So the region is the first and the last column of each box, anchor shape and
    row.
    """
    height, width = shape
    side = ANCHOR_SCALE * stride
    ratios = torch.tensor(ANCHOR_RATIOS, dtype=torch.float64, device=corners.device)[:, None]  # (A, 1)
    half_width, half_height = side / ratios.sqrt() / 2, side * ratios.sqrt() / 2
    change = torch.zeros(images * height * (width + 1), dtype=torch.int32, device=corners.device)
    order = (corners[:, 3] - corners[:, 1]).argsort()  # boxes of equal height need equally many rows
    for indices in order.split(BOXES_AT_ONCE):
        part = corners[indices]
        x1, y1, x2, y2 = (corner[:, None, None] for corner in part.double().unbind(1))  # (G, 1, 1)
        columns_overlap = _overlap(_best_centres(x1, x2, stride, width), half_width, x1, x2)  # (G, A, 1), best column
        rows_overlap = _overlap(_best_centres(y1, y2, stride, height), half_height, y1, y2)  # (G, A, 1), best row
        areas = (x2 - x1) * (y2 - y1) + side**2  # (G, 1, 1)
        best = columns_overlap * rows_overlap
        threshold = phi * (best / (areas - best)).amax(dim=1, keepdim=True)  # (G, 1, 1)
        # IoU = I / (areas - I) is above the threshold where I is greater than this; rounding must not decide ties.
        intersection = threshold * areas / (1 + threshold) * (1 + 1e-12)
        rows = _anchor_rows(part, side, stride, height)[:, None]  # (G, 1, rows), `height` where there are no more
        rows_overlap = _overlap(rows * stride, half_height, y1, y2)  # (G, A, rows)
        overlaps = (rows_overlap > 0) & (rows < height)
        required = intersection / stride / rows_overlap.clamp_(min=1e-12)  # overlap of columns, in cells
        enough = overlaps & (required < torch.minimum(2 * half_width, x2 - x1) / stride)
        first = torch.floor((x1 - half_width) / stride + required).add_(1).clamp_(0, width).to(torch.int64)
        end = torch.ceil((x2 + half_width) / stride - required).clamp_(0, width).to(torch.int64)
        row = (image[indices][:, None, None] * height + rows.clamp(max=height - 1)) * (width + 1)
        change_by = enough.logical_and_(first < end).to(torch.int32).flatten()
        change.scatter_add_(0, (row + first).flatten(), change_by)
        change.scatter_add_(0, (row + end).flatten(), change_by.neg_())
    return change.view(images, height, width + 1).cumsum(2)[..., :width] > 0


def _best_centres(begin: Tensor, end: Tensor, stride: int, cells: int) -> Tensor:
    """Centres, in pixels, of the anchors that overlap each box most along one axis: those nearest to its centre."""
    return ((begin + end) / (2 * stride)).round().clamp(0, cells - 1) * stride


def _anchor_rows(corners: Tensor, side: float, stride: int, height: int) -> Tensor:
    """Rows whose anchors can overlap each box, (G, rows of the tallest box); filled up with `height`."""
    reach = side / min(ANCHOR_RATIOS) ** 0.5 / 2  # half of the tallest anchor
    first = ((corners[:, 1] - reach) / stride).floor().clamp(0, height).to(torch.int64)
    end = ((corners[:, 3] + reach) / stride).ceil().clamp(0, height).to(torch.int64)
    most = max(1, int((end - first).amax())) if len(corners) else 1
    rows: Tensor = first[:, None] + torch.arange(most, device=corners.device)
    return rows.clamp(max=height)


def _overlap(centres: Tensor, half: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Overlap of anchors and boxes along one axis, at least 0: (G, A, centres)."""
    return (torch.minimum(centres + half, end) - torch.maximum(centres - half, begin)).clamp(min=0)


def _inverse_areas(corners: Tensor, image: Tensor, images: int, stride: int, shape: Shape) -> Tensor:
    """One over the area of the smallest box on each cell, 0 where there is none: (B, H, W)."""
    height, width = shape
    left, top = (corners[:, :2] / stride).floor().unbind(1)
    right, bottom = (corners[:, 2:] / stride).ceil().unbind(1)
    areas = (right + 1 - left) * (bottom + 1 - top)
    rows, columns = (torch.arange(size, device=corners.device) for size in shape)
    region = torch.zeros(images, height * width, device=corners.device)
    for indices in torch.arange(len(corners), device=corners.device).split(max(1, CELLS_AT_ONCE // (height * width))):
        in_rows = (rows >= top[indices, None]) & (rows <= bottom[indices, None])  # (G, H)
        in_columns = (columns >= left[indices, None]) & (columns <= right[indices, None])  # (G, W)
        weights = ((in_rows[:, :, None] & in_columns[:, None]) / areas[indices, None, None]).flatten(1).float()
        region.scatter_reduce_(0, image[indices, None].expand_as(weights), weights, "amax")
    return region.view(images, height, width)


def _gaussian_weights(corners: Tensor, image: Tensor, images: int, stride: int, shape: Shape) -> Tensor:
    """The largest Gaussian weight of any box in each cell: (B, H, W)."""
    height, width = shape
    x1, y1, x2, y2, empty = _box_cells(corners, stride)
    left, right, top, bottom = x1.clamp(0, width), x2.clamp(0, width), y1.clamp(0, height), y2.clamp(0, height)
    half_width, half_height = (x2 - x1) / 2, (y2 - y1) / 2
    # Offsets from the centre, in standard deviations.
    offset_left, offset_top = (left - x1) / half_width - 1, (top - y1) / half_height - 1
    step_x, step_y = 1 / half_width, 1 / half_height
    for value in (offset_left, offset_top, step_x, step_y):
        value.masked_fill_(empty, 0)  # the one cell of an empty box has weight 1
    region = torch.zeros(images * height * width, device=corners.device)
    for boxes in _split_by_cells((right - left) * (bottom - top)):
        row_box, row_index = _enumerate_parts((bottom - top)[boxes])
        box = boxes[row_box]  # (rows of all these boxes,)
        offset_y = offset_top[box] + row_index * step_y[box]
        first_cell = (image[box] * height + top[box] + row_index) * width + left[box]
        cell_row, column_index = _enumerate_parts((right - left)[box])  # (cells of all these boxes,)
        offset_x, step, offset_y, first_cell = (
            of_rows.index_select(0, cell_row) for of_rows in (offset_left[box], step_x[box], offset_y, first_cell)
        )
        weight = torch.exp(((offset_x + column_index * step).square() + offset_y.square()) / -2)
        region.scatter_reduce_(0, first_cell + column_index, weight, "amax")
    return region.view(images, height, width)


def _split_by_cells(cells: Tensor) -> Iterator[Tensor]:
    """Split boxes, given their (G,) numbers of cells, into groups of limited total size; yields the box indices."""
    group = cells.cumsum(0) // CELLS_AT_ONCE
    for number in group.unique().tolist():
        yield (group == number).nonzero()[:, 0]


def _enumerate_parts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For items with (G,) numbers of parts, the item that each part belongs to and its index within the item."""
    item = torch.repeat_interleave(counts)
    begin = counts.cumsum(0) - counts
    return item, torch.arange(len(item), device=item.device) - begin.index_select(0, item)
