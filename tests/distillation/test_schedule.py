"""Warm-up and decay of the weight of distillation."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defeat.distillation.schedule import DECAYS, Schedule, warmup_factor
from defeat.errors import InputError
from defeat.types import Progress


@pytest.mark.parametrize(
    ("step", "fraction", "factor"),
    [(0, 0.05, 0.2), (3, 0.05, 0.8), (4, 0.05, 1.0), (99, 0.05, 1.0), (0, 0.0, 1.0), (49, 1.0, 0.5), (99, 1.0, 1.0)],
)
def test_warm_up_rises_to_one(step, fraction, factor):
    # (step + 1) / (fraction * 100 steps), at most 1
    assert warmup_factor(Progress(step=step, steps=100), fraction) == pytest.approx(factor)


def test_warm_up_of_a_run_of_one_step_is_over():
    assert warmup_factor(Progress(step=0, steps=1), 0.5) == 1


@pytest.mark.parametrize(
    ("decay", "factors"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [(1 + math.cos(math.pi * epoch / 8)) / 2 for epoch in range(8)]),
        # Up to 2 at epoch 8 / 4 = 2, then down by 2/6 per epoch.
        ("up_down", [1, 3 / 2, 2, 10 / 6, 8 / 6, 6 / 6, 4 / 6, 2 / 6]),
    ],
)
def test_decays_over_eight_epochs(decay, factors):
    schedule = Schedule(decay)
    result = [schedule(Progress(step=0, steps=100, epoch=epoch, epochs=8)) for epoch in range(8)]
    assert result == pytest.approx(factors)


def test_warm_up_and_decay_multiply():
    # Step 4 of a warm-up of 20: 5 / 20; epoch 1 of 2, linear: 1 / 2.
    assert Schedule("linear", 0.2)(Progress(step=4, steps=100, epoch=1, epochs=2)) == pytest.approx(1 / 8)


@given(decay=st.sampled_from(DECAYS), epochs=st.integers(1, 400), epoch=st.integers(0, 500))
def test_factors_are_never_negative_nor_above_two(decay, epochs, epoch):
    assert 0 <= Schedule(decay)(Progress(step=0, steps=10, epoch=epoch, epochs=epochs)) <= 2


@pytest.mark.parametrize(
    ("options", "expected"), [({"decay": "cosin"}, "Did you mean 'cosine'"), ({"warmup": 1.5}, "between 0 and 1")]
)
def test_settings_that_cannot_work_are_refused(options, expected):
    with pytest.raises(InputError, match=expected):
        Schedule(**options)
