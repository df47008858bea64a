"""Progressive teachers: stages, their record, and how a stopped run goes on."""

import pytest
import torch
import yaml

import defeat
from defeat.assembly.plan import make_plan
from defeat.cli import main
from defeat.errors import InputError
from defeat.report.html import render
from defeat.report.runs import read_run
from tests.benchmark.benches import run_bench
from tests.detector.tiny import tiny_detector
from tests.engine.test_resume import stop_after
from tests.engine.tiny_runs import lines, results, save_teacher, settings, tensors, tiny_run, weights

pytestmark = pytest.mark.usefixtures("small_demo")


@pytest.fixture
def teachers(tmp_path):
    """A first teacher whose neck and head fit the student's, and a second one that is wider."""
    first = save_teacher(tmp_path / "first", neck_channels=16)
    return {"teacher": first, "then": [str(save_teacher(tmp_path / "second", "fcos", neck_channels=24))]}


def test_each_stage_goes_on_from_the_one_before(teachers, tmp_path):
    run = tiny_run(tmp_path / "run", **teachers, epochs=2, then_epochs=[1], then_methods=["pkd"], neck_channels="auto")
    first = run.folder / "stages" / "1"
    alone = tiny_run(tmp_path / "alone", teacher=teachers["teacher"], epochs=2, neck_channels="auto")
    assert weights(first) == weights(alone.folder)
    again = tiny_run(tmp_path / "again", teacher=teachers["then"][0], method="pkd", weights=str(first), inherit="none")
    assert weights(run.folder) == weights(again.folder)
    assert not any(
        torch.equal(tensors(run.folder)[name], value) for name, value in tensors(first).items() if "fpn" in name
    )
    content, earlier = results(run.folder), results(first)
    assert content["stages"] == [
        {"teacher": str(teachers["teacher"]), "method": "defeat", "epochs": 2, "AP": earlier["metrics"]["AP"]},
        {"teacher": teachers["then"][0], "method": "pkd", "epochs": 1, "AP": content["metrics"]["AP"]},
    ]
    assert content["epochs"] == 3
    assert content["steps"] == earlier["steps"] + results(again.folder)["steps"]
    assert content["train_seconds"] > earlier["train_seconds"]
    assert earlier["inherited"]["parts"] == ["neck", "head"]
    assert content["inherited"]["parts"] == []
    assert "train/neck_correlation" in next(line for line in lines(run.folder) if "train/loss" in line)


@pytest.mark.parametrize("step", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_a_stopped_run_is_resumed_bit_for_bit_in_either_stage(step, teachers, tmp_path, monkeypatch):
    # A stage has four steps and each stage counts anew: the first is stopped in its second step, or the second.
    whole = tiny_run(tmp_path / "whole", **teachers)
    with monkeypatch.context() as patch:
        if step > 4:
            patch.setattr("defeat.assembly.stages.Stages.announce", stopping_later(patch))
        else:
            stop_after(patch, step)
        stopped = tiny_run(tmp_path / "run", **teachers)
    assert not stopped.finished
    assert stopped.folder == tmp_path / "run"
    with pytest.raises(InputError, match="already contains a run"):
        tiny_run(tmp_path / "run", **teachers)
    with pytest.raises(InputError, match=r"lr was 0\.01 and is 0\.02"):
        tiny_run(tmp_path / "run", **teachers, resume=True, lr=0.02)
    resumed = tiny_run(tmp_path / "run", **teachers, resume=True)
    assert resumed.finished
    assert weights(resumed.folder) == weights(whole.folder)
    assert results(resumed.folder)["stages"] == [
        stage | {"AP": stage["AP"]} for stage in results(whole.folder)["stages"]
    ]


def stopping_later(patch):
    """Stop in the second step of the second stage."""

    def announce(self, number, console):
        if number == 1:
            stop_after(patch, 2)

    return announce


def test_the_whole_is_repeated_from_its_configuration_and_reported(teachers, tmp_path):
    run = tiny_run(tmp_path / "run", **teachers)
    config = run.folder / "stages" / "config.yaml"
    assert yaml.safe_load(config.read_text())["then"] == teachers["then"]
    assert main(["distill", "--config", str(config), "--out", str(tmp_path / "again")]) == 0
    assert weights(tmp_path / "again") == weights(run.folder)
    page = render([read_run(run.folder)])
    assert "<h2>Stages</h2>" in page
    assert "stages/config.yaml" in page
    assert "<h2>Stages</h2>" not in render([read_run(run.folder / "stages" / "1")])


def test_a_plan_names_the_later_stages(teachers, tmp_path):
    plan = make_plan(settings(tmp_path / "run", **teachers, then_epochs=[3]))
    assert f"Stage 2, after this one: {teachers['then'][0]} teaches for 3 epochs with defeat." in plan.notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"then_epochs": [1, 2]}, "--then-epochs needs a value for each of the 1 teachers"),
        ({"then_epochs": [0]}, "--then-epochs must be 1 or more"),
        ({"then_methods": ["pkd", "cwd"]}, "--then-methods needs a value for each"),
        ({"balance": 1.0}, "--balance and --then can't be combined"),
        ({"devices": 2}, "--then trains on one device"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        settings(tmp_path / "run", teacher="a", **{"then": ["b"]} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"then": ["nowhere"]}, "nowhere"), ({"then_methods": ["pdk"]}, "Did you mean 'pkd'")],
)
def test_a_wrong_name_is_found_before_the_first_stage(changes, message, teachers, tmp_path):
    with pytest.raises(InputError, match=message):
        tiny_run(tmp_path / "run", **teachers | changes)
    assert not (tmp_path / "run" / "stages").exists()


def test_objects_belong_to_one_stage_and_a_comparison_has_none(teachers, tmp_path):
    given = {name: value for name, value in settings(tmp_path / "a").to_dict().items() if name != "out"}
    with pytest.raises(InputError, match="give teacher as a name, too"):
        defeat.distill(teacher=tiny_detector("retinanet"), then=["b"], out=str(tmp_path / "run"), **given)
    with pytest.raises(InputError, match="without --then"):
        run_bench(tmp_path / "m", teachers["teacher"], methods="none,defeat", then=teachers["then"])
