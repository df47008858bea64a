"""Names of classes and images survive an export, or are replaced where a layout can't hold them."""

from pathlib import Path

import pytest

from defeat.data import open_dataset
from defeat.data.export import export_dataset
from defeat.errors import InputError
from tests.data.exported import LAYOUTS, drawn, require_equal


@pytest.mark.parametrize("layout", LAYOUTS)
def test_special_class_names_survive(tmp_path, layout):
    classes = (
        '<a> & "b"',
        "no",
        "1.0",
        "~",
        "a: b #c",
        "]]>",
        "- x",
        "été 猫 🚗",
        "{}",
        "a\x85b",
        "a\nb",
        "a\u2028b",
        "\ufeffx",
        "<<",
        "=",
        "%YAML",
        "x'y",
    )
    boxes = [((1, 2, 9, 9), name) for name in classes]
    original = drawn(tmp_path / "in", {"a": boxes}, classes=classes)
    export_dataset({"train": original}, tmp_path / "out", layout)
    read = open_dataset(tmp_path / "out", "train")
    assert read.classes == (tuple(sorted(classes)) if layout == "voc" else classes)
    require_equal(read, original)


@pytest.mark.parametrize("name", ["a\x00b", " cat", "line\rbreak", "\ud800", "\ufffe"])
def test_class_names_that_voc_cannot_hold_are_refused_and_others_hold_them(tmp_path, name):
    original = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), name)]}, classes=(name,))
    for layout in ("coco", "yolo"):
        export_dataset({"train": original}, tmp_path / layout, layout)
        assert open_dataset(tmp_path / layout, "train").classes == (name,)
    with pytest.raises(InputError, match="can't be written as VOC"):
        export_dataset({"train": original}, tmp_path / "voc", "voc")
    assert not (tmp_path / "voc").exists()


def test_images_of_one_name_keep_apart(tmp_path):
    box = [((1, 2, 9, 9), "cat")]
    train = drawn(tmp_path / "in", {"left/1": box, "right/1": [], "RIGHT/1": box, "x/right_1": box})
    other = drawn(tmp_path / "in", {"left/1": box}, suffix=".jpg")
    for layout in LAYOUTS:
        export_dataset({"train": train, "val": other}, tmp_path / layout, layout)
        assert len(open_dataset(tmp_path / layout, "train")) == 4
        assert open_dataset(tmp_path / layout, "val").target(0).labels.tolist() == [0]
    names = sorted(path.name for path in (tmp_path / "voc/JPEGImages").iterdir())
    assert names == ["1.png", "1_2.png", "left_1.jpg", "right_1.png", "x_right_1.png"]


def test_unsafe_names_are_replaced(tmp_path):
    names = ("a:b?", ".hidden", "photo 1", "x.jpg", "tab\tname", "50%&<x>", "é" * 120)
    original = drawn(tmp_path / "in", {name: [((1, 2, 9, 9), "cat")] for name in names})
    for layout in LAYOUTS:
        notes = export_dataset({"train": original}, tmp_path / layout, layout)
        read = open_dataset(tmp_path / layout, "train")
        assert len(read) == len(names)
        assert {Path(sample.path).name for sample in read.samples} == {
            "a_b_.png",
            "_.hidden.png",
            "photo 1.png",
            "x.jpg.png",
            "tab_name.png",
            "50%&_x_.png",
            f"{'é' * 100}.png",
        }
        assert "5 images renamed (another has the name, or it is not safe on every system)" in notes
