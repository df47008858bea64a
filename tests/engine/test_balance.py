"""Balancing of the weights, on a network with known gradients and in whole runs."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console
from torch import nn

from defeat.assembly.assemble import Assembly, assemble
from defeat.assembly.balance import balanced, measure, weights_above_zero
from defeat.data import open_dataset
from defeat.distillation import METHODS, Method
from defeat.distillation.base import checked_weights
from defeat.engine.experiment import Distillation, Experiment
from defeat.engine.guards import fingerprint
from defeat.errors import InputError
from tests.distillation.made_up import info, output
from tests.engine.test_resume import stop_after
from tests.engine.tiny_runs import lines, save_teacher, settings, tiny_run, weights

pytestmark = pytest.mark.usefixtures("small_demo")


class Linear(nn.Module):
    """A student whose own loss pulls with 2 on each of the 18 values of its neck."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.ones(1, 2, 3, 3))
        self.info = info({8: 2})

    def prepare(self, images, targets):
        return SimpleNamespace(targets=targets)

    def forward_train(self, batch, negative_weight=1.0):
        result = output({8: self.level * 1})
        return type(result)({"own": 2 * result.neck[8].sum()}, result.backbone, result.neck, result.valid)

    def forward_teacher(self, batch, reads=None, maps=None):
        return output({8: torch.zeros(1, 2, 3, 3)})

    def adopt(self, batch):
        return batch


class Halves(Method):
    """Pulls on one half of the neck with 6 times `first_weight`, on the other with 8 times `second_weight`."""

    paper = "none"
    reads = ("neck",)

    def __init__(self, student, teacher, *, first_weight: float = 1.0, second_weight: float = 1.0, scale: float = 9.0):
        super().__init__(student, teacher)
        self.weights = checked_weights(first_weight=first_weight, second_weight=second_weight)

    def terms(self, student, teacher, targets, progress):
        first, second = student.neck[8].split(1, dim=1)
        return {
            "first": 6 * self.weights["first_weight"] * first.sum(),
            "second": 8 * self.weights["second_weight"] * second.sum(),
        }


def weights_of(experiment):
    return weights_above_zero(experiment.distillation.method)


def known(tmp_path, monkeypatch, **changes):
    monkeypatch.setitem(METHODS, "halves", Halves)
    given = settings(tmp_path / "run", teacher=tmp_path, method="halves", **changes)
    scenes = open_dataset("demo", "train")
    student = Linear()
    method = Halves(student.info, student.info, **given.method_options)
    distillation = Distillation(Linear(), method)
    return given, Experiment(student, scenes, optimisation=given, devices=given, distillation=distillation)


def test_a_known_gradient_gives_a_known_factor(tmp_path, monkeypatch):
    given, experiment = known(tmp_path, monkeypatch, balance=0.5)
    # Own: 2 on 18 values, sqrt(18) * 2. Terms: 6 and 8 on nine values each, 3 * 10 together: 30 / 8.485 = 3.536.
    result = measure(given, experiment, weights_of(experiment))
    assert result.pulls == {"first": pytest.approx(18 / 72**0.5), "second": pytest.approx(24 / 72**0.5)}
    assert result.together == pytest.approx(30 / 72**0.5)
    # 0.5 / 3.536 = 0.1414.
    assert result.before == {"first_weight": 1.0, "second_weight": 1.0}
    assert result.after == {"first_weight": 0.141, "second_weight": 0.141}


