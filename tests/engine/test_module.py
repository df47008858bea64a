"""The parts of a training step: schedule, seeds, parameter groups."""

import pytest
import torch
from torch import nn

from defeat.engine.module import gather, learning_rate, parameter_groups, step_seed


@pytest.mark.parametrize(
    ("step", "factor"),
    # Of 120 steps with 10 of warm-up: (step + 1) / 10 at first, then 1; a tenth from 120 * 8/12 = 80 on, a hundredth
    # from 120 * 11/12 = 110 on.
    [(0, 0.1), (4, 0.5), (9, 1), (10, 1), (79, 1), (80, 0.1), (109, 0.1), (110, 0.01), (119, 0.01)],
)
def test_the_learning_rate_rises_and_falls_twice(step, factor):
    assert learning_rate(120, 10)(step) == pytest.approx(factor)


def test_milestones_are_parts_of_the_run():
    # Of 100 steps: a tenth from 75 on, as in the published configuration (epoch 9 of 12).
    factor = learning_rate(100, 0, [0.75])
    assert [factor(step) for step in (0, 74, 75, 99)] == pytest.approx([1, 1, 0.1, 0.1])
    assert learning_rate(100, 0, [])(99) == 1


def test_without_warm_up_the_learning_rate_begins_at_its_height():
    assert learning_rate(120, 0)(0) == 1


def test_steps_processes_and_runs_have_seeds_of_their_own():
    seeds = {step_seed(seed, step, rank) for seed in range(4) for step in range(500) for rank in range(4)}
    assert len(seeds) == 4 * 500 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


def test_seeds_of_neighbouring_steps_draw_unrelated_numbers():
    draws = [torch.rand(200, generator=torch.Generator().manual_seed(step_seed(0, step, 0))) for step in range(20)]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(20)
    # 190 pairs of 200 independent draws: a deviation of 1/sqrt(200) = 0.07 each.
    assert correlation.abs().max() < 0.35


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_all_parameters_decay_by_default():
    (group,) = parameter_groups(network(), 0.1, norm_decay=True)
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == 6


def test_normalisation_and_biases_can_be_kept_from_decay():
    decaying, others = parameter_groups(network(), 0.1, norm_decay=False)
    assert decaying["weight_decay"] == 0.1
    assert [tuple(weight.shape) for weight in decaying["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert others["weight_decay"] == 0
    assert [tuple(weight.shape) for weight in others["params"]] == [(4,), (4,), (4,), (2,)]


@pytest.mark.parametrize("norm_decay", [True, False])
def test_frozen_parameters_are_in_no_group(norm_decay):
    module = network()
    module[0].requires_grad_(False)
    found = [weight for group in parameter_groups(module, 0.1, norm_decay) for weight in group["params"]]
    assert {id(weight) for weight in found} == {id(weight) for weight in module.parameters() if weight.requires_grad}


def test_one_process_has_nothing_to_gather():
    assert gather(["anything"], processes=1) == []
