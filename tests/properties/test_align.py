"""Alignment: levels are matched by stride, resized maps stay in range, adaptation is linear."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defeat.distillation.align import Adaptation, match_levels, rescale_boxes, resize_map
from defeat.errors import InputError
from tests.properties.draws import BATCH, boxes, map_pairs, numbers, properties, shuffled

CHANNELS = st.dictionaries(st.sampled_from([2**power for power in range(1, 9)]), st.integers(1, 64), min_size=1)
SCALES = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 0.75])


@properties
@given(CHANNELS, CHANNELS, st.none() | st.lists(st.sampled_from([4, 8, 16, 32, 64]), max_size=4))
def test_only_common_strides_are_matched(student, teacher, only):
    common = {stride for stride in student.keys() & teacher.keys() if only is None or stride in only}
    if not common:
        with pytest.raises(InputError):
            match_levels(student, teacher, "neck", only)
        return
    pairs = match_levels(student, teacher, "neck", only)
    assert list(pairs) == sorted(common)
    for stride, pair in pairs.items():
        assert (pair.stride, pair.teacher_stride) == (stride, stride)
        assert (pair.channels, pair.teacher_channels) == (student[stride], teacher[stride])


@properties
@given(CHANNELS, CHANNELS)
def test_every_level_is_matched_to_the_nearest(student, teacher):
    pairs = match_levels(student, teacher, "neck", missing="nearest")
    assert list(pairs) == sorted(student)
    for stride, pair in pairs.items():
        distances = {other: abs(math.log2(other) - math.log2(stride)) for other in teacher}
        nearest = [other for other, distance in distances.items() if distance == min(distances.values())]
        assert pair.teacher_stride == min(nearest)
        assert pair.teacher_channels == teacher[pair.teacher_stride]


@st.composite
def resizing(draw):
    """A teacher's map, and the scale and shape of a student's map that it covers."""
    height, width, scale = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(SCALES)
    own = [max(1, round(side * scale)) + draw(st.integers(0, 2)) for side in (height, width)]
    level = draw(numbers((draw(st.integers(1, 2)), draw(st.integers(1, 3)), *own), 1e30))
    return level, scale, (height, width)


@properties
@given(st.data(), resizing())
def test_a_resized_map_has_the_students_shape_and_values_in_the_range_of_the_teachers(data, drawn):
    level, scale, shape = drawn
    result = resize_map(level, scale, shape)
    assert result.shape == (*level.shape[:2], *shape)
    assert result.isfinite().all()
    rounding = 1e-5 * float(level.abs().max())
    assert (result.amax(dim=(2, 3)) <= level.amax(dim=(2, 3)) + rounding).all()
    assert (result.amin(dim=(2, 3)) >= level.amin(dim=(2, 3)) - rounding).all()
    images, channels = (shuffled(data.draw, count) for count in level.shape[:2])
    again = resize_map(level[images][:, channels], scale, shape)
    assert torch.allclose(again, result[images][:, channels], rtol=1e-5, atol=rounding)


@properties
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2, 3]), st.data())
def test_a_resized_map_is_flipped_with_its_source(height, width, scale, data):
    level = data.draw(numbers((1, 2, scale * height, scale * width), 1e3))
    level = level + torch.arange(level.numel()).view_as(level).square()  # no two rows or columns alike
    result = resize_map(level, float(scale), (height, width))
    for side in (-1, -2):
        assert torch.allclose(resize_map(level.flip(side), float(scale), (height, width)), result.flip(side), atol=1e-2)


@properties
@given(map_pairs())
def test_a_map_of_the_students_size_is_not_copied(pair):
    assert resize_map(pair[0], 1.0, tuple(pair[0].shape[-2:])) is pair[0]


@properties
@given(map_pairs(), st.integers(1, 4), st.integers(0, 99))
def test_an_adaptation_is_linear_and_keeps_the_cells(pair, channels, seed):
    left, right = (level.float() for level in pair)
    torch.manual_seed(seed)
    levels = match_levels({8: left.shape[1]}, {8: channels}, "neck")
    adaptation = Adaptation(levels)
    with torch.no_grad():
        none, first, second, both = (adaptation(level, 8) for level in (0 * left, left, right, left + right))
    assert both.shape == (len(left), channels, *left.shape[2:])
    assert torch.allclose(first + second - none, both, atol=1e-4 * max(1.0, float(both.abs().max())))
    cut = Adaptation(levels, activation=True)
    cut.load_state_dict(adaptation.state_dict())
    with torch.no_grad():
        assert torch.equal(cut(left, 8), first.clamp(min=0))


@properties
@given(BATCH, st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0]))
def test_rescaling_boxes_can_be_reversed(batch, factor):
    rows = [boxes(rows) for rows in batch]
    there = rescale_boxes(rows, factor)
    assert all(torch.equal(after, before * factor) for before, after in zip(rows, there, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(rescale_boxes(there, 1 / factor), rows, strict=True))
