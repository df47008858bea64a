"""Several methods at once: terms, options and weights of each part keep its name."""

import pytest
import torch
import yaml

from defeat.cli import main, run_settings
from defeat.distillation import build_method, find_method, method_defaults
from defeat.errors import InputError
from tests.benchmark.benches import run_bench
from tests.detector.tiny import tiny_batch, tiny_detector
from tests.distillation.test_methods import LATE
from tests.engine.tiny_runs import lines, results, save_teacher, tiny_run, weights

BOTH = "defeat+bckd"


def made(name=BOTH, **options):
    student, teacher = tiny_detector("retinanet"), tiny_detector("retinanet", seed=1).eval().requires_grad_(False)
    torch.manual_seed(0)
    return build_method(name, student.info, teacher.info, options), student, teacher


def terms(method, student, teacher):
    batch = tiny_batch(student.train())
    output = student.forward_train(batch)
    return method(output, teacher.forward_teacher(teacher.adopt(batch), method.needs), batch.targets, LATE)


def test_the_terms_are_those_of_the_parts():
    both, student, teacher = made()
    together = terms(both, student, teacher)
    assert list(together) == ["defeat.neck_object", "defeat.neck_background", "bckd.head_class", "bckd.head_box"]
    alone, student, teacher = made("bckd")
    for name, loss in terms(alone, student, teacher).items():
        assert torch.equal(together[f"bckd.{name}"], loss)
    assert both.needs == {"neck", "dense"}
    assert both.levels
    assert [*both.painted([torch.tensor([[0.0, 0.0, 9.0, 9.0]])], {8: (8, 8)})] == ["defeat.object"]


def test_options_and_weights_have_the_name_of_their_part():
    both, *_ = made(**{"defeat.object_weight": 3.0, "bckd.box_weight": 0.0})
    assert both.weights["defeat.object_weight"] == 3.0
    assert both.weights["bckd.box_weight"] == 0.0
    assert both.weights["defeat.background_weight"] == method_defaults("defeat")["background_weight"]
    assert method_defaults(BOTH) == {
        **{f"defeat.{name}": value for name, value in method_defaults("defeat").items()},
        **{f"bckd.{name}": value for name, value in method_defaults("bckd").items()},
    }
    assert "Guo et al." in find_method(BOTH).paper
    assert "Yang et al." in find_method(BOTH).paper


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("defeat+bckdd", {}, "Unknown method 'bckdd'. Did you mean 'bckd'"),
        ("defeat+defeat", {}, "names a part twice"),
        ("defeat+none", {}, "Unknown method 'none'"),
        (BOTH, {"object_weight": 1.0}, r"Unknown option of defeat\+bckd 'object_weight'"),
        (BOTH, {"bckd.box_weight": -1.0}, "box_weight must be 0 or more"),
    ],
)
def test_invalid_combinations_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        made(name, **options)


@pytest.mark.usefixtures("small_demo")
def test_a_run_has_the_terms_of_both_and_is_repeated_from_its_configuration(tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher", neck_channels=16)
    options = {"defeat.object_weight": 3.0}
    run = tiny_run(tmp_path / "run", teacher=teacher, method=BOTH, method_options=options, max_steps=2)
    (line,) = [line for line in lines(run.folder) if line.get("step") == 1 and "train/loss" in line]
    assert {"train/defeat.neck_object", "train/bckd.head_class"} <= line.keys()
    assert results(run.folder)["method"] == BOTH
    recorded = yaml.safe_load((run.folder / "config.yaml").read_text())["method_options"]
    assert recorded["defeat.object_weight"] == 3.0
    assert recorded["bckd.class_weight"] == 1.0
    arguments = ["--config", str(run.folder / "config.yaml"), "--out", str(tmp_path / "again")]
    assert main(["distill", *arguments]) == 0
    assert weights(tmp_path / "again") == weights(run.folder)


def test_each_part_has_its_options_on_the_command_line():
    arguments = ["--data", "demo", "--out", "run", "--teacher", "teacher", "--method", BOTH]
    settings = run_settings([*arguments, "--defeat.object-weight", "3", "--bckd.box-weight=0"], "distill")
    assert settings.method_options == {"defeat.object_weight": 3.0, "bckd.box_weight": 0.0}
    with pytest.raises(InputError, match=r"Did you mean '--defeat\.object-weight'"):
        run_settings([*arguments, "--defeat.objectweight", "3"], "distill")


@pytest.mark.slow
@pytest.mark.usefixtures("small_demo")
def test_a_comparison_contains_combinations(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", neck_channels=16)
    options = {"bckd": {"box_weight": 1.0}}
    methods = f"none,defeat,{BOTH},{BOTH}+inherit"
    result = run_bench(tmp_path / "m", teacher, methods=methods, seeds=1, method_options=options)
    assert [other.name for other in result.others] == ["defeat", BOTH, f"{BOTH}+inherit"]
    config = yaml.safe_load((tmp_path / "m" / "defeat-bckd-inherit-seed0" / "config.yaml").read_text())
    assert config["method_options"]["bckd.box_weight"] == 1.0
    assert "--bckd.box-weight=1.0" in (tmp_path / "m" / "report.html").read_text()
