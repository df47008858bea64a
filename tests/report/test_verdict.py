"""What may be said about a distilled run."""

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
    folders = write_story(tmp_path, teacher="./alone/../teacher")
    assert roles([read_run(folder) for folder in folders]) == ["distilled (defeat)", "student alone", "teacher"]


def test_gain_and_gap(tmp_path: Path) -> None:
    # Alone 30, distilled 34, teacher 40: 4 points of a lead of 10.
    verdict = _verdict(tmp_path)
    assert verdict.gain == pytest.approx(4.0)
    assert verdict.gap_closed == pytest.approx(40.0)
    assert "+4.0 AP points" in verdict.sentence
    assert "40 % of the gap" in verdict.sentence
    assert "One seed each" in verdict.caution


def test_a_small_gain_is_called_possible_noise(tmp_path: Path) -> None:
    verdict = _verdict(tmp_path, ap=30.7)
    assert "differences of this size can be noise" in verdict.caution


def test_a_loss_is_said(tmp_path: Path) -> None:
    verdict = _verdict(tmp_path, ap=28.0)
    assert verdict.gain == pytest.approx(-2.0)
    assert "-2.0 AP points" in verdict.sentence
    assert verdict.gap_closed is None


def test_no_gap_is_claimed_for_a_teacher_that_is_no_better(tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in write_story(tmp_path)]
    runs[2].metrics["AP"] = 29.0
    (verdict,) = verdicts(runs)
    assert verdict.gain == pytest.approx(4.0)
    assert verdict.gap_closed is None


def test_no_gap_is_claimed_for_a_teacher_measured_on_other_data(tmp_path: Path) -> None:
    folders = write_story(tmp_path)
    other = write_run(tmp_path / "elsewhere", 40.0, data_fingerprint="other")
    folders[0] = write_run(tmp_path / "again", 34.0, command="distill", method="defeat", teacher=str(other))
    (verdict,) = verdicts([read_run(folder) for folder in [*folders[:2], other]])
    assert verdict.gain == pytest.approx(4.0)
    assert verdict.gap_closed is None


@pytest.mark.parametrize(
    ("changes", "words"),
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
def test_nothing_is_claimed_for_runs_that_differ_in_more(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    verdict = _verdict(tmp_path, **changes)
    assert verdict.gain is None
    assert verdict.gap_closed is None
    assert verdict.caution == ""
    assert re.search(words, verdict.sentence)
    assert "cannot be compared" in verdict.sentence


@pytest.mark.parametrize(
    ("name", "mine", "theirs", "words"),
    [
        ("lr", 0.02, 0.01, r"--lr \(0.02 and 0.01\)"),
        ("batch_size", 4, 8, r"--batch-size \(4 and 8\)"),
        ("flip", 0.0, 0.5, "--flip"),
        ("weights", "none", "auto", "--weights"),
        ("detector_options", {"head_norm": "gn"}, {}, "head_norm"),
    ],
)
def test_nothing_is_claimed_for_runs_with_other_settings(
    tmp_path: Path, name: str, mine: object, theirs: object, words: str
) -> None:
    folders = write_story(tmp_path)
    for folder, value in zip(folders, (mine, theirs, theirs), strict=True):
        (folder / "config.yaml").write_text(
            yaml.safe_dump({name: value, "workers": len(str(folder)), "out": str(folder)})
        )
    (verdict,) = verdicts([read_run(folder) for folder in folders])
    assert verdict.gain is None
    assert re.search(words, verdict.sentence)
    assert not re.search("workers|--out", verdict.sentence)


def test_a_teacher_is_known_by_its_weights_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    distilled, alone, _ = write_story(tmp_path, teacher="moved/since", teacher_fingerprint="abc")
    moved = write_run(tmp_path / "elsewhere", 40.0, fingerprint="abc")
    other = write_run(tmp_path / "moved" / "since", 50.0, fingerprint="def")  # at the same place, with other weights
    runs = [read_run(folder) for folder in (distilled, moved, alone, other)]
    assert roles(runs) == ["distilled (defeat)", "teacher", "student alone", "student alone"]
    (verdict,) = verdicts(runs)
    assert verdict.teacher == runs[1]
    assert verdict.gap_closed == pytest.approx(40.0)


def test_the_comparable_one_of_several_students_is_chosen(tmp_path: Path) -> None:
    folders = [*write_story(tmp_path, seed=1)[::-1], write_run(tmp_path / "alone-1", 31.0, seed=1)]
    (verdict,) = verdicts([read_run(folder) for folder in folders])
    assert verdict.gain == pytest.approx(3.0)


def test_without_a_student_alone_nothing_is_claimed(tmp_path: Path) -> None:
    distilled, _, teacher = write_story(tmp_path)
    (verdict,) = verdicts([read_run(distilled), read_run(teacher)])
    assert verdict.gain is None
    assert "student alone" in verdict.sentence


def test_an_unknown_figure_is_said(tmp_path: Path) -> None:
    verdict = _verdict(tmp_path, metrics={})
    assert verdict.gain is None
    assert "not known" in verdict.sentence


def test_a_teacher_by_name_is_no_run(tmp_path: Path) -> None:
    verdict = _verdict(tmp_path, teacher="torchvision:fasterrcnn_resnet50_fpn_v2")
    assert verdict.gain == pytest.approx(4.0)
    assert verdict.teacher is None


def test_no_distilled_run_gives_no_verdict(tmp_path: Path) -> None:
    assert verdicts([read_run(write_run(tmp_path / "run", 30.0))]) == []
