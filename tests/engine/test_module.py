"""The parts of a training step: seeds, and what processes share."""

import torch

from defeat.engine.module import gather, step_seed


def test_steps_processes_and_runs_have_different_seeds():
    seeds = {step_seed(seed, step, rank) for seed in range(4) for step in range(500) for rank in range(4)}
    assert len(seeds) == 4 * 500 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


def test_seeds_of_neighbouring_steps_draw_unrelated_numbers():
    draws = [torch.rand(200, generator=torch.Generator().manual_seed(step_seed(0, step, 0))) for step in range(20)]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(20)
    # 190 pairs of 200 independent draws: a deviation of 1/sqrt(200) = 0.07 each.
    assert correlation.abs().max() < 0.35


def test_a_single_process_gathers_nothing():
    assert gather(["anything"], processes=1) == []
