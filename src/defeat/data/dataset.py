"""The data set that every format is read into: annotations checked at once, images decoded when asked for."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from defeat.data.images import read_image
from defeat.data.problems import Problems
from defeat.errors import InputError, unknown_name
from defeat.types import Target

# Of an image, in pixels: float32 holds every whole number up to this.
LARGEST_SIDE = 1 << 24
# Annotations are rounded: only a corner further outside than this is worth a word.
_CLIP_TOLERANCE = 0.5
# A thinner box has no extent: in pixels, and as a part of the image's side, which float32 must still resolve.
_MIN_EXTENT = 0.01
_MIN_SHARE = 1e-6


@dataclass(frozen=True, slots=True)
class Annotation:
    """A box as its file has it, not yet checked against the image: x1 y1 x2 y2 in pixels, ends exclusive."""

    corners: tuple[float, float, float, float]
    name: str
    difficult: bool = False
    crowd: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a split, without its pixels.

    Attributes:
        path: where the image is.
        name: its path relative to the data set, the same on every machine.
        image_id: its number, unique in its split.
        size: height and width that the boxes belong to.
        prefer_upright: whether the EXIF orientation wins when the size cannot decide.
        first: the number of its first box among all boxes of the split.
        last: one behind the number of its last box.
    """

    path: str
    name: str
    image_id: int
    size: tuple[int, int]
    prefer_upright: bool
    first: int
    last: int


