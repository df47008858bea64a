"""The example: a real detector of another tool, in ONNX, is a teacher that only gives boxes."""

import runpy
from pathlib import Path

import pytest
from rich.console import Console

import defeat
from defeat.assembly.assemble import assemble
from defeat.assembly.box_teachers import as_network
from defeat.assembly.objects import Objects
from defeat.data import open_dataset
from defeat.distillation import ClassMap
from defeat.engine.guards import require_accurate_teacher
from tests.engine.tiny_runs import settings
from tests.shared_data import shared_folder, shared_model

pytestmark = pytest.mark.real
EXAMPLE = Path(__file__).parents[2] / "examples" / "nanodet_teacher.py"


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def teacher(example):
    return example["NanoDet"](str(shared_model("nanodet_g_416_coco.onnx")))


def voc15():
    return shared_folder("DEFEAT_DATA", "../shared/data") / "voc15"


def test_the_example_detects_photographs_by_the_names_of_its_classes(example, teacher):
    assert isinstance(teacher, defeat.BoxTeacher)
    assert len(teacher.classes) == 80
    photographs = open_dataset(voc15(), "test")
    renamed = tuple(example["VOC"].get(name, name) for name in teacher.classes)
    classes = ClassMap(photographs.classes, renamed)
    assert len(classes.pairs) == 15
    sample = photographs.evenly_spaced(24)
    assert require_accurate_teacher(as_network(teacher), classes, sample) > 40


def test_the_example_labels_photographs_without_annotations(example, teacher, tmp_path):
    data = voc15()
    photographs = open_dataset(data, "test")
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index in range(8):
        path = Path(photographs.image_path(index))
        (folder / path.name).symlink_to(path)
    names = {theirs: ours for theirs, ours in example["VOC"].items() if ours in photographs.classes}
    given = settings(
        tmp_path / "run", teacher="-", data=str(data), unlabelled=str(folder), pseudo_labels=0.4, class_map=names
    )
    assembly = assemble(given, Console(quiet=True), given=Objects(teacher=teacher))
    unlabelled = assembly.experiment.distillation.unlabelled
    certain = [unlabelled.target(index).trainable() for index in range(8)]
    annotated = [photographs.target(index) for index in range(8)]
    assert sum(len(target.labels) for target in certain) >= 8
    # Most images show what NanoDet says they show.
    agreeing = [bool(set(a.labels.tolist()) & set(b.labels.tolist())) for a, b in zip(certain, annotated, strict=True)]
    assert sum(agreeing) >= 6


def test_the_example_takes_its_files_as_arguments(example, monkeypatch):
    given = {}
    model = str(shared_model("nanodet_g_416_coco.onnx"))
    monkeypatch.setattr(defeat, "distill", lambda **arguments: given.update(arguments))
    example["main"]([model, "--data", str(voc15()), "--unlabelled", "photographs", "--out", "run"])
    assert given["teacher"].classes[0] == "person"
    assert (given["unlabelled"], given["out"], given["size"]) == ("photographs", "run", 320)
    assert given["class_map"]["motorcycle"] == "motorbike"
