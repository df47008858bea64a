"""Exported images have the pixels that their boxes refer to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from defeat.data import DemoDataset, open_dataset
from defeat.data.dataset import Annotation, SplitBuilder
from defeat.data.export import export_dataset
from defeat.data.images import read_header
from defeat.data.objects import ObjectDataset
from tests.data.exported import LAYOUTS, require_equal
from tests.data.folders import write_image


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
