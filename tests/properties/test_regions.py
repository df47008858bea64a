"""Regions: inside the map, shrinking with the boxes, and invariant to the order of boxes and images."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from defeat.distillation.regions import (
    PAINTERS,
    backbone_regions,
    box_strides,
    gaussian_regions,
    near_object_regions,
    object_regions,
    paint_boxes,
    whole_regions,
)
from tests.properties.draws import BATCH, BOX, STRIDES, boxes, properties, shapes

EVERY = st.sampled_from([*PAINTERS.values(), backbone_regions])
OF_BOXES = st.sampled_from([object_regions, near_object_regions, gaussian_regions, backbone_regions])
SIZE = (256, 320)


def equal(left, right):
    return left.keys() == right.keys() and all(
        torch.allclose(left[stride].float(), right[stride].float()) for stride in left
    )


@properties
@given(EVERY, BATCH, st.integers(1, 300), st.integers(1, 300))
def test_regions_have_the_shape_of_their_map_and_weights_from_zero_to_one(paint, batch, height, width):
    result = paint([boxes(rows) for rows in batch], shapes(height, width))
    assert {stride: tuple(region.shape) for stride, region in result.items()} == {
        stride: (len(batch), *shape) for stride, shape in shapes(height, width).items()
    }
    for region in result.values():
        assert region.dtype == (torch.float32 if paint is gaussian_regions else torch.bool)
        assert region.float().isfinite().all()
        assert ((region >= 0) & (region <= 1)).all()


@properties
@given(BOX, st.sampled_from(STRIDES))
def test_painted_cells_overlap_the_box(box, stride):
    region = paint_boxes([boxes([box])], stride, shapes()[stride])[0]
    x1, y1, x2, y2 = box
    for row, column in region.nonzero().tolist():
        assert column * stride < x2
        assert (column + 1) * stride > x1
        assert row * stride < y2
        assert (row + 1) * stride > y1


@st.composite
def nested(draw):
    """A box inside another; both are at least as wide and as high as a cell of the coarsest level."""
    outer = draw(BOX)
    assume(outer[2] - outer[0] >= max(STRIDES) and outer[3] - outer[1] >= max(STRIDES))
    inner = []
    for begin, end in ((outer[0], outer[2]), (outer[1], outer[3])):
        side = draw(st.integers(2 * max(STRIDES), int(2 * (end - begin)))) / 2
        first = begin + draw(st.integers(0, int(2 * (end - begin - side)))) / 2
        inner.append((first, first + side))
    (x1, x2), (y1, y2) = inner
    return (x1, y1, x2, y2), outer


@properties
@given(nested(), st.sampled_from(STRIDES))
def test_a_box_inside_another_paints_a_subset_of_its_cells(pair, stride):
    smaller, larger = (paint_boxes([boxes([box])], stride, shapes()[stride]) for box in pair)
    assert not (smaller & ~larger).any()


@properties
@given(nested())
def test_a_smaller_box_never_belongs_to_a_coarser_level(pair):
    smaller, larger = box_strides(boxes(pair), STRIDES).tolist()
    assert smaller <= larger


@properties
@given(nested())
def test_backbone_regions_shrink_with_the_box(pair):
    smaller, larger = (backbone_regions([boxes([box])], shapes()) for box in pair)
    assert not any((smaller[stride] & ~larger[stride]).any() for stride in STRIDES)


@properties
@given(BATCH, BOX)
def test_removing_a_box_never_adds_a_cell(batch, box):
    fewer, more = [boxes(rows) for rows in batch], [boxes([box, *rows]) for rows in batch]
    for paint in (object_regions, near_object_regions, gaussian_regions, backbone_regions):
        before, after = paint(fewer, shapes()), paint(more, shapes())
        assert all((before[stride].float() <= after[stride].float()).all() for stride in STRIDES), paint


@properties
@given(st.integers(0, 255), st.integers(0, 319), st.integers(1, 320), st.integers(1, 256))
def test_a_box_in_the_image_is_painted_on_exactly_one_level(y, x, width, height):
    box = boxes([(x, y, min(x + width, SIZE[1]), min(y + height, SIZE[0]))])
    result = object_regions([box], shapes(*SIZE))
    assert [stride for stride, region in result.items() if region.any()] == box_strides(box, STRIDES).tolist()
    everywhere = backbone_regions([box], shapes(*SIZE))
    assert everywhere[4].any()


@properties
@given(BATCH, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_phi_gives_a_smaller_region(batch, phi, other_phi):
    rows = [boxes(image) for image in batch]
    wide, narrow = (near_object_regions(rows, shapes(), threshold) for threshold in sorted((phi, other_phi)))
    assert not any((narrow[stride] & ~wide[stride]).any() for stride in STRIDES)
    assert not any(region.any() for region in near_object_regions(rows, shapes(), 1.0).values())


@properties
@given(BOX, st.floats(0, 1))
def test_near_cells_have_an_anchor_that_overlaps_the_box(box, phi):
    result = near_object_regions([boxes([box])], shapes(), phi)
    for stride, region in result.items():
        reach = 8 * stride / 2 * 2**0.5  # half of the longest side of an anchor
        for row, column in region[0].nonzero().tolist():
            assert box[0] - reach < column * stride < box[2] + reach
            assert box[1] - reach < row * stride < box[3] + reach


@properties
@given(BATCH)
def test_gaussians_cover_the_painted_cells(batch):
    rows = [boxes(rows) for rows in batch]
    weights, cells = gaussian_regions(rows, shapes()), object_regions(rows, shapes())
    assert all(torch.equal(weights[stride] > 0, cells[stride]) for stride in STRIDES)
    # No weight is below that of a box's corner, exp(-1).
    assert all((weights[stride][cells[stride]] > 0.367).all() for stride in STRIDES)


@pytest.mark.parametrize("paint", [object_regions, near_object_regions, gaussian_regions, backbone_regions])
@properties
@given(BATCH)
def test_the_region_of_many_boxes_is_the_union_of_their_regions(paint, batch):
    together = paint([boxes(rows) for rows in batch], shapes())
    for number, image in enumerate(batch):
        apart = [paint([boxes([box])], shapes()) for box in image]
        for stride, region in together.items():
            union = torch.zeros(region.shape[1:])
            for regions in apart:
                union = torch.maximum(union, regions[stride][0].float())
            assert torch.allclose(region[number].float(), union)


@properties
@given(EVERY, BATCH, st.randoms(use_true_random=False))
def test_the_order_of_images_and_boxes_does_not_matter(paint, batch, random):
    order = random.sample(range(len(batch)), len(batch))
    mixed = [random.sample(batch[index], len(batch[index])) for index in order]
    before, after = (paint([boxes(rows) for rows in images], shapes()) for images in (batch, mixed))
    assert equal({stride: region[order] for stride, region in before.items()}, after)


@properties
@given(EVERY, BATCH)
def test_regions_are_transposed_with_their_boxes(paint, batch):
    result = paint([boxes(rows) for rows in batch], shapes(256, 320))
    permuted = paint([boxes(rows)[:, [1, 0, 3, 2]] for rows in batch], shapes(320, 256))
    assert equal({stride: region.transpose(1, 2) for stride, region in result.items()}, permuted)


@st.composite
def on_the_grid(draw):
    """Boxes whose corners lie on the borders of the coarsest level's cells, inside the image."""
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        x1, y1 = draw(st.integers(0, 19)), draw(st.integers(0, 15))
        x2, y2 = draw(st.integers(x1 + 1, 20)), draw(st.integers(y1 + 1, 16))
        rows.append([16 * corner for corner in (x1, y1, x2, y2)])
    return boxes(rows)


