"""Gradient ratios on networks whose gradients are known."""

import math

import pytest
import torch

from defeat.engine.gradients import gradient, measure_gradient_ratios
from defeat.types import DetectorOutput
from tests.engine.tiny_runs import lines, save_teacher, tiny_run


def output(own=lambda neck: neck.sum(), frozen=False):
    backbone = torch.ones(1, 2, 3, 3, requires_grad=not frozen)
    neck = (2 * backbone).requires_grad_()
    valid = {8: torch.ones(1, 3, 3, dtype=torch.bool)}
    return DetectorOutput(losses={"own": own(neck)}, backbone={8: backbone}, neck={8: neck}, valid=valid)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_term_three_times_the_detectors_own_has_ratio_three(frozen):
    detector_output = output(frozen=frozen)
    terms = {"neck_object": 3 * detector_output.neck[8].sum()}
    assert measure_gradient_ratios(terms, detector_output).terms == {"neck_object": pytest.approx(3)}


def test_gradients_of_several_losses_and_maps_count_together():
    # The detector pulls with 1 on each of 18 values; the term with 2 on half of them: 2 sqrt(9) / sqrt(18) = sqrt(2).
    result = output()
    ratios = measure_gradient_ratios({"term": 2 * result.neck[8][:, :1].sum()}, result).terms
    assert ratios["term"] == pytest.approx(math.sqrt(2))


def test_a_term_on_the_backbone_is_measured_at_the_backbone():
    # The detector's own loss pulls with 2 on each value of the backbone, through the neck; the term with 5.
    result = output()
    assert measure_gradient_ratios({"backbone_object": 5 * result.backbone[8].sum()}, result).terms[
        "backbone_object"
    ] == pytest.approx(2.5)


def test_terms_in_one_direction_add_up_and_opposite_ones_cancel():
    result = output()
    same = measure_gradient_ratios({"a": result.neck[8].sum(), "b": 3 * result.neck[8].sum()}, result)
    assert (same.terms, same.together) == ({"a": pytest.approx(1), "b": pytest.approx(3)}, pytest.approx(4))
    opposite = measure_gradient_ratios({"a": result.neck[8].sum(), "b": -3 * result.neck[8].sum()}, result)
    assert opposite.together == pytest.approx(2)
    # One on each half of the map: sqrt(1/2) and 2 sqrt(1/2), at a right angle sqrt(5/2).
    apart = measure_gradient_ratios({"a": result.neck[8][:, :1].sum(), "b": 2 * result.neck[8][:, 1:].sum()}, result)
    assert apart.together == pytest.approx(math.sqrt(2.5))


def test_ratios_at_the_backbone_are_added():
    result = output()
    both = measure_gradient_ratios(
        {"neck_object": 3 * result.neck[8].sum(), "backbone_object": 5 * result.backbone[8].sum()}, result
    )
    assert both.together == pytest.approx(3 + 2.5)


def test_small_gradients_survive_half_precision():
    # A gradient of 1e-8 is below the least number of half precision, 6e-8.
    neck = torch.ones(1, 2, 3, 3, dtype=torch.float16, requires_grad=True)
    assert not torch.autograd.grad(1e-8 * neck.sum(), neck, retain_graph=True)[0].any()
    (result,) = gradient(1e-8 * neck.sum(), [neck])
    assert result.dtype == torch.float32
    assert torch.allclose(result, torch.full_like(result, 1e-8), rtol=0.05, atol=0)


def test_a_term_without_gradient_has_ratio_zero():
    assert measure_gradient_ratios({"term": torch.tensor(1.0)}, output()).terms == {"term": 0.0}


def test_a_detector_without_gradient_gives_an_infinite_ratio():
    result = output(own=lambda neck: 0 * neck.sum())
    assert measure_gradient_ratios({"term": result.neck[8].sum()}, result).terms == {"term": math.inf}


def test_measuring_does_not_change_the_gradients_of_the_step():
    result = output()
    total = result.losses["own"] + 3 * result.neck[8].sum()
    measure_gradient_ratios({"term": 3 * result.neck[8].sum()}, result)
    assert result.backbone[8].grad is None
    total.backward()
    assert (result.backbone[8].grad == 8).all()


@pytest.mark.usefixtures("small_demo")
def test_a_run_with_a_teacher_logs_the_ratio_of_each_term(tmp_path):
    folder = tiny_run(tmp_path / "run", teacher=save_teacher(tmp_path / "teacher"), warmup_steps=0).folder
    logged = [line for line in lines(folder) if "train/loss" in line]
    assert len(logged) == 4
    for line in logged[1:]:  # at the first step the terms' own warm-up has not begun
        assert line["gradient/neck_object"] > 0
        assert line["gradient/neck_background"] > 0