@dataclass(frozen=True)
class BoxTable:
    """All boxes of a split, image after image.

    A few large tensors instead of many small ones: worker processes share them without copying.

    Attributes:
        boxes: (G, 4) float32 x1 y1 x2 y2 in pixels.
        labels: (G,) int64 in 0..K-1.
        difficult: (G,) bool.
        crowd: (G,) bool.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    crowd: Tensor


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Images with boxes: `dataset[index]` is `(image, target)`, the image (3, H, W) uint8 RGB.

    Attributes:
        classes: names of the K classes, in the order of the labels.
        name: name of the data set.
        split: name of the split.
        samples: the images of the split, in a fixed order.
        sizes: height and width of each image, in pixels.
        table: the boxes of all images.
        problems: what was done to boxes that could not stay as they were, a phrase each.
        annotated: whether somebody marked all objects; if not, the boxes are what a teacher detected.
    """

    def __init__(
        self,
        *,
        name: str,
        split: str,
        classes: Sequence[str],
        samples: list[Sample],
        table: BoxTable,
        problems: Sequence[str] = (),
        annotated: bool = True,
    ) -> None:
        self.classes = tuple(classes)
        self.name = name
        self.split = split
        self.samples = samples
        self.sizes = [sample.size for sample in samples]
        self.problems = list(problems)
        self.annotated = annotated
        self.table = table

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self._image(index), self.target(index)

    def _image(self, index: int) -> Tensor:
        sample = self.samples[index]
        return read_image(sample.path, sample.size, sample.prefer_upright)

    def identity(self, index: int) -> str:
        """A name that changes when the file of an image does, judged by its size and its time of change."""
        sample = self.samples[index]
        try:
            found = Path(sample.path).stat()
        except OSError as error:
            raise InputError(f"{sample.path} can't be read ({error.strerror}).") from error
        text = repr((sample.name, sample.size, sample.prefer_upright, found.st_size, found.st_mtime_ns))
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def target(self, index: int) -> Target:
        """The annotations of an image, without decoding it."""
        sample, table = self.samples[index], self.table
        rows = slice(sample.first, sample.last)
        # Copies: whoever changes a target in place must not change the data set.
        return Target(
            boxes=table.boxes[rows].clone(),
            labels=table.labels[rows].clone(),
            difficult=table.difficult[rows].clone(),
            crowd=table.crowd[rows].clone(),
            image_id=sample.image_id,
            size=sample.size,
            annotated=self.annotated,
        )

    def spread(self, count: int) -> list[tuple[Tensor, Target]]:
        """So many images with their targets, evenly spread over the split; all where it has no more."""
        count = min(count, len(self))
        return [self[index * len(self) // count] for index in range(count)]

    def image_path(self, index: int) -> str:
        """Where an image is."""
        return self.samples[index].path

    def report(self) -> str | None:
        """One line about boxes that were clipped or dropped, or None when there are none."""
        return ", ".join(self.problems) or None

    def fingerprint(self) -> str:
        """SHA-256 of classes, file names, sizes and annotations; the same on every machine."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for sample in self.samples:
            row = (sample.name, sample.image_id, sample.size, sample.first, sample.last)
            digest.update(repr(row).encode())
        table = self.table
        digest.update(table.boxes.numpy().astype("<f4").tobytes())
        digest.update(table.labels.numpy().astype("<i8").tobytes())
        digest.update(table.difficult.numpy().tobytes() + table.crowd.numpy().tobytes())
        return digest.hexdigest()


class SplitBuilder:
    """Gathers the images of a split and checks their boxes: clipped to the image, dropped when nothing is left.

    Args:
        classes: the classes to keep, in the order of the labels; boxes of others are dropped and counted.
        problems: what is wrong with the files of the split; the reader adds to it.
    """

    def __init__(self, classes: Sequence[str], problems: Problems | None = None) -> None:
        self.classes = tuple(classes)
        self.problems = problems or Problems()
        self._labels = {name: label for label, name in enumerate(classes)}
        self._samples: list[Sample] = []
        self._boxes: list[tuple[float, float, float, float]] = []
        self._kept: list[Annotation] = []
        self._foreign = self._empty = self._clipped = self._repeated = 0

    def add(
        self,
        path: str | Path,
        name: str,
        size: tuple[int, int],
        annotations: Iterable[Annotation],
        *,
        image_id: int | None = None,
        prefer_upright: bool = True,
    ) -> None:
        """Add an image; without an `image_id` its number is its place in the split.

        Raises:
            InputError: broken images are to be left out, and this one can't be decoded.
        """
        if self.problems.decode:
            read_image(path, size, prefer_upright)
        first = len(self._kept)
        for annotation in annotations:
            self._add_box(annotation, size)
        kept = self._kept[first:]
        self._repeated += len(kept) - len({(annotation.corners, annotation.name) for annotation in kept})
        number = len(self._samples) if image_id is None else image_id
        self._samples.append(Sample(str(path), name, number, size, prefer_upright, first, len(self._kept)))

    def finish(self, name: str, split: str, origin: str | Path) -> DetectionDataset:
        """The data set of everything added; `origin` is what to name when there is nothing in it."""
        self.problems.require_none(origin)
        if not self._samples:
            raise self.problems.nothing_left(origin, f"{origin}: the split {split!r} holds no image.")
        if self._empty and not self._kept and not self._foreign:
            raise InputError(
                f"{origin}: none of the {self._empty} boxes of the split {split!r} lies in its image; "
                "are they in the unit and order that the format wants?"
            )
        return DetectionDataset(
            name=name,
            split=split,
            classes=self.classes,
            samples=self._samples,
            table=self._table(),
            problems=[*self.problems.report(len(self._samples)), *self._box_problems()],
        )

    def _add_box(self, annotation: Annotation, size: tuple[int, int]) -> None:
        if annotation.name not in self._labels:
            self._foreign += 1
            return
        x1, y1, x2, y2 = annotation.corners
        height, width = size
        box = (_clamp(x1, width), _clamp(y1, height), _clamp(x2, width), _clamp(y2, height))
        if box[2] - box[0] < _least_extent(width) or box[3] - box[1] < _least_extent(height):
            self._empty += 1
            return
        if max(abs(new - old) for new, old in zip(box, annotation.corners, strict=True)) > _CLIP_TOLERANCE:
            self._clipped += 1
        self._boxes.append(box)
        self._kept.append(annotation)

    def _table(self) -> BoxTable:
        kept = self._kept
        return BoxTable(
            boxes=torch.tensor(self._boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([self._labels[annotation.name] for annotation in kept], dtype=torch.int64),
            difficult=torch.tensor([annotation.difficult for annotation in kept], dtype=torch.bool),
            crowd=torch.tensor([annotation.crowd for annotation in kept], dtype=torch.bool),
        )

    def _box_problems(self) -> list[str]:
        total = len(self._kept) + self._empty + self._foreign
        counts = (
            (self._empty, "dropped (no extent after clipping)"),
            (self._clipped, "clipped to the image"),
            (self._foreign, "left out (of other classes)"),
            (self._repeated, "given again with the same class and corners (kept)"),
        )
        found = [(count, what) for count, what in counts if count]
        return [
            f"{count} of {total} boxes {what}" if place == 0 else f"{count} {what}"
            for place, (count, what) in enumerate(found)
        ]


def _least_extent(side: int) -> float:
    return max(_MIN_EXTENT, _MIN_SHARE * side)


def _clamp(value: float, limit: int) -> float:
    return min(max(float(value), 0.0), float(limit))


def finite(values: Iterable[float], where: str) -> None:
    """Raise InputError when a number is NaN or infinite; `where` names the file and its line or element."""
    try:
        fine = all(math.isfinite(value) for value in values)
    except OverflowError:  # a whole number of hundreds of digits
        fine = False
    if not fine:
        raise InputError(f"{where}: a number is NaN or infinite.")


def select_classes(found: Sequence[str], wanted: Sequence[str] | None, origin: str | Path) -> tuple[str, ...]:
    """The classes of a data set: those that it holds, or those of them that are wanted, in the order wanted."""
    if not found:
        raise InputError(f"{origin} names no class: there is nothing to detect.")
    if wanted is None:
        return tuple(found)
    if not wanted:
        raise InputError(f"The list of classes is empty; {origin} has: {', '.join(found)}.")
    for name in wanted:
        if name not in found:
            raise unknown_name("class", name, found)
    if len(set(wanted)) < len(wanted):
        raise InputError(f"A class is given twice: {', '.join(wanted)}.")
    return tuple(wanted)
