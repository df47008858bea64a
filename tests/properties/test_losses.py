"""Losses: not negative, zero for equal features, invariant to order and flips, and finite."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defeat.distillation.differences import (
    absolute_difference,
    divisive_difference,
    squared_difference,
    standardise,
    standardised_difference,
)
from defeat.distillation.losses import (
    masked_mean,
    region_mean,
    sigmoid_cross_entropy,
    sigmoid_divergence,
    softmax_cross_entropy,
    softmax_divergence,
)
from tests.properties.draws import LARGEST, logit_pairs, map_pairs, numbers, properties, shuffled

DIFFERENCES = st.sampled_from([squared_difference, absolute_difference])
DIVERGENCES = st.sampled_from([softmax_divergence, sigmoid_divergence])
CROSS_ENTROPIES = st.sampled_from([softmax_cross_entropy, sigmoid_cross_entropy])
TEMPERATURES = st.sampled_from([0.5, 1.0, 3.0, 10.0])
EVERYTHING = LARGEST[torch.float32]


def close(first, second, tolerance=1e-4):
    return torch.allclose(
        first.float(), second.float(), rtol=tolerance, atol=tolerance * max(1.0, float(first.abs().max()))
    )


def with_gradient(loss, student):
    """A loss of a student's (float32) tensor, and its gradient."""
    leaf = student.float().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


@properties
@given(DIFFERENCES, map_pairs())
def test_differences_are_not_negative_and_symmetric(difference, pair):
    student, teacher = (level.float() for level in pair)
    result = difference(student, teacher)
    assert result.shape == (student.shape[0], *student.shape[2:])
    assert (result >= 0).all()
    assert torch.equal(result, difference(teacher, student))
    # Zero where the maps are equal, and only there.
    apart = (student - teacher).abs().amax(dim=1)
    assert (result[apart == 0] == 0).all()
    assert (result[apart > 1e-15] > 0).all()


@properties
@given(DIFFERENCES, map_pairs(EVERYTHING))
def test_equal_maps_have_no_difference_and_no_gradient(difference, pair):
    teacher = pair[0].float()
    value, gradient = with_gradient(lambda student: difference(student, teacher), teacher)
    assert not value.any()
    assert not gradient.any()


# The square of 1e15, summed over a hundred million elements, fits float32.
@properties
@given(st.sampled_from([squared_difference, absolute_difference]), map_pairs(1e15))
def test_differences_are_finite_up_to_1e15(difference, pair):
    student, teacher = (level.float() for level in pair)

    def loss(result):
        return region_mean(difference(result, teacher), torch.ones_like(result[:, 0]), result.shape[1])

    value, gradient = with_gradient(loss, student)
    assert value.isfinite()
    assert gradient.isfinite().all()


@properties
@given(st.data(), DIFFERENCES, map_pairs())
def test_differences_follow_images_and_cells_and_do_not_depend_on_the_order_of_channels(data, difference, pair):
    student, teacher = (level.float() for level in pair)
    result = difference(student, teacher)
    images, channels = (shuffled(data.draw, count) for count in student.shape[:2])
    assert torch.equal(difference(student[images], teacher[images]), result[images])
    assert close(difference(student[:, channels], teacher[:, channels]), result)
    for side in (-1, -2):
        assert torch.equal(difference(student.flip(side), teacher.flip(side)), result.flip(side))


@properties
@given(DIFFERENCES, map_pairs())
def test_differences_do_not_depend_on_the_memory_format(difference, pair):
    student, teacher = (level.float() for level in pair)
    last = [level.contiguous(memory_format=torch.channels_last) for level in (student, teacher)]
    assert close(difference(*last), difference(student, teacher))


@properties
@given(map_pairs())
def test_a_squared_difference_is_quadratic(pair):
    student, teacher = (level.float() for level in pair)
    assert torch.equal(squared_difference(2 * student, 2 * teacher), 4 * squared_difference(student, teacher))


@properties
@given(map_pairs(1e6), st.sampled_from([-1.0, 1.0]))
def test_a_relative_difference_is_finite_away_from_zero_and_zero_for_equal_maps(pair, sign):
    student, teacher = pair[0].float(), sign * (pair[1].float().abs() + 1e-2)
    value, gradient = with_gradient(lambda result: divisive_difference(result, teacher), student)
    assert (value >= 0).all()
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert (divisive_difference(teacher, teacher) < 1e-10).all()
    assert torch.equal(divisive_difference(student.flip(-1), teacher.flip(-1)), value.flip(-1))


