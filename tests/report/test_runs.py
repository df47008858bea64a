"""Reading run directories."""

import json
from pathlib import Path

import pytest

from defeat.errors import InputError
from defeat.report.runs import FILES, read_run
from tests.report.made_up_runs import write_run


def test_a_run_is_read(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", 30.0))
    assert (run.name, run.command, run.family, run.backbone, run.size) == (
        "run",
        "train",
        "faster_rcnn",
        "resnet18",
        320,
    )
    assert run.metrics["AP"] == 30.0
    assert run.metrics["APs"] is None
    assert run.per_class["cat"]["AP"] == 31.0
    assert (run.parameters, run.seed, run.epochs, run.steps) == (12_500_000, 0, 12, 1200)
    assert run.curve("val/AP50") == [(float(epoch), 30.0) for epoch in range(1, 13)]
    assert run.curve("train/loss", over="step")[0] == (100.0, 3.0)


def test_a_value_that_a_run_did_not_record_is_unknown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 30.0)
    (folder / "results.json").write_text('{"metrics": {"AP": NaN}, "latency_ms": "fast", "per_class": []}')
    run = read_run(folder)
    assert run.name == "run"
    assert run.family == "faster_rcnn"  # of model.json
    assert run.metrics == {"AP": None}
    assert run.latency_ms is None
    assert run.seed is None
    assert run.per_class == {}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run", 30.0)
    (folder / name).unlink()
    with pytest.raises(InputError, match=name) as raised:
        read_run(folder)
    assert "\n" not in str(raised.value)


def test_an_unfinished_run_is_refused_with_a_hint_to_resume(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 30.0)
    (folder / "results.json").unlink()
    with pytest.raises(InputError, match=r"not finished.*--resume"):
        read_run(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_damaged_results_are_named(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path / "run", 30.0)
    (folder / "results.json").write_text(text)
    with pytest.raises(InputError, match=r"results\.json is damaged"):
        read_run(folder)


def test_a_truncated_last_line_of_the_log_is_ignored(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 30.0)
    complete = read_run(folder).log
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1300, "epo')
    assert read_run(folder).log == complete


def test_steps_that_a_resumed_run_repeats_count_once(tmp_path: Path) -> None:
    lines = [{"step": step, "train/loss": loss} for step, loss in ((1, 9.0), (2, 8.0), (3, 7.0), (2, 6.0), (3, 5.0))]
    folder = write_run(tmp_path / "run", 30.0, log=lines)
    assert read_run(folder).curve("train/loss", over="step") == [(1.0, 9.0), (2.0, 6.0), (3.0, 5.0)]


def test_a_run_without_a_name_has_the_name_of_its_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 30.0, name=None)
    assert json.loads((folder / "results.json").read_text())["name"] is None
    assert read_run(folder).name == "run"
