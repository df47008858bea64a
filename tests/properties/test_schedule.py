"""Schedules: factors rise and fall as documented, and are equal for all terms."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defeat.distillation.schedule import DECAYS, Schedule, decay_factor, warmup_factor
from defeat.types import Progress
from tests.properties.draws import properties

STEPS, EPOCHS = st.integers(1, 500), st.integers(1, 60)
SHARES = st.floats(0, 1)


@st.composite
def standing(draw):
    """Any step and epoch of a run."""
    steps, epochs = draw(STEPS), draw(EPOCHS)
    return Progress(draw(st.integers(0, steps - 1)), steps, draw(st.integers(0, epochs - 1)), epochs)


@properties
@given(st.sampled_from(DECAYS), SHARES, standing())
def test_factors_are_positive_and_bounded_while_a_run_lasts(decay, warmup, progress):
    factor = Schedule(decay, warmup)(progress)
    assert 0 < factor <= (2 if decay == "up_down" else 1)
    assert factor == warmup_factor(progress, warmup) * decay_factor(progress, decay)


@properties
@given(STEPS, SHARES)
def test_a_warm_up_never_falls_and_reaches_one_at_its_end(steps, share):
    factors = [warmup_factor(Progress(step, steps), share) for step in range(steps)]
    assert factors == sorted(factors)
    assert factors[0] > 0
    assert factors[-1] == 1
    assert all(factor == 1 for step, factor in enumerate(factors) if step + 1 >= share * steps)
    assert all(factor < 1 for step, factor in enumerate(factors) if step + 1 < share * steps * (1 - 1e-9))


@properties
@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(2, 60))
def test_decays_start_at_one_and_never_rise(decay, epochs):
    factors = [decay_factor(Progress(0, 1, epoch, epochs), decay) for epoch in range(epochs + 1)]
    assert factors[0] == 1
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(factors))
    assert factors[-1] == pytest.approx(1 if decay == "constant" else 0, abs=1e-12)


@properties
@given(st.integers(4, 200))
def test_up_down_has_its_maximum_of_two_after_a_quarter_and_ends_at_zero(epochs):
    factors = [decay_factor(Progress(0, 1, epoch, epochs), "up_down") for epoch in range(epochs + 1)]
    top = factors.index(max(factors))
    assert factors[top] == 2
    assert top == epochs // 4
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(0, abs=1e-12)


@properties
@given(st.sampled_from(DECAYS), SHARES, standing(), st.lists(st.floats(0, 1e3), min_size=1, max_size=4))
def test_every_term_is_multiplied_by_the_same_factor(decay, warmup, progress, values):
    schedule = Schedule(decay, warmup)
    losses = {str(index): torch.tensor(value, dtype=torch.float64) for index, value in enumerate(values)}
    result = schedule.scaled(losses, progress)
    assert result.keys() == losses.keys()
    assert all(result[name] == losses[name] * schedule(progress) for name in losses)
