"""Data sets written in other layouts are read again as they were."""

import json
from pathlib import Path

import pytest
import torch

from defeat.data import DemoDataset, open_dataset, split_names
from defeat.data.export import export_dataset
from defeat.errors import InputError
from tests.data.exported import LAYOUTS, content, drawn, require_equal
from tests.data.folders import coco_content, voc_object, write_coco, write_image, write_voc, write_yolo


@pytest.mark.parametrize("layout", LAYOUTS)
def test_demo_is_read_again_with_its_pixels(tmp_path, small_demo, layout):
    splits = {split: DemoDataset(split) for split in ("train", "val", "test")}
    notes = export_dataset(splits, tmp_path / "out", layout)
    assert split_names(tmp_path / "out") == ["test", "train", "val"]
    for name, original in splits.items():
        read = open_dataset(tmp_path / "out", name)
        assert read.report() is None
        assert read.classes == original.classes
        require_equal(read, original)
        for index, (image, target) in enumerate(read[index] for index in range(len(read))):
            assert torch.equal(image, original[index][0])
            assert target.labels.tolist() == original.target(index).labels.tolist()
            torch.testing.assert_close(target.boxes, original.target(index).boxes, rtol=0, atol=1e-3)
    assert notes == (
        [] if layout != "voc" else ["8 images renamed (another has the name, or it is not safe on every system)"]
    )


OBJECTS = {
    "a": [((1.5, 2.25, 33.3333, 20.7), "dog"), ((0, 0, 40, 30), "cat", True), ((3, 4, 5, 6), "cat", False, True)],
    "empty": [],
    "b c": [((39, 29, 40, 30), "cat"), ((10.1, 10.2, 10.6, 20), "dog")],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_classes_sizes_boxes_and_background_survive(tmp_path, layout):
    original = drawn(tmp_path / "in", OBJECTS)
    notes = export_dataset({"train": original}, tmp_path / "out", layout)
    read = open_dataset(tmp_path / "out", "train")
    assert read.classes == ("cat", "dog")
    assert read.report() is None
    for stem, path in (("a", "a.png"), ("empty", "empty.png"), ("b c", "b c.png")):
        written = next(sample.path for sample in read.samples if Path(sample.path).stem == stem)
        assert Path(written).read_bytes() == (tmp_path / "in" / path).read_bytes()
    if layout == "voc":
        # The box of half a pixel's width becomes one from 9.85 to 10.85, give or take a thousandth.
        box = content(read)[1][2][1].tolist()
        assert box == pytest.approx([9.8495, 10.2, 10.8505, 20], abs=1e-3)
        assert content(read)[0][4].tolist() == [False, True, True]
        assert notes == [
            "1 crowd flags written as difficult (VOC has none)",
            "1 boxes widened to one pixel (VOC has no smaller ones)",
        ]
    elif layout == "coco":
        require_equal(read, original, ["crowd"])
        assert notes == ["1 difficult flags lost (COCO has none)"]
    else:
        require_equal(read, original)
        assert notes == ["1 difficult flags lost (YOLO has none)", "1 crowd flags lost (YOLO has none)"]


def test_files_have_the_numbers_of_their_layouts(tmp_path):
    original = drawn(tmp_path / "in", {"a": [((10, 6, 30, 15), "dog")]})
    for layout in LAYOUTS:
        export_dataset({"train": original}, tmp_path / layout, layout)
    coco = json.loads((tmp_path / "coco/annotations/instances_train.json").read_text())
    assert coco["annotations"][0]["bbox"] == [10, 6, 20, 9]
    assert coco["annotations"][0]["area"] == 180
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    # Centre (20, 10.5) and extent (20, 9) in parts of 40 x 30.
    line = (tmp_path / "yolo/labels/train/a.txt").read_text().split()
    assert [float(value) for value in line] == [1, 0.5, 0.35, 0.5, 0.3]
    voc = (tmp_path / "voc/Annotations/a.xml").read_text()
    assert "<xmin>11</xmin><ymin>7</ymin><xmax>30</xmax><ymax>15</ymax>" in voc


def test_a_voc_set_becomes_coco_and_yolo_and_voc_again(tmp_path):
    difficult = voc_object("cat", (1, 1, 40, 30), "<difficult>1</difficult>")
    write_voc(
        tmp_path / "in",
        {"train": {"a": voc_object("dog", (3, 4, 20, 10)) + difficult, "b": ""}, "val": {"c": difficult}},
    )
    original = {split: open_dataset(tmp_path / "in", split) for split in ("train", "val")}
    for layout in LAYOUTS:
        notes = export_dataset(original, tmp_path / layout, layout)
        assert len(notes) == (layout != "voc")
        for split in original:
            read = open_dataset(tmp_path / layout, split)
            assert read.classes == ("cat", "dog")
            require_equal(read, original[split], ["difficult"] if layout == "voc" else [])


def test_coco_and_yolo_sets_are_read_again(tmp_path):
    write_coco(tmp_path / "coco", coco_content())
    for name in ("a.png", "sub/b.png"):
        write_image(tmp_path / "coco/train2017" / name)
    write_yolo(tmp_path / "yolo", {"a": "1 0.5 0.5 0.5 0.5\n", "b": ""})
    for source in ("coco", "yolo"):
        original = open_dataset(tmp_path / source, "train")
        for layout in LAYOUTS:
            export_dataset({"train": original}, tmp_path / f"{source}-{layout}", layout)
            require_equal(open_dataset(tmp_path / f"{source}-{layout}", "train"), original)
    ids = [sample.image_id for sample in open_dataset(tmp_path / "coco-coco", "train").samples]
    assert ids == [9, 4]


@pytest.mark.parametrize("layout", ["coco", "yolo"])
def test_order_of_classes_and_classes_without_objects_survive(tmp_path, layout):
    original = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), "ape")]}, classes=("zebra", "unused", "ape"))
    assert export_dataset({"train": original}, tmp_path / "out", layout) == []
    assert open_dataset(tmp_path / "out", "train").classes == ("zebra", "unused", "ape")


