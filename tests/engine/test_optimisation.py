"""The optimiser of a run: parameter groups, and the learning rate of each step."""

import math

import pytest
import torch
from torch import nn

from defeat.assembly.automatic import choose
from defeat.assembly.settings import DistillSettings
from defeat.data import open_dataset
from defeat.engine.optimisation import (
    build_optimizer,
    build_schedule,
    chosen_schedule,
    cosine_factor,
    parameter_groups,
    step_factor,
)
from defeat.errors import InputError
from tests.detector.tiny import COMPOSED as FAMILIES
from tests.detector.tiny import tiny_detector
from tests.engine.tiny_runs import lines, results, save_teacher, settings, tiny_run, weights

ADAMW = {"optimizer": "adamw", "lr": 1e-3}


@pytest.mark.parametrize(
    ("step", "factor"),
    # Of 120 steps with 10 of warm-up: (step + 1) / 10 at first, then 1; a tenth from 120 * 8/12 = 80 on, a hundredth
    # from 120 * 11/12 = 110 on.
    [(0, 0.1), (4, 0.5), (9, 1), (10, 1), (79, 1), (80, 0.1), (109, 0.1), (110, 0.01), (119, 0.01)],
)
def test_the_learning_rate_rises_and_falls_twice(step, factor):
    assert step_factor(120, 10)(step) == pytest.approx(factor)


def test_milestones_are_fractions_of_the_run():
    # Of 100 steps: a tenth from 75 on, as in the published configuration (epoch 9 of 12).
    factor = step_factor(100, 0, [0.75])
    assert [factor(step) for step in (0, 74, 75, 99)] == pytest.approx([1, 1, 0.1, 0.1])
    assert step_factor(100, 0, [])(99) == 1


def test_without_warm_up_the_learning_rate_starts_at_its_maximum():
    assert step_factor(120, 0)(0) == 1


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_all_parameters_decay_by_default():
    (group,) = parameter_groups(network(), 0.1, norm_decay=True)
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == 6


def test_normalisation_and_biases_can_be_excluded_from_decay():
    decaying, others = parameter_groups(network(), 0.1, norm_decay=False)
    assert decaying["weight_decay"] == 0.1
    assert [tuple(weight.shape) for weight in decaying["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert others["weight_decay"] == 0
    assert [tuple(weight.shape) for weight in others["params"]] == [(4,), (4,), (4,), (2,)]


@pytest.mark.parametrize("norm_decay", [True, False])
def test_frozen_parameters_are_in_no_group(norm_decay):
    module = network()
    module[0].requires_grad_(False)
    result = [weight for group in parameter_groups(module, 0.1, norm_decay) for weight in group["params"]]
    assert {id(weight) for weight in result} == {id(weight) for weight in module.parameters() if weight.requires_grad}


def ids(parameters):
    return {id(parameter) for parameter in parameters}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_body_can_have_a_lower_learning_rate(family, optimizer, tmp_path):
    student = tiny_detector(family)
    adaptation = nn.Linear(2, 2)
    given = settings(tmp_path, family, optimizer=optimizer, lr=1e-3, backbone_lr_factor=0.1)
    groups = build_optimizer(student, adaptation, given).param_groups
    slow = [group for group in groups if group["lr"] == pytest.approx(1e-4)]
    fast = [group for group in groups if group["lr"] == 1e-3]
    body = ids(student.backbone.body.parameters())
    assert slow
    assert groups[0]["lr"] == 1e-3  # the one that is logged
    assert len(slow) + len(fast) == len(groups)
    assert ids(weight for group in slow for weight in group["params"]) == body
    rest = ids([*student.parameters(), *adaptation.parameters()]) - body
    assert ids(weight for group in fast for weight in group["params"]) == rest


@pytest.mark.parametrize("family", FAMILIES)
def test_adamw_never_decays_normalisation_and_biases(family, tmp_path):
    student = tiny_detector(family)
    optimizer = build_optimizer(student, None, settings(tmp_path, family, norm_decay=True, weight_decay=0.05, **ADAMW))
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert all((parameter.ndim > 1) == (group["weight_decay"] == 0.05) for parameter in group["params"])
    assert ids(weight for group in optimizer.param_groups for weight in group["params"]) == ids(student.parameters())


def test_by_default_there_is_one_group(tmp_path):
    (group,) = build_optimizer(student := tiny_detector("retinanet"), None, settings(tmp_path)).param_groups
    assert [id(weight) for weight in group["params"]] == [id(weight) for weight in student.parameters()]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, 1e-4)


@pytest.mark.parametrize(
    ("step", "factor"),
    # Of 110 steps with 10 of warm-up: (step + 1) / 10 at first; then (1 + cos(pi t)) / 2 with t = (step - 10) / 100,
    # that is 1, 1/2 + sqrt(1/2) / 2 after a quarter, 1/2 after a half, and 0 at the end.
    [(0, 0.1), (9, 1), (10, 1), (35, 0.5 + math.sqrt(0.125)), (60, 0.5), (110, 0), (500, 0)],
)
def test_a_cosine_falls_to_zero_after_the_warm_up(step, factor):
    assert cosine_factor(110, 10)(step) == pytest.approx(factor, abs=1e-12)


def test_a_cosine_without_warm_up_starts_at_its_maximum():
    assert cosine_factor(100, 0)(0) == 1
    assert cosine_factor(5, 10)(4) == 0.5  # a run that ends within its warm-up


@pytest.mark.parametrize(
    ("step", "factor"),
    # Of 100 steps with 10 of warm-up: constant up to 50, then half a cosine over the other 50.
    [(4, 0.5), (10, 1), (50, 1), (75, 0.5), (100, 0)],
)
def test_a_flat_cosine_falls_in_the_second_half(step, factor):
    assert cosine_factor(100, 10, 50)(step) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "steps", "schedule"),
    [
        ({}, 499, "flat_cosine"),
        ({}, 500, "cosine"),  # with a teacher
        ({"lr_milestones": [0.5]}, 500, "step"),
        ({"lr_milestones": []}, 100, "step"),
        ({"patience": 2, "eval_every": 1}, 500, "step"),
        ({"schedule": "cosine"}, 100, "cosine"),
        ({"schedule": "flat_cosine"}, 1000, "flat_cosine"),
    ],
)
def test_the_schedule_follows_the_other_settings_and_the_length(change, steps, schedule, tmp_path):
    given = settings(tmp_path, **change)
    assert chosen_schedule(given, steps, given.patience is not None, taught=True) == schedule
    without_teacher = "flat_cosine" if given.schedule == "auto" and schedule == "cosine" else schedule
    assert chosen_schedule(given, steps, given.patience is not None) == without_teacher


