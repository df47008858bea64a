"""Data sets written in other layouts are read again as they were."""

import errno
import json
import os
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from defeat.data import DemoDataset, open_dataset, split_names
from defeat.data.dataset import Annotation, DetectionDataset, SplitBuilder
from defeat.data.export import export_dataset
from defeat.data.images import read_header
from defeat.data.objects import ObjectDataset
from defeat.errors import InputError
from tests.data.folders import coco_content, voc_object, write_coco, write_image, write_voc, write_yolo

LAYOUTS = ("coco", "yolo", "voc")


def drawn(folder, images, classes=("cat", "dog"), split="train", upright=True, suffix=".png", size=(30, 40)):
    """A split of images of 40 x 30 pixels: name -> annotations (corners, class, difficult, crowd)."""
    builder = SplitBuilder(classes)
    for name, annotations in images.items():
        path = write_image(folder / f"{name}{suffix}", size[1], size[0])
        boxes = [Annotation(*annotation) for annotation in annotations]
        builder.add(path, path.relative_to(folder).as_posix(), size, boxes, prefer_upright=upright)
    return builder.finish("drawn", split, folder)


def content(dataset: DetectionDataset) -> list[tuple]:
    """Size and objects of each image with the names of the classes, whatever the order of the images."""
    rows = []
    for index, sample in enumerate(dataset.samples):
        target = dataset.target(index)
        names = [dataset.classes[label] for label in target.labels.tolist()]
        rows.append((Path(sample.name).stem, sample.size, target.boxes, names, target.difficult, target.crowd))
    return sorted(rows, key=lambda row: row[0])


def require_equal(read, original, flags=()):
    first, second = content(read), content(original)
    assert len(first) == len(second)
    for (_, size, boxes, names, *read_flags), (_, size2, boxes2, names2, *flags2) in zip(first, second, strict=True):
        assert size == size2
        assert names == names2
        torch.testing.assert_close(boxes, boxes2, rtol=0, atol=1e-3)
        for flag in flags:
            which = ("difficult", "crowd").index(flag)
            assert read_flags[which].tolist() == flags2[which].tolist()


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


