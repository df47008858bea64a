"""The comparison table."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from defeat.report.runs import read_run
from defeat.report.tables import COLUMNS, comparison_rows, decimal, duration, print_comparison
from defeat.report.verdict import verdicts
from tests.report.made_up_runs import write_run, write_story


def _printed(folders: list[Path], width: int = 220) -> str:
    stream = io.StringIO()
    print_comparison([read_run(folder) for folder in folders], Console(file=stream, width=width))
    return stream.getvalue()


def test_rows_go_from_the_teacher_to_the_distilled_student(tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in write_story(tmp_path)]
    rows = comparison_rows(runs, verdicts(runs))
    assert [row.role for row in rows] == ["teacher", "baseline", "distilled (defeat)"]
    assert rows[0].detector == "faster_rcnn resnet101"
    cells = dict(zip((column.title for column in COLUMNS), rows[2].cells, strict=True))
    assert cells == {
        "AP": "34.0",
        "AP50": "34.0",
        "AP75": "34.0",
        "APs": "n/a",
        "APm": "34.0",
        "APl": "34.0",
        "VOC AP50": "34.0",
        "gap closed": "40 %",
        "params (M)": "12.50",
        "GFLOPs": "20.2",
        "latency (ms)": "41.0",
        "file (MB)": "50.0",
        "training": "1 h 02 min",
    }


def test_the_table_and_the_verdict_are_printed(tmp_path: Path) -> None:
    text = _printed(write_story(tmp_path))
    assert "latency (ms)" in text
    assert "distilled (defeat)" in text
    assert "+4.0 AP points" in text
    assert "One seed each" in text


def test_a_narrow_console_gets_every_figure_unbroken(tmp_path: Path) -> None:
    text = _printed(write_story(tmp_path), width=80)
    for expected in (*(column.title for column in COLUMNS), "164.0", "1 h 02 min", "12.50"):
        assert expected in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_a_name_is_not_read_as_markup(tmp_path: Path) -> None:
    assert "[red]name[/]" in _printed([write_run(tmp_path / "run", 30.0, name="[red]name[/]")])


def test_a_run_that_recorded_nothing_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 30.0)
    (folder / "results.json").write_text("{}")
    (folder / "model.json").write_text("{}")
    (row,) = comparison_rows([read_run(folder)])
    assert set(row.cells) == {"n/a"}
    assert row.detector == "n/a"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "n/a"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations_have_a_readable_unit(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_numbers_have_the_given_decimals() -> None:
    assert decimal(1.25, 2) == "1.25"
    assert decimal(None) == "n/a"
