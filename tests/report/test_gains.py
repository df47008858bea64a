"""Intervals over seeds and over images, compared with independently derived values."""

import math

import numpy as np
import pytest

from defeat.evaluation.bootstrap import T_POINTS, Interval, bootstrap_weights, interval_over_images, interval_over_seeds
from defeat.report.gains import Gain


def beyond(point: float, freedom: int) -> float:
    """Student's probability of more than `point` in either direction, by Simpson's rule over its density."""
    x, width = np.linspace(0, point, 2001, retstep=True)
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    density = math.exp(log_scale) * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    inside = width / 3 * (density[0] + 4 * density[1:-1:2].sum() + 2 * density[2:-1:2].sum() + density[-1])
    return 1 - 2 * inside


@pytest.mark.parametrize("freedom", range(1, 31))
def test_the_t_table_leaves_five_percent_outside(freedom):
    assert beyond(T_POINTS[freedom - 1], freedom) == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("count", [32, 41, 61, 121])
def test_beyond_the_table_five_percent_are_outside_too(count):
    values = [0.0, 1.0] * (count // 2) + [0.5] * (count % 2)
    interval = interval_over_seeds(values)
    half_width = (interval.high - interval.low) / 2
    point = half_width / (np.std(values, ddof=1) / math.sqrt(count))
    assert beyond(point, count - 1) == pytest.approx(0.05, abs=1e-4)


def test_the_interval_over_seeds_by_hand():
    # Mean 2, standard deviation 1, three values: 4.303 / sqrt(3) = 2.484 on either side.
    interval = interval_over_seeds([1.0, 2.0, 3.0])
    assert (interval.low, interval.high) == pytest.approx((-0.4843, 4.4843), abs=1e-4)
    assert interval.contains_zero


def test_one_seed_has_no_interval():
    assert interval_over_seeds([1.0]) is None


def test_a_bootstrap_draws_as_many_images_as_there_are():
    weights = bootstrap_weights(50, samples=200)
    assert weights.shape == (200, 50)
    assert (weights.sum(axis=1) == 50).all()
    # An image is left out of a sample with a chance of (1 - 1/50)^50 = 0.364.
    assert (weights == 0).mean() == pytest.approx(0.364, abs=0.01)


def test_the_interval_over_images_is_the_middle_of_the_samples():
    interval = interval_over_images(np.array([*range(1001), math.nan]))
    assert (interval.low, interval.high) == pytest.approx((25, 975))


@pytest.mark.parametrize(
    ("over_seeds", "over_images", "significant"),
    [
        (Interval(0.1, 2), Interval(0.2, 3), True),
        (Interval(-2, -0.1), Interval(-3, -0.2), True),
        (Interval(-0.1, 2), Interval(0.2, 3), False),
        (Interval(0.1, 2), Interval(0, 3), False),
        (None, Interval(0.2, 3), False),
        (Interval(0.1, 2), None, False),
    ],
)
def test_a_gain_is_significant_only_if_neither_interval_contains_zero(over_seeds, over_images, significant):
    assert Gain(1.0, (1.0,), over_seeds, over_images).significant is significant
