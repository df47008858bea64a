"""Intervals over seeds and images: they follow shifts and scales, and equal runs have no gain."""

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
def test_every_sample_holds_as_many_images_as_there_are(images, samples, seed):
    weights = bootstrap_weights(images, samples, seed)
    assert weights.shape == (samples, images)
    assert (weights >= 0).all()
    assert (weights.sum(axis=1) == images).all()
    assert (bootstrap_weights(images, samples, seed) == weights).all()


@properties
@given(SEEDS, POINTS, st.sampled_from([-2.0, -1.0, 0.5, 3.0]))
def test_an_interval_over_seeds_holds_the_mean_and_follows_shift_scale_and_order(values, shift, scale):
    found = interval_over_seeds(values)
    assert found.low <= np.mean(values) + 1e-9
    assert found.high >= np.mean(values) - 1e-9
    assert (found.low + found.high) / 2 == pytest.approx(np.mean(values), abs=1e-6)
    again = interval_over_seeds([scale * value + shift for value in reversed(values)])
    ends = sorted(scale * end + shift for end in (found.low, found.high))
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
def test_an_interval_over_images_lies_within_the_figures_and_follows_them(values, shift, scale, missing):
    samples = np.array(values + [np.nan] * missing)
    found = interval_over_images(samples)
    assert min(values) <= found.low <= np.median(values) <= found.high <= max(values)
    again = interval_over_images(scale * samples[::-1] + shift)
    assert (again.low, again.high) == pytest.approx((scale * found.low + shift, scale * found.high + shift), abs=1e-6)
    turned = interval_over_images(-samples)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-6)


@st.composite
def matches(draw, images=None):
    """The detections of one class on some images, at two thresholds, the second the stricter."""
    images = images or draw(st.integers(1, 6))
    objects = np.array(draw(st.lists(st.integers(0, 3), min_size=images, max_size=images)))
    image, correct, left = [], [], objects.copy()
    for _ in range(draw(st.integers(0, 10))):
        place = draw(st.integers(0, images - 1))
        hit = bool(left[place]) and draw(st.booleans())
        left[place] -= hit
        image.append(place)
        correct.append((hit, hit and draw(st.booleans())))
    flags = np.array(correct, dtype=np.bool_).reshape(-1, 2).T
    scores = np.linspace(1, 0.1, len(image))
    return ClassMatches(np.array(image, dtype=np.int64), scores, flags, np.ones_like(flags), objects)


@st.composite
def sampled(draw):
    found = draw(matches())
    images = len(found.objects)
    rows = st.lists(st.integers(0, 3), min_size=images, max_size=images)
    return found, np.array(draw(st.lists(rows, min_size=1, max_size=5)))


@properties
@given(sampled())
def test_the_precision_of_a_sample_is_a_share_and_missing_only_without_objects(drawn):
    found, weights = drawn
    figures = average_precision_of_samples([found], weights)[:, 0]
    without = (weights * found.objects).sum(axis=1) == 0
    assert (np.isnan(figures) == without).all()
    assert ((figures[~without] >= 0) & (figures[~without] <= 1)).all()


@properties
@given(sampled(), st.integers(2, 5))
def test_a_sample_that_is_repeated_has_the_same_precision(drawn, times):
    found, weights = drawn
    one, more = (average_precision_of_samples([found], factor * weights) for factor in (1, times))
    assert np.allclose(one, more, equal_nan=True)


@properties
@given(sampled(), st.randoms(use_true_random=False))
def test_the_numbers_of_images_do_not_matter(drawn, random):
    found, weights = drawn
    order = np.array(random.sample(range(len(found.objects)), len(found.objects)))  # new place -> old place
    place = np.argsort(order)
    moved = ClassMatches(place[found.image], found.scores, found.correct, found.counted, found.objects[order])
    one, other = (average_precision_of_samples([m], w) for m, w in ((found, weights), (moved, weights[:, order])))
    assert np.allclose(one, other, equal_nan=True)


@properties
@given(sampled())
def test_what_finds_more_is_never_worse(drawn):
    found, weights = drawn
    nothing = ClassMatches(found.image, found.scores, np.zeros_like(found.correct), found.counted, found.objects)
    best = found.correct[0].copy()
    strict = ClassMatches(found.image, found.scores, np.stack([best, best]), found.counted, found.objects)
    figures = [average_precision_of_samples([one], weights)[:, 0] for one in (nothing, found, strict)]
    seen = ~np.isnan(figures[0])
    assert (figures[0][seen] == 0).all()
    assert (figures[1][seen] <= figures[2][seen] + 1e-12).all()
