"""Hold out a share of a data set that has no validation split, by a hash of the file names.

The same file is on the same side on every machine and in every run, and stays there when others are added or removed.
"""

import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Literal

from defeat.data.dataset import DetectionDataset
from defeat.errors import InputError

HoldOutBy = Literal["file", "folder", "prefix"]
# Roboflow writes augmented copies of a photograph as `name.rf.HASH.jpg`: all belong to one photograph.
_COPY = re.compile(r"\.rf\.[0-9a-zA-Z]+$")
_NUMBER = re.compile(r"[\W_]*[0-9]+$")


def hold_out(dataset: DetectionDataset, share: float, by: HoldOutBy = "file") -> dict[str, DetectionDataset]:
    """Divide a data set into `train` and `val`.

    Args:
        dataset: all images.
        share: part of the groups that are held out, above 0 and below 1.
        by: what stays together: copies of one `file`, a `folder`, or files whose names have one `prefix` before their
            number, such as the frames of a video.

    Returns:
        The data sets `train` and `val`; each has an image at least.

    Raises:
        InputError: there is one group only.
    """
    key = _KEYS[by]
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(dataset.samples):
        groups.setdefault(key(PurePosixPath(sample.name)), []).append(index)
    if len(groups) < 2:
        what = "image" if by == "file" else f"group of images by {by}"
        raise InputError(f"--hold-out needs two groups of images or more, and {dataset.name} has one {what}.")
    by_fraction = sorted(groups, key=_fraction)
    # Of a few groups all may lie on one side: the outermost ones then stay apart.
    held = {name for name in by_fraction[:-1] if _fraction(name) < share} or {by_fraction[0]}
    sides: dict[str, list[int]] = {"train": [], "val": []}
    for name, indices in groups.items():
        sides["val" if name in held else "train"] += indices
    return {split: dataset.subset(sorted(indices), split) for split, indices in sides.items()}


def _fraction(name: str) -> float:
    """A number in 0..1 that depends on the name alone, uniform over names."""
    return int.from_bytes(sha256(name.encode("utf-8", "surrogatepass")).digest()[:6]) / 2**48


def _file(name: PurePosixPath) -> str:
    return (name.parent / _COPY.sub("", name.stem)).as_posix()


def _folder(name: PurePosixPath) -> str:
    return name.parent.as_posix()


def _prefix(name: PurePosixPath) -> str:
    return (name.parent / _NUMBER.sub("", _COPY.sub("", name.stem))).as_posix()


_KEYS: dict[HoldOutBy, Callable[[PurePosixPath], str]] = {"file": _file, "folder": _folder, "prefix": _prefix}