def oriented(path, orientation, size=(30, 40), image_format="JPEG"):
    """An image as stored in `size` (height, width), with its left half bright."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[: size[0] // 2, : size[1] // 2] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, image_format, exif=exif)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_oriented_images_are_read_as_their_boxes_see_them(tmp_path, layout, orientation, upright, suffix):
    path = oriented(tmp_path / f"in/a{suffix}", orientation, image_format="JPEG" if suffix == ".jpg" else "PNG")
    header = read_header(path)
    builder = SplitBuilder(("cat",))
    size = header.upright if upright else header.stored
    builder.add(path, path.name, size, [Annotation((1, 2, 9, 9), "cat")], prefer_upright=upright)
    original = builder.finish("in", "train", path.parent)
    notes = export_dataset({"train": original}, tmp_path / "out", layout)
    read = open_dataset(tmp_path / "out", "train")
    require_equal(read, original)
    difference = (read[0][0].float() - original[0][0].float()).abs()
    assert difference.mean() < 1
    is_copied = Path(read.samples[0].path).read_bytes() == path.read_bytes()
    assert is_copied == (notes == [])
    # Readers of YOLO turn every image; the others turn those whose size says so.
    turned_by_reader = layout == "yolo" or (upright and orientation in (6, 7))
    assert is_copied == (orientation == 1 or turned_by_reader == upright)
    assert Path(read.samples[0].path).suffix == suffix


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


def test_images_of_unknown_suffix_become_png(tmp_path):
    path = tmp_path / "in/a.gif"
    path.parent.mkdir()
    Image.new("RGB", (40, 30), (255, 0, 0)).save(path)
    builder = SplitBuilder(("cat",))
    builder.add(path, "a.gif", (30, 40), [Annotation((1, 2, 9, 9), "cat")])
    original = builder.finish("in", "train", path.parent)
    for layout in LAYOUTS:
        notes = export_dataset({"train": original}, tmp_path / layout, layout)
        assert notes[-1].startswith("1 images written as PNG")
        read = open_dataset(tmp_path / layout, "train")
        assert torch.equal(read[0][0], original[0][0])


def test_python_objects_are_written(tmp_path):
    image = torch.randint(0, 255, (3, 20, 30), dtype=torch.uint8)
    source = [(image, {"boxes": [[1, 2, 9, 9]], "labels": [0]})]
    original = ObjectDataset(source, ["cat"])
    for layout in LAYOUTS:
        assert export_dataset({"train": original}, tmp_path / layout, layout) == []
        assert torch.equal(open_dataset(tmp_path / layout, "train")[0][0], image)


def test_a_file_that_happens_to_have_the_name_of_a_drawn_scene_is_not_taken(tmp_path, monkeypatch, small_demo):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "demo/val/0000.png", 128, 128)
    original = DemoDataset("val")
    export_dataset({"val": original}, "out", "coco")
    assert torch.equal(open_dataset("out", "val")[0][0], original[0][0])


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


def test_links_share_the_file_and_fall_back_to_copies(tmp_path, monkeypatch):
    original = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), "cat")]})
    export_dataset({"train": original}, tmp_path / "linked", "coco", links=True)
    assert (tmp_path / "linked/train/a.png").samefile(tmp_path / "in/a.png")
    export_dataset({"train": original}, tmp_path / "copied", "coco")
    assert not (tmp_path / "copied/train/a.png").samefile(tmp_path / "in/a.png")

    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    export_dataset({"train": original}, tmp_path / "fallback", "coco", links=True)
    assert (tmp_path / "fallback/train/a.png").read_bytes() == (tmp_path / "in/a.png").read_bytes()


def test_only_a_new_or_empty_folder_is_written(tmp_path, monkeypatch):
    original = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), "cat")]})
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for folder in ("full", "full/file"):
        with pytest.raises(InputError, match=r"is not an empty folder: name a new one\.$"):
            export_dataset({"train": original}, tmp_path / folder, "coco")
    with pytest.raises(InputError, match="can't be written"):
        export_dataset({"train": original}, tmp_path / "full/file/below", "coco")
    (tmp_path / "empty").mkdir()
    export_dataset({"train": original}, tmp_path / "empty", "coco")
    export_dataset({"train": original}, tmp_path / "deep/er", "coco")
    assert len(open_dataset(tmp_path / "empty", "train")) == len(open_dataset(tmp_path / "deep/er", "train")) == 1
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="name a new folder in it"):
        export_dataset({"train": original}, ".", "coco")


def test_nothing_is_left_after_an_error(tmp_path, monkeypatch):
    original = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), "cat")], "b": []})
    before = sorted(tmp_path.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(InputError, match=r"can't be written \(No space left on device\): it needs [\d,]+ bytes"):
            export_dataset({"train": original}, tmp_path / "out", "coco")
    (tmp_path / "in/b.png").unlink()
    with pytest.raises(InputError, match=r"b\.png does not exist"):
        export_dataset({"train": original}, tmp_path / "out", "coco")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["", "a/b", ".x", "..", "a\n", " a"])
def test_names_of_splits_must_be_file_names(tmp_path, name):
    original = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), "cat")]})
    with pytest.raises(InputError, match="must be a valid name of a file"):
        export_dataset({name: original}, tmp_path / "out", "coco")


def test_an_unknown_layout_and_no_images_are_refused(tmp_path):
    original = drawn(tmp_path / "in", {"a": []})
    with pytest.raises(InputError, match=r"Unknown layout 'cocoo'\. Did you mean 'coco'"):
        export_dataset({"train": original}, tmp_path / "out", "cocoo")
    with pytest.raises(InputError, match="no split"):
        export_dataset({}, tmp_path / "out", "coco")
    with pytest.raises(InputError, match="contains no image"):
        export_dataset({"train": original.subset([], "train")}, tmp_path / "out", "coco")


def test_progress_is_shown_for_each_split(tmp_path):
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    original = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), "cat")]})
    export_dataset({"a[b]": original}, tmp_path / "out", "coco", console=console)
    assert "Writing a[b]" in text.getvalue()