def test_balancing_keeps_the_proportions_and_zero_weights(tmp_path, monkeypatch):
    options = {"first_weight": 4.0, "second_weight": 2.0}
    given, experiment = known(tmp_path, monkeypatch, balance=2.0, method_options=options)
    again = balanced(Assembly(given, experiment), experiment, Console(quiet=True))
    fixed = again.record.values
    # 24 and 16 on nine values each: 3 sqrt(832) = 86.53 over 8.485 is 10.198; 2 / 10.198 = 0.19612.
    assert fixed["method_options"] == {"first_weight": 0.784, "second_weight": 0.392}
    assert again.distillation.method.weights == {"first_weight": 0.784, "second_weight": 0.392}
    assert fixed["balance"] is None
    pull = measure(
        settings(tmp_path, teacher=tmp_path, method="halves", balance=1.0), again, {"x_weight": 1.0}
    ).together
    assert pull == pytest.approx(2, rel=1e-3)
    off, experiment = known(tmp_path, monkeypatch, balance=1.0, method_options={"second_weight": 0.0})
    # 6 on nine values is 18 over 8.485.
    assert measure(off, experiment, weights_of(experiment)).after == {"first_weight": 0.471}


def test_measuring_changes_neither_weights_nor_random_numbers(tmp_path):
    given = settings(tmp_path / "run", "faster_rcnn", save_teacher(tmp_path / "teacher", "faster_rcnn"), balance=1.0)
    experiment = assemble(given, Console(quiet=True)).experiment
    parts = (experiment.student, experiment.distillation.teacher, experiment.distillation.method)
    before = [fingerprint(module) for module in parts]
    torch.manual_seed(5)
    measure(given, experiment, weights_of(experiment))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert [fingerprint(module) for module in parts] == before


@pytest.mark.slow
@pytest.mark.parametrize("family", ["faster_rcnn", "retinanet"])
def test_a_balanced_run_has_fixed_numbers_and_is_repeated_by_them(family, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", family)
    folder = tiny_run(tmp_path / "run", family, teacher, balance=0.5, method_options={"background_weight": 1.0}).folder
    config = yaml.safe_load((folder / "config.yaml").read_text())
    written = config["method_options"]
    assert config["balance"] is None
    assert written["object_weight"] == pytest.approx(32 * written["background_weight"], rel=0.02)
    record = json.loads((folder / "balance.json").read_text())
    assert record["asked"] == 0.5
    assert record["after"] == {name: written[name] for name in record["before"]}
    assert written["object_weight"] == pytest.approx(32 * 0.5 / record["together"], rel=0.01)
    again = tiny_run(tmp_path / "again", family, teacher, method_options=written).folder
    assert weights(again) == weights(folder)
    # Its first full step pulls about as hard as asked for: other images, and one step more of training.
    pulls = [line for line in lines(folder) if "gradient/neck_object" in line]
    assert 0.1 < pulls[1]["gradient/neck_object"] + pulls[1]["gradient/neck_background"] < 2.5


@pytest.mark.slow
def test_a_balanced_run_is_resumed_with_its_weights(tmp_path, monkeypatch):
    options = {"teacher": save_teacher(tmp_path / "teacher"), "balance": 0.5, "epochs": 2}
    whole = tiny_run(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        tiny_run(tmp_path / "stopped", **options)
    with pytest.raises(InputError, match=r"can't be resumed with another --balance: it was begun with 0\.5"):
        tiny_run(tmp_path / "stopped", resume=True, **options | {"balance": 1.0})
    resumed = tiny_run(tmp_path / "stopped", resume=True, **options)
    assert weights(resumed.folder) == weights(whole.folder)
    (resumed.folder / "balance.json").unlink()
    with pytest.raises(InputError, match=r"balance\.json can't be read"):
        tiny_run(tmp_path / "stopped", resume=True, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"object_weight": 0.0, "background_weight": 0.0}, "every weight of the method is 0"),
        ({"initialisation": "published"}, "initialisation published begins near zero"),
    ],
)
def test_impossible_balances_are_refused_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        tiny_run(tmp_path / "run", teacher=save_teacher(tmp_path / "t"), balance=1.0, method_options=options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("inf"), float("nan")])
def test_an_invalid_ratio_is_refused(ratio, tmp_path):
    with pytest.raises(InputError, match="--balance must be above 0"):
        settings(tmp_path, teacher=tmp_path, balance=ratio)
