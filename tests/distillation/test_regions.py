"""Which cells belong to objects, by hand and against a plain loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from defeat.distillation.regions import (
    backbone_regions,
    box_strides,
    gaussian_regions,
    near_object_regions,
    object_regions,
    paint_boxes,
    whole_regions,
)

FASTER_RCNN = [4, 8, 16, 32, 64]
RETINANET = [8, 16, 32, 64, 128]


def painted(boxes, stride, shape):
    """The cells of one image that are painted, as (row, column)."""
    region = paint_boxes([torch.tensor(boxes).reshape(-1, 4)], stride, shape)[0]
    return {tuple(cell) for cell in region.nonzero().tolist()}


def cells(rows, columns):
    return {(row, column) for row in rows for column in columns}


# With sides w = h the rule reads floor(log2((w + 1) / 56)), counted from stride 4: it changes at w + 1 = 112, 224, ...
@pytest.mark.parametrize(
    ("side", "stride"),
    [(1, 4), (54, 4), (55, 4), (110, 4), (111, 8), (222, 8), (223, 16), (446, 16), (447, 32), (895, 64), (9000, 64)],
)
def test_the_level_of_a_box_doubles_with_its_side(side, stride):
    box = torch.tensor([[10.0, 20.0, 10.0 + side, 20.0 + side]])
    assert box_strides(box, FASTER_RCNN).tolist() == [stride]
    # A pyramid that starts at stride 8 follows the same rule, with small boxes on its first level.
    assert box_strides(box, RETINANET).tolist() == [min(max(stride, 8), 128) if side < 9000 else 128]


def test_the_level_of_a_long_box_depends_on_its_area():
    # (27 + 1) * (447 + 1) = 112 * 112
    assert box_strides(torch.tensor([[0.0, 0.0, 447.0, 27.0], [0.0, 0.0, 446.0, 27.0]]), FASTER_RCNN).tolist() == [8, 4]


def test_no_boxes_give_no_levels():
    assert box_strides(torch.zeros(0, 4), FASTER_RCNN).shape == (0,)


def test_corners_are_divided_and_truncated():
    # At stride 8, 9 to 33 is 1.1 to 4.1: columns 1, 2, 3; and 15 to 24 is 1.9 to 3: rows 1, 2.
    assert painted([9.0, 15.0, 33.0, 24.0], 8, (8, 8)) == cells([1, 2], [1, 2, 3])


def test_a_box_that_ends_inside_a_cell_leaves_it_out():
    assert painted([0.0, 0.0, 15.9, 16.0], 8, (8, 8)) == cells([0, 1], [0])


@pytest.mark.parametrize("box", [[17.0, 9.0, 22.0, 15.0], [17.0, 9.0, 40.0, 15.0], [17.0, 9.0, 22.0, 40.0]])
def test_a_box_without_extent_paints_one_cell(box):
    # If it begins and ends in the same cell in one or both directions, the cell of its upper left corner is marked.
    assert painted(box, 8, (8, 8)) == {(1, 2)}


def test_a_box_is_clipped_to_the_map():
    assert painted([-20.0, 40.0, 400.0, 500.0], 8, (8, 8)) == cells([5, 6, 7], range(8))


@pytest.mark.parametrize("box", [[70.0, 0.0, 90.0, 20.0], [0.0, 70.0, 20.0, 90.0], [-60.0, -60.0, -30.0, -30.0]])
def test_a_box_outside_paints_nothing(box):
    assert painted(box, 8, (8, 8)) == set()


def test_overlapping_boxes_paint_their_union():
    both = painted([[0.0, 0.0, 24.0, 24.0], [16.0, 16.0, 40.0, 40.0]], 8, (8, 8))
    assert both == cells(range(3), range(3)) | cells(range(2, 5), range(2, 5))


def test_images_are_painted_separately():
    boxes = [torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.zeros(0, 4), torch.tensor([[8.0, 8.0, 16.0, 16.0]])]
    region = paint_boxes(boxes, 8, (2, 2))
    assert region.dtype == torch.bool
    assert region.int().tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 1]]]


def test_a_batch_without_boxes_is_all_background():
    regions = object_regions([torch.zeros(0, 4)] * 2, {4: (8, 8), 8: (4, 4)})
    assert {stride: tuple(region.shape) for stride, region in regions.items()} == {4: (2, 8, 8), 8: (2, 4, 4)}
    assert not any(region.any() for region in regions.values())


def test_each_box_is_painted_on_its_level_only():
    # Sides 16 and 120: 17 / 56 is below the first level, 121 / 56 = 2.2 gives the second.
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 120.0, 120.0]])
    regions = object_regions([boxes], {4: (32, 32), 8: (16, 16), 16: (8, 8)})
    assert {stride: int(region.sum()) for stride, region in regions.items()} == {4: 16, 8: 225, 16: 0}


def by_loop(boxes, shapes):
    """The rule as a plain loop over boxes and cells."""
    strides = sorted(shapes)
    regions = {stride: torch.zeros(len(boxes), *shapes[stride], dtype=torch.bool) for stride in strides}
    for image, image_boxes in enumerate(boxes):
        for x1, y1, x2, y2 in image_boxes.tolist():
            level = math.floor(math.log2(math.sqrt((x2 - x1 + 1) * (y2 - y1 + 1)) / 56 + 1e-6))
            stride = min(max(4 * 2**level, strides[0]), strides[-1])
            left, top, right, bottom = (int(corner / stride) for corner in (x1, y1, x2, y2))
            if right <= left or bottom <= top:
                right, bottom = left + 1, top + 1
            for row in range(top, bottom):
                for column in range(left, right):
                    if row < shapes[stride][0] and column < shapes[stride][1]:
                        regions[stride][image, row, column] = True
    return regions


# Halves of pixels are exact in every precision, so that a corner never falls on two sides of a cell's border.
corner = st.integers(0, 600).map(lambda value: value / 2)
box = st.tuples(corner, corner, st.integers(1, 500).map(lambda value: value / 2), st.integers(1, 500)).map(
    lambda values: [values[0], values[1], values[0] + values[2], values[1] + values[3]]
)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.lists(st.lists(box, max_size=6), min_size=1, max_size=3), strides=st.sampled_from([RETINANET, [4, 8, 16]])
)
def test_all_boxes_at_once_equal_a_plain_loop(batch, strides):
    boxes = [torch.tensor(image_boxes, dtype=torch.float32).reshape(-1, 4) for image_boxes in batch]
    shapes = {stride: (-(-256 // stride), -(-320 // stride)) for stride in strides}
    expected, regions = by_loop(boxes, shapes), object_regions(boxes, shapes)
    for stride in strides:
        assert torch.equal(regions[stride], expected[stride]), stride


def near_by_loop(boxes, shapes, phi):
    """FGFI's rule as a plain loop: every anchor of every cell against every box of the level."""
    strides = sorted(shapes)
    regions = {stride: torch.zeros(len(boxes), *shapes[stride], dtype=torch.bool) for stride in strides}
    for image, image_boxes in enumerate(boxes):
        for box, stride in zip(image_boxes.double(), box_strides(image_boxes, strides).tolist(), strict=True):
            height, width = shapes[stride]
            anchors = torch.tensor(
                [
                    [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                    for y in range(0, height * stride, stride)
                    for x in range(0, width * stride, stride)
                    for w, h in ((8 * stride / r**0.5, 8 * stride * r**0.5) for r in (0.5, 1, 2))
                ],
                dtype=torch.float64,
            )
            iou = box_iou(box[None], anchors)[0].view(height, width, 3)
            regions[stride][image] |= (iou > phi * iou.max()).any(dim=2)
    return regions


@settings(max_examples=30, deadline=None)
@given(
    batch=st.lists(st.lists(box, max_size=4), min_size=1, max_size=2),
    strides=st.sampled_from([RETINANET, [8, 16]]),
    # Not ratios that boxes and anchors with corners at half pixels can have exactly.
    phi=st.sampled_from([0.0, 0.317, 0.509, 0.873]),
)
def test_near_objects_equals_a_plain_loop(batch, strides, phi):
    boxes = [torch.tensor(image_boxes, dtype=torch.float32).reshape(-1, 4) for image_boxes in batch]
    shapes = {stride: (-(-256 // stride), -(-320 // stride)) for stride in strides}
    expected, regions = near_by_loop(boxes, shapes, phi), near_object_regions(boxes, shapes, phi)
    for stride in strides:
        assert torch.equal(regions[stride], expected[stride]), stride


def test_near_objects_by_hand():
    # A box equal to an anchor (stride 8, side 64): k cells to the right, the overlap is 64 - 8k columns, so the IoU is
    # (64 - 8k) / (64 + 8k). More than half of the best (1) up to k = 2: 48/80; k = 3: 40/88.
    region = near_object_regions([torch.tensor([[32.0, 32.0, 96.0, 96.0]])], {8: (16, 16)}, 0.5)[8][0]
    assert region[8].nonzero()[:, 0].tolist() == [6, 7, 8, 9, 10]
    # Diagonally one step is 56^2 / (2 * 64^2 - 56^2) = 0.62, two are 48^2 / (2 * 64^2 - 48^2) = 0.39.
    assert bool(region[9, 9])
    assert not bool(region[10, 10])


def test_phi_of_one_marks_no_cell():
    boxes = [torch.tensor([[10.0, 20.0, 70.0, 90.0]])]
    assert not near_object_regions(boxes, {8: (16, 16)}, 1.0)[8].any()


def test_a_box_that_no_anchor_overlaps_marks_nothing():
    regions = near_object_regions([torch.tensor([[900.0, 900.0, 940.0, 940.0]])], {8: (16, 16)}, 0.0)
    assert not regions[8].any()


def gaussian_by_loop(boxes, shapes):
    strides = sorted(shapes)
    regions = {stride: torch.zeros(len(boxes), *shapes[stride]) for stride in strides}
    for image, image_boxes in enumerate(boxes):
        levels = box_strides(image_boxes, strides).tolist()
        for (x1, y1, x2, y2), stride in zip(image_boxes.tolist(), levels, strict=True):
            left, top, right, bottom = (int(corner / stride) for corner in (x1, y1, x2, y2))
            point = right <= left or bottom <= top
            if point:
                right, bottom = left + 1, top + 1
            cx, cy = (right - left) / 2, (bottom - top) / 2
            for row in range(top, min(bottom, shapes[stride][0])):
                for column in range(left, min(right, shapes[stride][1])):
                    off = ((column - left - cx) / cx) ** 2 + ((row - top - cy) / cy) ** 2
                    weight = 1.0 if point else math.exp(-off / 2)
                    regions[stride][image, row, column] = max(regions[stride][image, row, column].item(), weight)
    return regions


@settings(max_examples=40, deadline=None)
@given(batch=st.lists(st.lists(box, max_size=5), min_size=1, max_size=3), strides=st.sampled_from([RETINANET, [4, 8]]))
def test_gaussians_equal_a_plain_loop(batch, strides):
    boxes = [torch.tensor(image_boxes, dtype=torch.float32).reshape(-1, 4) for image_boxes in batch]
    shapes = {stride: (-(-256 // stride), -(-320 // stride)) for stride in strides}
    expected, regions = gaussian_by_loop(boxes, shapes), gaussian_regions(boxes, shapes)
    for stride in strides:
        assert torch.allclose(regions[stride], expected[stride], atol=1e-6), stride


def test_a_gaussian_peaks_at_the_centre_and_falls_to_both_sides():
    # Columns 1 to 5 at stride 8: deviation 2 cells around column 3.
    region = gaussian_regions([torch.tensor([[8.0, 8.0, 40.0, 40.0]])], {8: (8, 8)})[8][0]
    assert region[3, 3] == 1
    assert region[3, 1].item() == pytest.approx(math.exp(-0.5))
    assert region[1, 1].item() == pytest.approx(math.exp(-1))
    assert region[3, 5] == 0


@pytest.mark.parametrize("paint", [object_regions, near_object_regions, gaussian_regions])
def test_many_boxes_are_painted_in_pieces_of_bounded_size(paint, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    corners = 200 * torch.rand(300, 2, generator=generator)
    boxes = [torch.cat([corners, corners + 5 + 200 * torch.rand(300, 2, generator=generator)], dim=1)]
    shapes = {4: (80, 80), 8: (40, 40)}
    whole = paint(boxes, shapes)
    monkeypatch.setattr("defeat.distillation.regions.BOXES_AT_ONCE", 7)
    monkeypatch.setattr("defeat.distillation.regions.CELLS_AT_ONCE", 500)
    for stride, region in paint(boxes, shapes).items():
        assert torch.equal(region, whole[stride])
        assert region.any()


def test_the_whole_region_contains_every_cell():
    regions = whole_regions([torch.zeros(0, 4), torch.zeros(0, 4)], {8: (3, 4)})
    assert regions[8].shape == (2, 3, 4)
    assert regions[8].all()


def test_backbone_regions_hold_every_box_on_every_level():
    # At stride 4 the box is columns 2 to 5, rows 4 to 7. By nearest neighbour, cell i of stride 8 is cell 2i of
    # stride 4: columns 1 and 2 (cells 2 and 4), rows 2 and 3 (cells 4 and 6).
    boxes = [torch.tensor([[8.0, 16.0, 24.0, 32.0]])]
    regions = backbone_regions(boxes, {8: (8, 8), 16: (4, 4)})
    assert {tuple(cell) for cell in regions[8][0].nonzero().tolist()} == cells([2, 3], [1, 2])
    # Cell i of stride 16 is cell 4i of stride 4: column 1 (cell 4), row 1 (cell 4).
    assert {tuple(cell) for cell in regions[16][0].nonzero().tolist()} == cells([1], [1])
