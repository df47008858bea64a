"""The examples of the documentation: each is run."""

import importlib.util
import shlex
from pathlib import Path

import pytest
import torch

from defeat.cli import main
from tests.data.folders import voc_object, write_image
from tests.detector.tiny import tiny_options
from tests.distillation.made_up import START, boxed, info, output
from tests.engine.tiny_runs import results, save_teacher

EXAMPLES = Path(__file__).parents[1] / "examples"
# Options that make the trainings of the script short.
SHORT = [
    "--max-steps",
    "4",
    "--size",
    "64",
    "--batch-size",
    "2",
    "--workers",
    "0",
    "--weights",
    "none",
    "--accelerator",
]
SHORT += ["cpu"]


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_energy_of_the_example_by_hand():
    # --8<-- [start:energy]
    detector = info({8: 3})  # a description with a level of stride 8 and three channels
    student, teacher = (output({8: torch.full((1, 3, 4, 4), value)}) for value in (2.0, 1.0))
    method = example("energy_method").Energy(detector, detector, energy_weight=0.5)
    losses = method(student, teacher, [boxed()], START)
    assert losses["neck_energy"].item() == pytest.approx(0.5 * (4 - 1) ** 2)
    # --8<-- [end:energy]


@pytest.mark.usefixtures("small_demo")
def test_the_method_of_the_example_distils(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", "faster_rcnn", options=tiny_options("faster_rcnn"))
    run = example("energy_method").main(str(tmp_path), str(teacher))
    assert run.finished


def commands():
    """The commands of the script for newcomers, as lists of arguments."""
    text = (EXAMPLES / "get_started.sh").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line.startswith("defeat ")]
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.slow
def test_the_commands_of_get_started_lead_to_a_file_that_detects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        write_image(tmp_path / "data" / f"{number}.png", 80, 60)
        objects = voc_object("cat", (5 + number, 5, 50, 45))
        text = f"<annotation><filename>{number}.png</filename>{objects}</annotation>"
        (tmp_path / "data" / f"{number}.xml").write_text(text)
    write_image(tmp_path / "photos" / "a.png", 80, 60)
    for arguments in commands():
        given = [argument.replace("$DATA", "data") for argument in arguments]
        if "--data" in given or given[0] == "data":
            given += ["--hold-out", "0.25"]
        if given[0] in ("train", "distill"):
            given += SHORT
        if given[0] == "distill":
            given.append("--allow-weak-teacher")
        assert main(given) == 0, given
    assert Path("student.onnx").is_file()
    assert Path("report.html").is_file()
    assert results(Path("runs/distilled"))["inherited"]["parts"] == ["neck", "head"]
