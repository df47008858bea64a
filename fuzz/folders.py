"""Fuzz targets for whole folders: an input names its files, so that layouts are fuzzed as well as their content.

The first part of an input holds options, such as `skip background hold-out prefix`. Every other part is a file: a line
with its path, then its content. Every image has the same pixels, whatever its part contains. `{HERE}` becomes the
absolute path of the folder that contains the data set and, beside it, images and annotations that must never be read.
"""

import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from defeat.data import DataSource, DetectionDataset
from defeat.data.files import is_image
from fuzz.contract import SEPARATOR, Target, check, write_images

HERE = b"{HERE}"
_MOST_FILES, _DEEPEST = 16, 8
_DATA, _PICTURES, _OUTSIDE = "data", "pictures", "outside"
_OUTSIDE_CLASS = "a class that only files outside of the data set have"
_BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
_OUTSIDE_FILES = {
    "a.xml": f"<annotation><object><name>{_OUTSIDE_CLASS}</name>{_BOX}</object></annotation>",
    "a.txt": "0 0.5 0.5 0.1 0.1\n",
    "classes.txt": _OUTSIDE_CLASS,
    "list.txt": "a.png\n",
    "data.yaml": f"names: [{_OUTSIDE_CLASS}]\n",
}


def prepare(folder: Path) -> None:
    """Write what is beside the data set: a folder of images that may be named, and files that must not be read."""
    write_images(folder, f"{_OUTSIDE}/a.png", f"{_PICTURES}/a.png", f"{_PICTURES}/sub/b.png")
    for name, text in _OUTSIDE_FILES.items():
        (folder / _OUTSIDE / name).write_text(text)


def read(folder: Path, data: bytes) -> None:
    """Write the files of an input, and read every split of the data set."""
    options, *files = data.replace(HERE, os.fsencode(folder)).split(SEPARATOR)
    root = folder / _DATA
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    image = (folder / _PICTURES / "a.png").read_bytes()
    for part in files[:_MOST_FILES]:
        _write(root, part, image)
    words = options.decode(errors="replace").split()
    source = DataSource(_path(root, words), **_settings(folder, words))
    for split in source.split_names():
        dataset = source.open(split)
        check(dataset)
        if not _names_another_folder(root):
            _require_inside(dataset, folder)


def _settings(folder: Path, words: list[str]) -> dict[str, Any]:
    """How the data set is read."""
    by = [word for word in words if word in ("file", "folder", "prefix")]
    unannotated = [word for word in words if word in ("background", "drop", "error")]
    return {
        "on_bad_data": "skip" if "skip" in words else "stop",
        "unannotated": next(iter(unannotated), "auto"),
        "images": str(folder / _PICTURES) if "pictures" in words else None,
        "hold_out": 0.5 if "hold-out" in words else None,
        "hold_out_by": next(iter(by), "file"),
    }


def _path(root: Path, words: list[str]) -> str:
    """The folder, or the file in it that an option names, such as `@obj.data`."""
    named = [path for word in words if word.startswith("@") and (path := _inside(root, word[1:])) is not None]
    return str(next((path for path in named if path.exists()), root))


def _write(root: Path, part: bytes, image: bytes) -> None:
    """Write a file, unless its path is impossible."""
    name, _, content = part.partition(b"\n")
    path = _inside(root, os.fsdecode(name))
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image if is_image(path) else content)
    except OSError:  # too long, or a file is where its folder would be
        return


def _inside(root: Path, name: str) -> Path | None:
    """The path that a name means below the data set; None where it means none."""
    steps = [step for step in PurePosixPath(name.strip()).parts if step not in ("/", "//", "..")]
    too_long = any(len(os.fsencode(step)) > 255 for step in steps)
    return None if not steps or len(steps) > _DEEPEST or "\0" in name or too_long else root.joinpath(*steps)


def _names_another_folder(root: Path) -> bool:
    """Whether a YAML file may say that the data set is another folder, which YOLO's key `path` is for."""
    return any(b"path" in file.read_bytes() for file in root.rglob("*.y*ml") if file.is_file())


def _require_inside(dataset: DetectionDataset, folder: Path) -> None:
    """Check that nothing was read from outside of the data set."""
    roots = (folder / _DATA, folder / _PICTURES)
    for sample in dataset.samples:
        path = Path(os.path.abspath(sample.path))
        assert any(path.is_relative_to(root) for root in roots), "an image outside of the data set"
        assert not Path(sample.name).is_absolute(), "a name that is absolute"
        assert ".." not in Path(sample.name).parts, "a name that leaves the data set"
    assert _OUTSIDE_CLASS not in dataset.classes, "a class from outside of the data set"


_FOLDER = Target(prepare, read)
FOLDERS = dict.fromkeys(("voc_folders", "coco_folders", "yolo_folders", "labelme", "via", "cvat"), _FOLDER)
