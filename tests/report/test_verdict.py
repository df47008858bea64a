"""The verdict on a distilled run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from defeat.report.runs import read_run
from defeat.report.verdict import Verdict, roles, verdicts
from tests.report.made_up_runs import write_run, write_story


def _verdict(folder: Path, **distilled: Any) -> Verdict:
    (verdict,) = verdicts([read_run(run) for run in write_story(folder, **distilled)])
    return verdict


def test_roles_follow_from_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = write_story(tmp_path, teacher="./baseline/../teacher")
    assert roles([read_run(folder) for folder in folders]) == ["distilled (defeat)", "baseline", "teacher"]


def test_gain_and_gap(tmp_path: Path) -> None:
    # Baseline 30, distilled 34, teacher 40: 4 points of a gap of 10.
    verdict = _verdict(tmp_path)
    assert verdict.gain == pytest.approx(4.0)
    assert verdict.gap_closed == pytest.approx(40.0)
    assert "+4.0 AP points" in verdict.sentence
    assert "40 % of the gap" in verdict.sentence
    assert "One seed each" in verdict.caution


def test_a_small_gain_is_called_possible_noise(tmp_path: Path) -> None:
    verdict = _verdict(tmp_path, ap=30.7)
    assert "differences of this size can be noise" in verdict.caution


def test_a_loss_is_reported(tmp_path: Path) -> None:
    verdict = _verdict(tmp_path, ap=28.0)
    assert verdict.gain == pytest.approx(-2.0)
    assert "-2.0 AP points" in verdict.sentence
    assert verdict.gap_closed is None


def test_no_gap_is_closed_with_a_teacher_that_is_not_better(tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in write_story(tmp_path)]
    runs[2].metrics["AP"] = 29.0
    (verdict,) = verdicts(runs)
    assert verdict.gain == pytest.approx(4.0)
    assert verdict.gap_closed is None


def test_no_gap_is_closed_with_a_teacher_evaluated_on_other_data(tmp_path: Path) -> None:
    folders = write_story(tmp_path)
    other = write_run(tmp_path / "elsewhere", 40.0, data_fingerprint="other")
    folders[0] = write_run(tmp_path / "again", 34.0, command="distill", method="defeat", teacher=str(other))
    (verdict,) = verdicts([read_run(folder) for folder in [*folders[:2], other]])
    assert verdict.gain == pytest.approx(4.0)
    assert verdict.gap_closed is None


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"epochs": 24}, r"epochs \(24 and 12\)"),
        ({"seed": 1}, r"seed \(1 and 0\)"),
        ({"size": 480}, r"image size \(480 and 320\)"),
        ({"backbone": "resnet50"}, r"backbone"),
        ({"family": "retinanet"}, r"detector"),
        ({"split": "val"}, r"split"),
        ({"data_fingerprint": "beef"}, r"data \(beef and f00d\)"),
        ({"data_fingerprint": None}, r"data \(not recorded\)"),
        ({"steps": 10}, r"steps"),
        ({"parameters": 9}, r"number of weights \(9 and 12500000\)"),
    ],
)
def test_no_gain_is_given_for_runs_that_differ_in_more(tmp_path: Path, changes: dict[str, Any], pattern: str) -> None:
    verdict = _verdict(tmp_path, **changes)
    assert verdict.gain is None
    assert verdict.gap_closed is None
    assert verdict.caution == ""
    assert re.search(pattern, verdict.sentence)
    assert "cannot be compared" in verdict.sentence


@pytest.mark.parametrize(
    ("name", "distilled", "others", "pattern"),
    [
        ("lr", 0.02, 0.01, r"--lr \(0.02 and 0.01\)"),
        ("batch_size", 4, 8, r"--batch-size \(4 and 8\)"),
        ("flip", 0.0, 0.5, "--flip"),
        ("weights", "none", "auto", "--weights"),
        ("detector_options", {"head_norm": "gn"}, {}, "head_norm"),
    ],
)
def test_no_gain_is_given_for_runs_with_other_settings(
    tmp_path: Path, name: str, distilled: object, others: object, pattern: str
) -> None:
    folders = write_story(tmp_path)
    for folder, value in zip(folders, (distilled, others, others), strict=True):
        (folder / "config.yaml").write_text(
            yaml.safe_dump({name: value, "workers": len(str(folder)), "out": str(folder)})
        )
    (verdict,) = verdicts([read_run(folder) for folder in folders])
    assert verdict.gain is None
    assert re.search(pattern, verdict.sentence)
    assert not re.search("workers|--out", verdict.sentence)


@pytest.mark.parametrize(
    ("distilled", "baseline", "steps", "compared"),
    [
        ("cosine", "flat_cosine", 500, True),  # what `auto` chooses for each
        ("flat_cosine", "flat_cosine", 499, True),
        ("cosine", "flat_cosine", 499, False),
        ("flat_cosine", "cosine", 500, False),
        ("cosine", "step", 500, False),
        ("step", "step", 500, True),
    ],
)
def test_learning_rate_schedules_may_differ_only_where_each_run_has_the_one_that_suits_it(
    tmp_path: Path, distilled: str, baseline: str, steps: int, compared: bool
) -> None:
    folders = write_story(tmp_path, steps=steps)
    results = folders[1] / "results.json"
    results.write_text(json.dumps(json.loads(results.read_text()) | {"steps": steps}))
    for folder, schedule in zip(folders, (distilled, baseline, baseline), strict=True):
        (folder / "config.yaml").write_text(yaml.safe_dump({"schedule": schedule}))
    (verdict,) = verdicts([read_run(folder) for folder in folders])
    assert (verdict.gain is not None) == compared
    assert ("--schedule (" in verdict.sentence) == (not compared)
    assert ("Learning rate schedules: cosine, and flat_cosine" in verdict.caution) == (
        compared and distilled != baseline
    )


def test_a_teacher_is_recognised_by_its_weights_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    distilled, baseline, _ = write_story(tmp_path, teacher="moved/since", teacher_fingerprint="abc")
    moved = write_run(tmp_path / "elsewhere", 40.0, fingerprint="abc")
    other = write_run(tmp_path / "moved" / "since", 50.0, fingerprint="def")  # in the same folder, with other weights
    runs = [read_run(folder) for folder in (distilled, moved, baseline, other)]
    assert roles(runs) == ["distilled (defeat)", "teacher", "baseline", "baseline"]
    (verdict,) = verdicts(runs)
    assert verdict.teacher == runs[1]
    assert verdict.gap_closed == pytest.approx(40.0)


def test_the_comparable_baseline_of_several_is_chosen(tmp_path: Path) -> None:
    folders = [*write_story(tmp_path, seed=1)[::-1], write_run(tmp_path / "baseline-1", 31.0, seed=1)]
    (verdict,) = verdicts([read_run(folder) for folder in folders])
    assert verdict.gain == pytest.approx(3.0)


def test_without_a_baseline_no_gain_is_given(tmp_path: Path) -> None:
    distilled, _, teacher = write_story(tmp_path)
    (verdict,) = verdicts([read_run(distilled), read_run(teacher)])
    assert verdict.gain is None
    assert "without a baseline" in verdict.sentence


def test_an_unknown_ap_is_reported(tmp_path: Path) -> None:
    verdict = _verdict(tmp_path, metrics={})
    assert verdict.gain is None
    assert "not known" in verdict.sentence


def test_a_torchvision_teacher_has_no_run(tmp_path: Path) -> None:
    verdict = _verdict(tmp_path, teacher="torchvision:fasterrcnn_resnet50_fpn_v2")
    assert verdict.gain == pytest.approx(4.0)
    assert verdict.teacher is None


def test_no_distilled_run_gives_no_verdict(tmp_path: Path) -> None:
    assert verdicts([read_run(write_run(tmp_path / "run", 30.0))]) == []


def test_a_run_without_distilled_ones_is_just_a_detector(tmp_path: Path) -> None:
    assert roles([read_run(write_run(tmp_path / "run", 30.0))]) == ["detector"]
