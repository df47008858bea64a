"""Fuzz targets for single files: each writes the bytes of an input to files, reads them, and checks the result.

An input may contain several files, separated by `SEPARATOR`; a missing file has a default. Targets for whole folders
are in folders.py.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from defeat.data import open_dataset
from defeat.detector import DetectorSpec, build, load, save_model
from fuzz.contract import Target, check, parts, write_images
from fuzz.folders import FOLDERS


def _prepare_voc(folder: Path) -> None:
    (folder / "Annotations").mkdir()
    (folder / "ImageSets/Main").mkdir(parents=True)
    write_images(folder, "JPEGImages/a.png", "JPEGImages/b.png")
    (folder / "Annotations/b.xml").write_text("<annotation><filename>b.png</filename></annotation>")


def _read_voc(folder: Path, data: bytes) -> None:
    """An annotation, and the list of the split."""
    annotation, listed = parts(data, 2)
    (folder / "Annotations/a.xml").write_bytes(annotation)
    (folder / "ImageSets/Main/train.txt").write_bytes(listed or b"a\nb\n")
    check(open_dataset(folder, "train"))


def _prepare_coco(folder: Path) -> None:
    (folder / "annotations").mkdir()
    write_images(folder, "train/a.png", "train/sub/b.png")


def _read_coco(folder: Path, data: bytes) -> None:
    """The annotation file of a split."""
    (folder / "annotations/instances_train.json").write_bytes(data)
    check(open_dataset(folder, "train"))


def _prepare_yolo(folder: Path) -> None:
    (folder / "labels/train").mkdir(parents=True)
    write_images(folder, "images/train/a.png", "images/train/b.png")


def _read_yolo(folder: Path, data: bytes) -> None:
    """The description, the labels of an image, and a list of images."""
    description, labels, listed = parts(data, 3)
    (folder / "data.yaml").write_bytes(description)
    (folder / "labels/train/a.txt").write_bytes(labels)
    (folder / "list.txt").write_bytes(listed or b"images/train/a.png\n")
    check(open_dataset(folder, "train"))


# The smallest detector that can be built.
TINY = DetectorSpec("retinanet", "lcnet_050", ("cat",), size=32, max_size=32, neck_channels=1)


def _prepare_model(folder: Path) -> None:
    (folder / "valid").mkdir()
    torch.manual_seed(0)
    save_model(build(TINY, "none"), folder / "valid")
    _valid_weights.cache_clear()


@cache
def _valid_weights(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of valid weights of `TINY`."""
    content = (folder / "valid/model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _read_model(folder: Path, data: bytes) -> None:
    """The description, and a change of valid weights of the smallest detector.

    The second part is a JSON object whose entries replace those of the weights' header (null removes one), or else a
    whole file of weights, or empty for valid weights.
    """
    description, change = parts(data, 2)
    (folder / "model.json").write_bytes(description)
    (folder / "model.safetensors").write_bytes(_changed_weights(folder, change))
    detector = load(folder)
    assert not detector.training
    assert all(weight.numel() < 10**7 for weight in detector.parameters())
    assert len(detector.info.classes) > 0


def _changed_weights(folder: Path, change: bytes) -> bytes:
    header, content = _valid_weights(folder)
    if change:
        try:
            entries = json.loads(change)
        except (ValueError, RecursionError):
            return change
        if not isinstance(entries, dict):
            return change
        header = {name: value for name, value in (header | entries).items() if value is not None}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


TARGETS = {
    "voc": Target(_prepare_voc, _read_voc),
    "coco": Target(_prepare_coco, _read_coco),
    "yolo": Target(_prepare_yolo, _read_yolo),
    "model": Target(_prepare_model, _read_model),
    **FOLDERS,
}