def test_voc_says_that_it_has_no_list_of_classes(tmp_path):
    boxes = [((1, 2, 9, 9), "ape"), ((1, 2, 9, 9), "zebra")]
    original = drawn(tmp_path / "in", {"a": boxes}, classes=("zebra", "unused", "ape"))
    notes = export_dataset({"train": original}, tmp_path / "out", "voc")
    assert open_dataset(tmp_path / "out", "train").classes == ("ape", "zebra")
    assert notes == [
        "1 classes without an object lost (VOC has no list of classes): unused",
        "the order of the classes is lost (VOC has no list of classes): they are read sorted by name",
    ]
    nothing = drawn(tmp_path / "in", {"b": []})
    with pytest.raises(InputError, match="without objects can't be written as VOC"):
        export_dataset({"train": nothing}, tmp_path / "none", "voc")
    assert not (tmp_path / "none").exists()


def test_an_image_of_several_splits_is_one_file_in_voc(tmp_path):
    box = [((1, 2, 9, 9), "cat")]
    both = drawn(tmp_path / "in", {"a": box, "b": box}, classes=("cat",))
    splits = {"train": both.subset([0], "train"), "trainval": both}
    assert export_dataset(splits, tmp_path / "voc", "voc") == []
    assert len(list((tmp_path / "voc/JPEGImages").iterdir())) == 2
    assert [len(open_dataset(tmp_path / "voc", split)) for split in splits] == [1, 2]
    twice = both.subset([0, 0], "train")
    export_dataset({"train": twice}, tmp_path / "twice", "voc")
    assert len(open_dataset(tmp_path / "twice", "train")) == 2
    notes = export_dataset(splits, tmp_path / "coco", "coco")
    assert notes == ["1 images are in several splits (each has a copy)"]
    with pytest.raises(InputError, match="'train' and 'trainval' would both be train"):
        export_dataset(splits, tmp_path / "yolo", "yolo")


def test_the_only_split_of_another_name_is_for_training_in_yolo(tmp_path):
    original = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), "cat")]}, classes=("cat",))
    notes = export_dataset({"all": original}, tmp_path / "yolo", "yolo")
    assert notes == ["the split 'all' is written as 'train'"]
    assert split_names(tmp_path / "yolo") == ["train"]
    for layout in ("coco", "voc"):
        assert export_dataset({"all": original}, tmp_path / layout, layout) == []
        assert split_names(tmp_path / layout) == ["all"]


def test_splits_of_different_classes_get_all_of_them(tmp_path):
    train = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), "dog")]}, classes=("cat", "dog"))
    val = drawn(tmp_path / "in", {"b": [((1, 2, 9, 9), "dog"), ((1, 2, 9, 9), "ape")]}, classes=("dog", "ape"))
    notes = export_dataset({"train": train, "val": val}, tmp_path / "out", "yolo")
    assert notes == ["the splits have different classes: each is written with all 3"]
    read = open_dataset(tmp_path / "out", "val")
    assert read.classes == ("cat", "dog", "ape")
    assert read.target(0).labels.tolist() == [1, 2]
