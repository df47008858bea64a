"""Runs, checkpoints and models that version 0.1 wrote (`make_runs.py`) are read, resumed and compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import defeat
from defeat.assembly.earlier import VERSION_0_1, earlier_options, recorded_settings
from defeat.cli import main
from defeat.data import open_dataset
from defeat.distillation import method_defaults
from defeat.engine.checkpoint import RunDirectory
from defeat.evaluation.detections import read_detections
from defeat.report.runs import read_run
from defeat.report.verdict import differences, verdicts

RUNS = Path(__file__).parent / "version_0_1"
FINISHED = "bench/defeat-seed0"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A copy of the runs in the current folder, where their settings look for data and teacher."""
    shutil.copytree(RUNS, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("run", ["teacher", "bench/none-seed0", FINISHED])
def test_a_model_detects_what_it_detected_then(runs, run):
    detector = defeat.load(run)
    dataset = open_dataset("data", "val")
    stored = {scene.image_id: scene for scene in read_detections(runs / run / "detections.safetensors")}
    for index in range(len(dataset)):
        image, target = dataset[index]
        now, then = detector.predict([image])[0], stored[target.image_id]
        assert len(then.scores) > 0
        np.testing.assert_allclose(now.scores.numpy(), then.scores, rtol=1e-3, atol=1e-4)
        # Detections with equal scores may come in another order.
        rows = [np.column_stack([one.boxes, 100 * one.scores, 100 * one.labels]) for one in (now, then)]
        distance = np.abs(rows[0][:, None] - rows[1][None, :]).max(axis=2)
        assert max(distance.min(axis=0).max(), distance.min(axis=1).max()) < 0.1


def test_a_stopped_run_is_resumed_with_the_defaults_of_its_version(runs):
    config = yaml.safe_load((runs / "stopped/config.yaml").read_text())
    unnamed = {name: value for name, value in config.items() if name not in ("command", "method_options", "expected")}
    run = defeat.distill(**unnamed | {"resume": True})
    assert run.finished
    then, now = logged(runs / FINISHED), logged(runs / "stopped")
    assert [line["step"] for line in now] == [line["step"] for line in then]
    last_then, last_now = ([line for line in log if "train/loss" in line][-1] for log in (then, now))
    for name in ("train/loss", "train/neck_object", "train/neck_background"):
        assert last_now[name] == pytest.approx(last_then[name], rel=0.02), name


def test_the_same_command_resumes_a_stopped_run(runs):
    config = yaml.safe_load((runs / "stopped/config.yaml").read_text())
    words = {
        name: value
        for name, value in config.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool) and name not in ("command", "out")
    }
    options = [f"--{name.replace('_', '-')}={value}" for name, value in words.items()]
    options += ["--allow-weak-teacher", "--detector.score-thresh=0", "--detector.detections-per-img=20"]
    assert main(["distill", *options, "--out", "stopped", "--resume"]) == 0
    assert (runs / "stopped/results.json").is_file()


def test_other_method_options_are_refused_in_a_resumed_run(runs):
    config = yaml.safe_load((runs / "stopped/config.yaml").read_text())
    unnamed = {name: value for name, value in config.items() if name not in ("command", "method_options", "expected")}
    with pytest.raises(defeat.InputError, match=r"can't be resumed with other settings: method_options"):
        defeat.distill(**unnamed | {"resume": True, "method_options": {"object_weight": 32.0}})


def test_a_run_is_compared_with_a_baseline_of_its_time(runs):
    distilled, baseline, teacher = (read_run(runs / name) for name in (FINISHED, "bench/none-seed0", "teacher"))
    assert differences(distilled, baseline) == []
    (verdict,) = verdicts([distilled, baseline, teacher])
    assert verdict.gain is not None


def test_a_comparison_is_reported_without_training(runs):
    before = json.loads((runs / "bench/bench.json").read_text())
    plan = yaml.safe_load((runs / "bench/bench.yaml").read_text())
    assert plan["variants"]["defeat"]["options"]["object_weight"] == 4.0
    (runs / "bench/bench.json").unlink()
    options = ["--data", "data", "--teacher", "teacher", "--allow-weak-teacher", "--detector=retinanet"]
    options += ["--backbone=test_efficientnet", "--size=64", "--neck-channels=8", "--epochs=2", "--batch-size=2"]
    options += ["--workers=0", "--weights=none", "--lr=0.001", "--log-every=1", "--eval-every=0", "--inherit=none"]
    options += ["--checkpoint-every=1", "--detector.score-thresh=0", "--detector.detections-per-img=20"]
    options += ["--detector.anchor-sizes=[32,64,128,256,512]", "--detector.head-norm=none", "--seeds=1"]
    options += [f"--defeat.{name.replace('_', '-')}={value}" for name, value in VERSION_0_1["defeat"].items()]
    assert main(["bench", *options, "--methods", "none,defeat", "--out", "bench"]) == 0
    after = json.loads((runs / "bench/bench.json").read_text())
    assert after["others"][0]["ap"] == before["others"][0]["ap"]


def test_options_that_a_file_does_not_name_have_the_values_of_its_version(runs):
    content = RunDirectory(FINISHED).read_config()
    named = recorded_settings(content)
    unnamed = recorded_settings({name: value for name, value in content.items() if name != "method_options"})
    assert unnamed["method_options"] == named["method_options"] | {
        name: value for name, value in method_defaults("defeat").items() if name not in content["method_options"]
    }
    assert unnamed["inherit"] == "none"


@pytest.mark.parametrize("method", VERSION_0_1)
def test_earlier_options_are_options_with_another_default_now(method):
    now = method_defaults(method)
    assert all(now[name] != value for name, value in VERSION_0_1[method].items())
    assert earlier_options(method, {"warmup": 0.5})["warmup"] == 0.5
