"""Fuzz targets for single files: each writes the bytes of an input to files, reads them, and checks the result.

An input may contain several files, separated by `SEPARATOR`; a missing file has a default. Targets for whole folders
are in folders.py.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from defeat.data import open_dataset
from defeat.data.results import Description, read_results
from defeat.detector import DetectorSpec, ExportedDetector, build, load, save_model
from defeat.detector.exported import ExportDescription
from fuzz.contract import HEIGHT, WIDTH, Target, check, parts, write_images
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


LARGEST = 512  # pixels of an input that is filled
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


_NAMES, _SIZES = ["a.png", "sub/b.png"], [(HEIGHT, WIDTH)] * 2


def _prepare_nothing(folder: Path) -> None:
    """No shared files."""


def _read_results(folder: Path, data: bytes) -> None:
    """A results file, its description, and the categories of the data."""
    results, description, categories = parts(data, 3)
    (folder / "results.json").write_bytes(results)
    (folder / "description.json").write_bytes(description)
    known = Description(Path("data.json"), categories=dict(enumerate(categories.decode(errors="replace").split())))
    file = read_results(folder / "results.json", folder / "description.json" if description else None, known)
    assert len(file.boxes) == len(file.scores) == len(file.labels) > 0
    assert file.boxes.isfinite().all(), "a box that is not finite"
    assert ((file.scores >= 0) & (file.scores <= 1)).all(), "a score out of range"
    assert ((file.labels >= 0) & (file.labels < len(file.classes))).all(), "a label out of range"
    assert all(isinstance(there, bool) for there in file.has(_NAMES, _SIZES))
    for detections in file.find(_NAMES, _SIZES):
        assert detections is None or (detections.scores.diff() <= 0).all(), "detections that are not sorted"


class _Answer:
    """A runtime that gives one detection, or one candidate of each class."""

    def __init__(self, description: ExportDescription) -> None:
        self.description = description

    def run(self, images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.generic]]:
        boxes, classes = np.array([[1.0, 2.0, 9.0, 8.0]], dtype=np.float32), len(self.description.classes)
        if self.description.nms == "outside":
            return {"boxes": boxes[None], "scores": np.full((1, 1, classes), 0.9, dtype=np.float32)}
        return {"boxes": boxes, "scores": np.array([0.9], dtype=np.float32), "labels": np.array([classes - 1])}


def _read_exported(folder: Path, data: bytes) -> None:
    """The description in an exported file, used for an image."""
    about = ExportDescription.read(data.decode(errors="replace"), folder / "file.onnx")
    assert ExportDescription.read(about.text(), folder / "file.onnx") == about
    if max(about.size, about.max_size, about.height or 0, about.width or 0) > LARGEST:
        return
    detector = ExportedDetector(about, _Answer(about), folder / "file.onnx")
    (detections,) = detector.predict(torch.zeros(3, HEIGHT, WIDTH))
    assert detections.boxes.isfinite().all(), "a box that is not finite"
    assert ((detections.labels >= 0) & (detections.labels < len(about.classes))).all(), "a label out of range"


TARGETS = {
    "results": Target(_prepare_nothing, _read_results),
    "exported": Target(_prepare_nothing, _read_exported),
    "voc": Target(_prepare_voc, _read_voc),
    "coco": Target(_prepare_coco, _read_coco),
    "yolo": Target(_prepare_yolo, _read_yolo),
    "model": Target(_prepare_model, _read_model),
    **FOLDERS,
}
