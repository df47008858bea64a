"""What every fuzz target promises: an input is read with a valid result, or refused by an `InputError` of one line."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from defeat.data import DetectionDataset
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


def write_images(folder: Path, *names: str) -> None:
    """Write images to a folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
