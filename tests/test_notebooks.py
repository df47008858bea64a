"""The notebooks in `examples` run from beginning to end, as in a browser."""

from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import defeat
from defeat.benchmark.run import BenchRun
from defeat.notebook import html_table
from defeat.report.gains import Gain
from defeat.report.variants import MatrixResult, VariantResult
from defeat.types import Detections
from tests.detector.tiny import tiny_detector
from tests.engine.tiny_runs import tiny_run

EXAMPLES = Path(__file__).parents[1] / "examples"
# What a notebook shows, and a part of what it prints.
NOTEBOOKS = {
    "compare_runs": ({"text/html"}, "significant: "),
    "distil": ({"text/html", "image/png"}, "without a teacher"),
    "write_a_method": ({"text/html", "image/png"}, "neck_energy "),
}


def test_every_notebook_is_tested():
    assert sorted(NOTEBOOKS) == sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    expected, text = NOTEBOOKS[name]
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "notebooks are stored without outputs"
    NotebookClient(notebook, timeout=900).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = {kind for output in shown for kind in output.get("data", {})}
    assert expected <= kinds
    printed = "".join(output.get("text", "") for output in shown)
    assert text in printed


def test_a_table_escapes_names_and_values():
    assert '<th style="text-align:left">a&lt;b</th>' in html_table("<x>", {"a<b": "<script>"})
    assert "<script>" not in html_table("<x>", {"a<b": "<script>"})
    assert "&lt;x&gt;" in html_table("<x>", {})


@pytest.mark.usefixtures("small_demo")
def test_data_sets_detectors_and_runs_have_tables(tmp_path):
    data = defeat.open_dataset("demo", "train")
    assert f'<td style="text-align:left">{len(data)}</td>' in data._repr_html_()
    detector = tiny_detector("retinanet")
    assert "family retinanet" in detector._repr_html_()
    run = tiny_run(tmp_path / "run", max_steps=1)
    assert str(run.folder) in run._repr_html_()
    assert "AP75" in run._repr_html_()
    assert "not finished" not in run._repr_html_()


def test_a_comparison_has_a_table():
    baseline = VariantResult("none", (0,), (10.0,), {"AP": 10.0}, {})
    better = replace(baseline, name="<b>", ap=(12.5,), gain=Gain(2.5, (2.5,)))
    shown = BenchRun(MatrixResult(baseline, (better,), {"AP": 20.0}, images=7, samples=10))._repr_html_()
    for text in ("on 7 images", ">20.0 AP.<", ">10.0 AP.<", "&lt;b&gt;", "+2.5 AP: not significant"):
        assert text in shown
    assert "without a result" in BenchRun()._repr_html_()


def test_a_picture_has_the_boxes_above_the_threshold():
    detections = Detections(
        torch.tensor([[2.0, 2.0, 10.0, 10.0], [20.0, 20.0, 28.0, 28.0]]), torch.tensor([0.9, 0.1]), torch.tensor([0, 0])
    )
    grey = torch.full((3, 32, 32), 0.5)
    picture = defeat.draw(grey, detections, ["cat"])
    assert picture.size == (32, 32)
    assert picture.getpixel((2, 6)) != (128, 128, 128)
    assert picture.getpixel((20, 24)) == (127, 127, 127)
