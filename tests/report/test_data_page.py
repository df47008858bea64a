"""`defeat data`: figures of a data set in the terminal and as a page."""

import json
import re

import pytest

from defeat.cli import main
from defeat.data import DataSource
from tests.data.folders import voc_object, write_voc
from tests.engine.tiny_runs import save_teacher

BOX = voc_object("cat", (3, 4, 30, 20))


def shown(capsys, *arguments):
    assert main(["data", *map(str, arguments)]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_splits_and_classes_are_counted(tmp_path, capsys):
    write_voc(tmp_path, {"train": {"a": BOX + BOX, "b": ""}, "val": {"c": voc_object("dog", (1, 1, 9, 9))}})
    text = shown(capsys, tmp_path)
    assert re.search(r"train 2 1 2 .* 40 x 30", text)
    assert "class train val cat 2 0 dog 0 1" in text
    assert "train: 1 of 2 boxes duplicated" in text


@pytest.mark.parametrize(
    ("splits", "sentence"),
    [
        ({"train": {"a": BOX}}, "no split to evaluate on: hold out a share with --hold-out 0.2"),
        ({"train": {"a": BOX}, "val": {"b": ""}}, "No image of val contains an object"),
    ],
)
def test_what_makes_an_evaluation_useless_is_said(tmp_path, capsys, splits, sentence):
    assert sentence in shown(capsys, write_voc(tmp_path, splits))


def test_a_share_that_is_held_out_is_shown(tmp_path, capsys):
    write_voc(tmp_path, {"train": dict.fromkeys("abcdefgh", BOX)})
    text = shown(capsys, tmp_path, "--hold-out", "0.4", "--compare", "no")
    assert re.search(r"\btrain [1-7] 0 ", text)
    assert re.search(r"\bval [1-7] 0 ", text)


def test_equal_images_in_two_splits_are_named_and_drawn(tmp_path, capsys):
    write_voc(tmp_path, {"train": {"a": BOX}, "val": {"b": BOX}})
    image = (tmp_path / "JPEGImages/a.png").read_bytes()
    (tmp_path / "JPEGImages/b.png").write_bytes(image)
    text = shown(capsys, tmp_path, "--out", tmp_path / "page.html")
    assert "JPEGImages/b.png (val) looks like JPEGImages/a.png (train)" in text
    page = (tmp_path / "page.html").read_text()
    assert "Images that two splits share" in page
    assert page.count('src="data:image/jpeg') == 4
    assert "looks like" not in shown(capsys, tmp_path, "--compare", "no")


def test_names_of_a_data_set_are_escaped_in_its_page(tmp_path):
    write_voc(tmp_path, {"train": {"a": voc_object("&lt;b&gt;x", (1, 1, 9, 9))}, "val": {"b": BOX}})
    assert main(["data", str(tmp_path), "--compare", "no", "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page


def test_classes_of_a_teacher_are_matched(tmp_path, capsys):
    write_voc(tmp_path / "data", {"train": {"a": BOX}, "val": {"b": BOX}})
    teacher = save_teacher(tmp_path / "teacher", classes=("Cat", "ship"))
    arguments = [tmp_path / "data", "--compare", "no", "--teacher", teacher]
    assert "give --class-map '{Cat: cat}'" in shown(capsys, *arguments)
    assert "The student does not know the teacher's ship" in shown(capsys, *arguments, "--class-map", "{Cat: cat}")
    assert "has the classes of the data" in shown(capsys, *arguments, "--class-map", "{Cat: cat, ship: ~}")


def test_classes_of_a_results_file_are_matched(tmp_path, capsys):
    write_voc(tmp_path / "data", {"train": {"a": BOX}, "val": {"b": BOX}})
    detection = {"file_name": "a.png", "category_name": "Cat", "bbox": [1, 2, 3, 4], "score": 0.5}
    (tmp_path / "boxes.json").write_text(json.dumps([detection]))
    teacher = f"boxes:{tmp_path / 'boxes.json'}"
    text = shown(capsys, tmp_path / "data", "--compare", "no", "--teacher", teacher)
    assert "give --class-map '{Cat: cat}'" in text


def test_a_page_cannot_be_a_folder(tmp_path, capsys):
    write_voc(tmp_path, {"train": {"a": BOX}, "val": {"b": BOX}})
    assert main(["data", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "name an HTML file" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["coco", "yolo", "voc"])
def test_a_data_set_is_written_in_another_layout(tmp_path, capsys, layout):
    objects = voc_object("cat", (3, 4, 30, 20)) + voc_object("dog", (1, 1, 12, 9))
    write_voc(tmp_path / "data", {"train": {"a": objects, "b": ""}, "val": {"c": BOX}})
    shown(capsys, tmp_path / "data", "--compare", "no", "--export", layout, "--export-to", tmp_path / "written")
    before, after = (DataSource(str(tmp_path / name)) for name in ("data", "written"))
    assert after.split_names() == ["train", "val"]
    for split in ("train", "val"):
        original, written = before.open(split), after.open(split)
        assert original.classes == written.classes
        assert original.sizes == written.sizes
        assert original.table.boxes.allclose(written.table.boxes, atol=1e-3)
        assert original.table.labels.equal(written.table.labels)
    assert main(["data", str(tmp_path / "data"), "--export", layout, "--export-to", str(tmp_path / "written")]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


def test_a_layout_needs_a_folder(tmp_path, capsys):
    write_voc(tmp_path, {"train": {"a": BOX}, "val": {"b": BOX}})
    assert main(["data", str(tmp_path), "--export", "yolo"]) == 2
    assert "--export and --export-to belong together" in capsys.readouterr().err