def mirrored(rows, width):
    return torch.stack([width - rows[:, 2], rows[:, 1], width - rows[:, 0], rows[:, 3]], dim=1)


@properties
@given(on_the_grid())
def test_painted_regions_are_flipped_with_their_boxes(rows):
    result, flipped = object_regions([rows], shapes(*SIZE)), object_regions([mirrored(rows, SIZE[1])], shapes(*SIZE))
    assert equal({stride: region.flip(2) for stride, region in result.items()}, flipped)


@properties
@given(BATCH, st.sampled_from(STRIDES), st.floats(0.05, 0.95))
def test_near_regions_are_flipped_with_their_boxes(batch, stride, phi):
    # Anchors stand on the left border of their cell: the mirror is that of the first and the last column.
    level = {stride: shapes(*SIZE)[stride]}
    rows = [boxes(rows) for rows in batch]
    result = near_object_regions(rows, level, phi)[stride]
    other = near_object_regions(
        [mirrored(image_boxes, (level[stride][1] - 1) * stride) for image_boxes in rows], level, phi
    )[stride]
    assert torch.equal(result.flip(2), other)


@properties
@given(st.integers(1, 3), OF_BOXES)
def test_without_boxes_only_the_whole_region_contains_cells(images, paint):
    nothing = [boxes([])] * images
    assert not any(region.any() for region in paint(nothing, shapes()).values())
    assert all(region.all() for region in whole_regions(nothing, shapes()).values())
