"""Exported files in `defeat compare`."""

import json

import pytest

from defeat.cli import main
from defeat.errors import InputError
from defeat.report.compare import compare
from defeat.report.html import render
from defeat.report.runs import read_export, read_run
from tests.exporting.tiny_exports import exported
from tests.report.made_up_runs import write_story


@pytest.fixture
def file(tmp_path):
    """An exported file whose report says that it was verified in full."""
    _, path = exported(tmp_path)
    report = path.with_name("file.onnx.json")
    content = json.loads(report.read_text())
    content["evaluation"] = {"metrics": {"AP": 23.4, "AP50": 45.6}, "images": 10}
    report.write_text(json.dumps(content))
    return path


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Teacher, baseline and distilled run, which have no weights to measure."""
    monkeypatch.setattr("defeat.report.compare.profiled", lambda run, threads: run)
    return write_story(tmp_path / "runs")


def test_a_file_has_a_row_with_its_latency_and_size(file, runs, tmp_path, capsys):
    arguments = ["compare", *map(str, runs), str(file), "--out", str(tmp_path / "report.html")]
    assert main(arguments) == 0
    assert "exported" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "file.onnx" in page
    assert "exported (fp32)" in page
    assert "23.4" in page
    assert "AP over latency" in page


@pytest.mark.slow
def test_a_file_without_an_evaluation_has_no_accuracy(tmp_path, runs):
    _, path = exported(tmp_path)
    run = read_export(path)
    assert run.metrics == {}
    assert run.model_bytes == path.stat().st_size
    page = render([read_run(folder) for folder in runs], exported=[run])
    assert "exported (fp32)" in page


def test_runs_without_measured_latency_have_no_plot(runs):
    assert "AP over latency" not in render([read_run(runs[0])])


@pytest.mark.slow
def test_files_alone_are_refused(file):
    with pytest.raises(InputError, match="Give at least one run directory to compare the exported files with"):
        compare([str(file)])


@pytest.mark.slow
def test_a_file_without_its_report_is_refused(file, runs, tmp_path):
    file.with_name("file.onnx.json").unlink()
    with pytest.raises(InputError, match=r"file.onnx.json is missing: `defeat export` writes it beside the file"):
        compare([str(runs[0]), str(file)], str(tmp_path / "report.html"))
    with pytest.raises(InputError, match="does not exist"):
        read_export(tmp_path / "missing.onnx")