@st.composite
def cells(draw):
    """Values of cells (B, H, W), and the weights of a region on them."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)))
    return draw(numbers(shape, 1e3)).abs(), draw(numbers(shape, 1.0)).abs()


@properties
@given(cells(), st.integers(1, 300))
def test_a_region_mean_lies_between_the_minimum_and_the_maximum_of_its_cells(drawn, channels):
    per_cell, weight = drawn
    for region in (weight, weight > 0.3):
        result = 2 * channels * region_mean(per_cell, region, channels)
        if 2 * channels * region.sum() >= 1:
            inside = per_cell[region > 0]
            assert float(inside.min()) * 0.999 <= result <= float(inside.max()) * 1.001
        elif not region.any():
            assert result == 0


@properties
@given(cells(), st.integers(1, 300))
def test_a_region_and_the_rest_make_up_the_whole(drawn, channels):
    per_cell, weight = drawn
    region = weight > 0.3
    parts = [region_mean(per_cell, part, channels) * part.sum() for part in (region, ~region)]
    whole = region_mean(per_cell, torch.ones_like(region), channels) * region.numel()
    assert close(sum(parts), whole)


@properties
@given(st.data(), cells())
def test_a_region_mean_does_not_depend_on_order_flips_or_outside_values(data, drawn):
    per_cell, weight = drawn
    result = region_mean(per_cell, weight, 3)
    order = shuffled(data.draw, len(per_cell))
    assert close(region_mean(per_cell[order], weight[order], 3), result)
    for side in (-1, -2):
        assert close(region_mean(per_cell.flip(side), weight.flip(side), 3), result)
    changed = torch.where(weight > 0, per_cell, torch.inf)
    assert torch.equal(region_mean(changed, weight, 3), result)


@st.composite
def padded_maps(draw, limit):
    level = draw(map_pairs(limit))[0]
    valid = draw(numbers((level.shape[0], *level.shape[2:]), 1.0)) > -0.5
    valid[0, 0, 0] = True
    return level, valid


def constant(level, valid):
    """(C,) which channels have one value on all valid cells."""
    return torch.tensor([channel[valid].unique().numel() == 1 for channel in level.transpose(0, 1)])


@properties
@given(padded_maps(EVERYTHING), st.booleans())
def test_standardised_losses_are_finite_for_every_finite_map(drawn, channels_last):
    level, valid = drawn
    memory = torch.channels_last if channels_last else torch.contiguous_format
    expected = standardise(level.float().flip(1) / 3, valid)

    def loss(result):
        result = standardise(result.contiguous(memory_format=memory), valid)
        return region_mean(squared_difference(result, expected), valid, level.shape[1])

    value, gradient = with_gradient(loss, level)
    assert value.isfinite()
    assert gradient.isfinite().all()
    value, gradient = with_gradient(
        lambda result: region_mean(
            standardised_difference(result.contiguous(memory_format=memory), level.float().flip(1) / 3, valid),
            valid,
            level.shape[1],
        ),
        level,
    )
    assert value.isfinite()
    assert gradient.isfinite().all()
    result = standardise(level.float(), valid)
    # Of n values with variance 1 none is further from the mean than sqrt(n - 1).
    assert (result.abs().transpose(0, 1)[:, valid] <= valid.sum().sqrt() + 1e-2).all()


@properties
@given(padded_maps(1e3), st.integers(0, 110))
def test_standardised_maps_do_not_depend_on_a_channels_scale(drawn, power):
    level, valid = drawn[0].float(), drawn[1]
    level = level.clamp(-1e3, 1e3).round() + torch.arange(level.shape[-1])
    scaled = level * 2.0**power
    result, other = standardise(level, valid), standardise(scaled, valid)
    varied = ~constant(level, valid)
    inside = [level.transpose(0, 1)[varied][:, valid] for level in (result, other)]
    assert torch.allclose(*inside, atol=1e-2)


@properties
@given(st.data(), padded_maps(1e3))
def test_standardised_maps_follow_images_channels_and_flips(data, drawn):
    level, valid = drawn[0].float(), drawn[1]
    level = level.round()
    result = standardise(level, valid)
    images, channels = (shuffled(data.draw, count) for count in level.shape[:2])
    assert torch.allclose(standardise(level[images], valid[images]), result[images], atol=1e-2)
    assert torch.allclose(standardise(level[:, channels], valid), result[:, channels], atol=1e-2)
    for side in (-1, -2):
        assert torch.allclose(standardise(level.flip(side), valid.flip(side)), result.flip(side), atol=1e-2)


@properties
@given(padded_maps(1e3))
def test_standardised_channels_have_mean_zero_and_variance_one_or_none(drawn):
    level, valid = drawn[0].float().round(), drawn[1]
    inside = standardise(level, valid).transpose(0, 1)[:, valid]
    assert (inside.mean(dim=1).abs() < 1e-2).all()
    variance = inside.var(dim=1, unbiased=False)
    flat = constant(level, valid)
    assert (variance[flat] < 1e-2).all()
    assert torch.allclose(variance[~flat], torch.ones(()), atol=2e-2)


@properties
@given(DIVERGENCES, logit_pairs(), TEMPERATURES)
def test_divergences_are_not_negative_and_zero_for_equal_logits(divergence, pair, temperature):
    student, teacher = pair
    rounding = 1e-5 * temperature**2 * (1 + float(student.abs().max()) + float(teacher.abs().max()))
    assert (divergence(student, teacher, temperature) >= -rounding).all()
    assert (divergence(student, student, temperature) == 0).all()


@properties
@given(DIVERGENCES, TEMPERATURES, st.sampled_from([torch.float32, torch.bfloat16]), st.data())
def test_divergences_are_finite_and_their_gradient_is_bounded_by_the_temperature(divergence, temperature, dtype, data):
    student, teacher = (logits.float() for logits in data.draw(logit_pairs(1e30, dtype)))
    value, gradient = with_gradient(lambda result: divergence(result, teacher, temperature), student)
    assert value.isfinite().all()
    assert (gradient.abs() <= temperature * (1 + 1e-5)).all()


@properties
@given(
    st.data(),
    # The logarithm of a probability near 1 loses its digits in float32, so cross entropies have smaller logits.
    DIVERGENCES.map(lambda divergence: (divergence, 20.0))
    | CROSS_ENTROPIES.map(lambda entropy: (lambda student, teacher, _: entropy(student, teacher), 8.0)),
)
def test_comparisons_follow_the_boxes_and_do_not_depend_on_the_order_of_classes(data, comparison):
    compare, limit = comparison
    student, teacher = data.draw(logit_pairs(limit))
    result = compare(student, teacher, 2.0)
    rows, classes = (shuffled(data.draw, count) for count in student.shape)
    assert close(compare(student[rows], teacher[rows], 2.0), result[rows])
    assert close(compare(student[:, classes], teacher[:, classes], 2.0), result)


@properties
@given(logit_pairs(20.0), st.floats(-50, 50), st.floats(-50, 50))
def test_a_softmax_divergence_does_not_depend_on_a_shift_of_all_logits(pair, shift, other_shift):
    student, teacher = pair
    expected = softmax_divergence(student, teacher, 2.0)
    assert close(softmax_divergence(student + shift, teacher + other_shift, 2.0), expected, 1e-3)


@properties
@given(CROSS_ENTROPIES, logit_pairs(10.0))
def test_cross_entropies_are_smallest_for_equal_logits(compare, pair):
    student, teacher = pair
    result, least = compare(student, teacher), compare(teacher, teacher)
    assert (least >= 0).all()
    assert (result >= least - 1e-4).all()


@properties
@given(CROSS_ENTROPIES, st.sampled_from([torch.float32, torch.bfloat16]), st.data())
def test_cross_entropies_are_finite(compare, dtype, data):
    student, teacher = (logits.float() for logits in data.draw(logit_pairs(1e30, dtype)))
    value, gradient = with_gradient(lambda result: compare(result, teacher), student)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@properties
@given(st.data(), st.integers(1, 8))
def test_a_masked_mean_is_the_mean_of_the_masked_values(data, count):
    values = data.draw(numbers((count,), 1e3))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    result = masked_mean(values, mask)
    assert result.item() == pytest.approx(values[mask].double().mean().item() if mask.any() else 0, rel=1e-4, abs=1e-3)
    order = shuffled(data.draw, count)
    assert close(masked_mean(values[order], mask[order]), result)
    # Divided by a larger count, the same sum gives a smaller mean.
    assert abs(masked_mean(values, mask, torch.ones_like(mask))) <= abs(result)
