"""Confidence intervals over seeds and images are equivariant to shifts and scales."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defeat.evaluation.bootstrap import bootstrap_weights, interval_over_images, interval_over_seeds
from defeat.evaluation.matching import ClassMatches, average_precision_of_samples
from tests.properties.draws import properties

POINTS = st.floats(-100, 100).map(lambda value: round(value, 3))
SEEDS = st.lists(POINTS, min_size=2, max_size=40)
FIGURES = st.lists(POINTS, min_size=1, max_size=60)


@properties
@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 9))
def test_every_sample_has_the_size_of_the_test_set(images, samples, seed):
    weights = bootstrap_weights(images, samples, seed)
    assert weights.shape == (samples, images)
    assert (weights >= 0).all()
    assert (weights.sum(axis=1) == images).all()
    assert (bootstrap_weights(images, samples, seed) == weights).all()


@properties
@given(SEEDS, POINTS, st.sampled_from([-2.0, -1.0, 0.5, 3.0]))
def test_an_interval_over_seeds_contains_the_mean_and_follows_shift_scale_and_order(values, shift, scale):
    result = interval_over_seeds(values)
    assert result.low <= np.mean(values) + 1e-9
    assert result.high >= np.mean(values) - 1e-9
    assert (result.low + result.high) / 2 == pytest.approx(np.mean(values), abs=1e-6)
    again = interval_over_seeds([scale * value + shift for value in reversed(values)])
    ends = sorted(scale * end + shift for end in (result.low, result.high))
    assert [again.low, again.high] == pytest.approx(ends, abs=1e-6)


@properties
@given(SEEDS, POINTS)
def test_a_seed_at_the_mean_of_the_others_narrows_the_interval(values, middle):
    more = [*values, float(np.mean(values))]
    before, after = interval_over_seeds(values), interval_over_seeds(more)
    assert after.high - after.low <= before.high - before.low + 1e-9
    ten, twenty = (interval_over_seeds(values * times) for times in (10, 20))
    assert twenty.high - twenty.low <= 0.75 * (ten.high - ten.low) + 1e-9  # by the square root of two
    equal = interval_over_seeds([middle] * len(values))
    assert (equal.low, equal.high) == pytest.approx((middle, middle))


@properties
@given(FIGURES, POINTS, st.sampled_from([0.5, 1.0, 3.0]), st.integers(0, 3))
def test_an_interval_over_images_lies_within_the_values_and_follows_them(values, shift, scale, missing):
    samples = np.array(values + [np.nan] * missing)
    result = interval_over_images(samples)
    assert min(values) <= result.low <= np.median(values) <= result.high <= max(values)
    again = interval_over_images(scale * samples[::-1] + shift)
    assert (again.low, again.high) == pytest.approx((scale * result.low + shift, scale * result.high + shift), abs=1e-6)
    negated = interval_over_images(-samples)
    assert (negated.low, negated.high) == pytest.approx((-result.high, -result.low), abs=1e-6)


@st.composite
def matches(draw, images=None):
    """The detections of one class on some images, at two thresholds, the second the stricter."""
    images = images or draw(st.integers(1, 6))
    objects = np.array(draw(st.lists(st.integers(0, 3), min_size=images, max_size=images)))
    image, correct, left = [], [], objects.copy()
    for _ in range(draw(st.integers(0, 10))):
        index = draw(st.integers(0, images - 1))
        hit = bool(left[index]) and draw(st.booleans())
        left[index] -= hit
        image.append(index)
        correct.append((hit, hit and draw(st.booleans())))
    flags = np.array(correct, dtype=np.bool_).reshape(-1, 2).T
    scores = np.linspace(1, 0.1, len(image))
    return ClassMatches(np.array(image, dtype=np.int64), scores, flags, np.ones_like(flags), objects)


@st.composite
def sampled(draw):
    result = draw(matches())
    images = len(result.objects)
    rows = st.lists(st.integers(0, 3), min_size=images, max_size=images)
    return result, np.array(draw(st.lists(rows, min_size=1, max_size=5)))


@properties
@given(sampled())
def test_the_precision_of_a_sample_is_in_0_to_1_and_nan_only_without_objects(drawn):
    result, weights = drawn
    figures = average_precision_of_samples([result], weights)[:, 0]
    without = (weights * result.objects).sum(axis=1) == 0
    assert (np.isnan(figures) == without).all()
    assert ((figures[~without] >= 0) & (figures[~without] <= 1)).all()


@properties
@given(sampled(), st.integers(2, 5))
def test_a_sample_that_is_repeated_has_the_same_precision(drawn, times):
    result, weights = drawn
    single, repeated = (average_precision_of_samples([result], factor * weights) for factor in (1, times))
    assert np.allclose(single, repeated, equal_nan=True)


@properties
@given(sampled(), st.randoms(use_true_random=False))
def test_the_numbers_of_images_do_not_matter(drawn, random):
    result, weights = drawn
    order = np.array(random.sample(range(len(result.objects)), len(result.objects)))  # new place -> old place
    index = np.argsort(order)
    moved = ClassMatches(index[result.image], result.scores, result.correct, result.counted, result.objects[order])
    before, after = (
        average_precision_of_samples([variant], sample)
        for variant, sample in ((result, weights), (moved, weights[:, order]))
    )
    assert np.allclose(before, after, equal_nan=True)


@properties
@given(sampled())
def test_more_correct_detections_never_lower_the_precision(drawn):
    result, weights = drawn
    nothing = ClassMatches(result.image, result.scores, np.zeros_like(result.correct), result.counted, result.objects)
    best = result.correct[0].copy()
    strict = ClassMatches(result.image, result.scores, np.stack([best, best]), result.counted, result.objects)
    figures = [average_precision_of_samples([variant], weights)[:, 0] for variant in (nothing, result, strict)]
    seen = ~np.isnan(figures[0])
    assert (figures[0][seen] == 0).all()
    assert (figures[1][seen] <= figures[2][seen] + 1e-12).all()
