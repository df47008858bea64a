"""Fuzz targets: each writes the bytes of an input to files, reads them, and checks the result.

An input may contain several files, separated by `SEPARATOR`; a missing file has a default. Every input must be read, or
refused by an `InputError` of one line.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from defeat.data import DetectionDataset, open_dataset
from defeat.detector import DetectorSpec, build, load, save_model
from defeat.errors import BadDataError, InputError

CORPUS = Path(__file__).resolve().parent / "corpus"
SEPARATOR = b"\n=====\n"
WIDTH, HEIGHT = 40, 30


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        prepare: writes the files shared by all inputs to an empty folder.
        read: writes an input to the folder and reads it; raises InputError if it refuses the input.
    """

    prepare: Callable[[Path], None]
    read: Callable[[Path, bytes], None]


def run(target: Target, folder: Path, data: bytes) -> bool:
    """Read one input, and return whether it was accepted.

    Raises:
        AssertionError: the result is invalid, or the error message is not one line (or for several problems, a heading,
            at most ten lines, and advice).
    """
    try:
        target.read(folder, data)
    except InputError as error:
        require_readable(error)
        return False
    return True


def require_readable(refusal: InputError) -> None:
    """Check an error message: one printable line, or a heading, at most ten lines, and advice."""
    message = str(refusal)
    assert message.strip(), "an empty message"
    lines = message.split("\n")
    assert len(lines) <= (12 if isinstance(refusal, BadDataError) else 1), "a message of several lines"
    assert all(map(str.isprintable, lines)), "a message with control characters"
    message.encode()  # it must be printable


def parts(data: bytes, count: int) -> list[bytes]:
    """Split an input into its files; missing files are empty."""
    files = data.split(SEPARATOR, count - 1)
    return files + [b""] * (count - len(files))


def check(dataset: DetectionDataset) -> None:
    """Check that all targets of a data set are valid."""
    assert len(dataset) > 0
    for index in range(len(dataset)):
        target = dataset.target(index)
        height, width = target.size
        assert height > 0
        assert width > 0
        boxes, labels = target.boxes, target.labels
        assert boxes.dtype == torch.float32
        assert boxes.shape == (len(labels), 4)
        assert boxes.isfinite().all(), "a box that is not finite"
        assert (boxes >= 0).all(), "a box outside the image"
        assert (boxes <= torch.tensor([width, height] * 2)).all(), "a box outside the image"
        assert (boxes[:, 2:] > boxes[:, :2]).all(), "a box without extent"
        assert ((labels >= 0) & (labels < len(dataset.classes))).all(), "a label out of range"
    dataset.report()
    dataset.fingerprint()


def _write_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def _prepare_voc(folder: Path) -> None:
    (folder / "Annotations").mkdir()
    (folder / "ImageSets/Main").mkdir(parents=True)
    _write_images(folder, "JPEGImages/a.png", "JPEGImages/b.png")
    (folder / "Annotations/b.xml").write_text("<annotation><filename>b.png</filename></annotation>")


def _read_voc(folder: Path, data: bytes) -> None:
    """An annotation, and the list of the split."""
    annotation, listed = parts(data, 2)
    (folder / "Annotations/a.xml").write_bytes(annotation)
    (folder / "ImageSets/Main/train.txt").write_bytes(listed or b"a\nb\n")
    check(open_dataset(folder, "train"))


def _prepare_coco(folder: Path) -> None:
    (folder / "annotations").mkdir()
    _write_images(folder, "train/a.png", "train/sub/b.png")


def _read_coco(folder: Path, data: bytes) -> None:
    """The annotation file of a split."""
    (folder / "annotations/instances_train.json").write_bytes(data)
    check(open_dataset(folder, "train"))


def _prepare_yolo(folder: Path) -> None:
    (folder / "labels/train").mkdir(parents=True)
    _write_images(folder, "images/train/a.png", "images/train/b.png")


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
}