@pytest.mark.parametrize(
    ("epochs", "accumulate", "schedule"), [(63, 1, "cosine"), (62, 1, "flat_cosine"), (63, 2, "flat_cosine")]
)
def test_the_length_of_the_schedule_is_counted_in_steps(epochs, accumulate, schedule, tmp_path):
    # Sixteen images in batches of two are eight steps an epoch.
    data = open_dataset("demo:0:16", "train")
    given = settings(tmp_path, epochs=epochs, accumulate=accumulate, lr="auto")
    assert choose(given, data).numbers["schedule"] == "flat_cosine"
    of_student = DistillSettings(teacher="-", **given.to_dict())
    assert choose(of_student, data).numbers["schedule"] == schedule


def test_a_flat_cosine_is_the_schedule_of_a_run(tmp_path):
    given = settings(tmp_path, warmup_steps=0, lr=0.1)
    optimizer = build_optimizer(tiny_detector("retinanet"), None, given)
    schedule = build_schedule(optimizer, given, 4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.05])


def test_every_group_follows_the_schedule(tmp_path):
    given = settings(tmp_path, backbone_lr_factor=0.5, schedule="cosine", warmup_steps=0, lr=0.1)
    optimizer = build_optimizer(tiny_detector("retinanet"), None, given)
    schedule = build_schedule(optimizer, given, 4, lambda: 0)
    for factor in (1, 0.5 + math.sqrt(0.125), 0.5):
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * factor, 0.05 * factor])
        optimizer.step()
        schedule.step()


def test_with_patience_the_rate_drops_on_request_and_not_at_milestones(tmp_path):
    given = settings(tmp_path, patience=2, eval_every=1, warmup_steps=0, lr=0.1)
    optimizer = build_optimizer(tiny_detector("retinanet"), None, given)
    falls = 0
    schedule = build_schedule(optimizer, given, 4, lambda: falls)
    rates = []
    for step in range(4):
        falls = int(step >= 2)
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])


@pytest.mark.slow
@pytest.mark.usefixtures("small_demo")
def test_adamw_with_a_cosine_trains_and_repeats(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    options = ADAMW | {"schedule": "cosine", "epochs": 2, "backbone_lr_factor": 0.1, "warmup_steps": 0}
    first, again = (tiny_run(tmp_path / name, teacher=teacher, **options).folder for name in ("first", "again"))
    other = tiny_run(tmp_path / "other", teacher=teacher, **options | {"backbone_lr_factor": 1.0}).folder
    assert weights(first) == weights(again) != weights(other)
    rates = [line["train/lr"] for line in lines(first) if "train/lr" in line]
    assert rates == pytest.approx([1e-3 * cosine_factor(8, 0)(step) for step in range(8)])
    assert results(first)["steps"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adamw"}, "AdamW would diverge"),
        ({"backbone_lr_factor": 0.0}, "--backbone-lr-factor must be above 0"),
        ({"backbone_lr_factor": 2.0}, "--backbone-lr-factor must be above 0, at most 1"),
        ({"schedule": "cosine", "lr_milestones": [0.5]}, "--lr-milestones have no effect with --schedule cosine"),
        ({"patience": 2, "eval_every": 1, "lr_milestones": [0.5]}, "--lr-milestones have no effect with --patience"),
    ],
)
def test_invalid_settings_are_refused(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        settings(tmp_path, **change)


def test_milestones_of_a_recipe_can_be_overridden(tmp_path):
    assert settings(tmp_path, schedule="cosine", lr_milestones=[]).lr_milestones == []
