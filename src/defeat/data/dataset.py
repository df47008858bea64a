"""The data set that every format is read into: annotations are validated on opening, images are decoded lazily."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from defeat.data.images import MAX_PIXELS, missing_decoder, read_header, read_image
from defeat.data.problems import Problems
from defeat.errors import InputError, unknown_name
from defeat.types import Target

# In pixels: float32 represents every integer up to this.
LARGEST_SIDE = 1 << 24
# In pixels: annotations are rounded, so only boxes that extend further outside count as clipped.
_CLIP_TOLERANCE = 0.5
# Smallest extent of a box in pixels, and as a fraction of the image's side, which float32 must still resolve.
_MIN_EXTENT = 0.01
_MIN_EXTENT_FRACTION = 1e-6


@dataclass(frozen=True, slots=True)
class Annotation:
    """A box as read from a file, not yet clipped to the image: x1 y1 x2 y2 in pixels, ends exclusive."""

    corners: tuple[float, float, float, float]
    name: str
    difficult: bool = False
    crowd: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a split, without its pixels.

    Attributes:
        path: path of the image.
        name: path relative to the data set, the same on every machine.
        image_id: unique number in the split.
        size: height and width that the boxes refer to.
        prefer_upright: whether to apply the EXIF orientation if stored and upright size are equal.
        first: index of its first box among all boxes of the split.
        last: index after its last box.
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
    """All boxes of a split, in the order of the images.

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
        problems: phrases about skipped images and about dropped or clipped boxes.
        annotated: whether the boxes are ground truth; if not, they are detections of a teacher.
        max_pixels: most pixels of an image file, see `read_header`.
        in_memory: whether the images are drawn or Python objects, so that their paths name no files.
    """

    in_memory: bool = False

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
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.classes = tuple(classes)
        self.name = name
        self.split = split
        self.samples = samples
        self.sizes = [sample.size for sample in samples]
        self.problems = list(problems)
        self.annotated = annotated
        self.table = table
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self._image(index), self.target(index)

    def _image(self, index: int) -> Tensor:
        sample = self.samples[index]
        return read_image(sample.path, sample.size, sample.prefer_upright, self.max_pixels)

    def identity(self, index: int) -> str:
        """Hash of an image's name, size, file size and modification time."""
        sample = self.samples[index]
        try:
            status = Path(sample.path).stat()
        except OSError as error:
            raise InputError(f"{sample.path} can't be read ({error.strerror}).") from error
        text = repr((sample.name, sample.size, sample.prefer_upright, status.st_size, status.st_mtime_ns))
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def target(self, index: int) -> Target:
        """Annotations of an image, without decoding it."""
        sample, table = self.samples[index], self.table
        rows = slice(sample.first, sample.last)
        # Copies, so that changing a target in place does not change the data set.
        return Target(
            boxes=table.boxes[rows].clone(),
            labels=table.labels[rows].clone(),
            difficult=table.difficult[rows].clone(),
            crowd=table.crowd[rows].clone(),
            image_id=sample.image_id,
            size=sample.size,
            annotated=self.annotated,
        )

    def evenly_spaced(self, count: int) -> list[tuple[Tensor, Target]]:
        """At most `count` images with their targets, evenly spaced over the split."""
        count = min(count, len(self))
        return [self[index * len(self) // count] for index in range(count)]

    def subset(self, indices: Sequence[int], split: str) -> "DetectionDataset":
        """Some of the images as a data set of their own.

        Args:
            indices: of the images, in the order to keep.
            split: name of the new split.
        """
        samples, rows, first = [], [torch.zeros(0, dtype=torch.int64)], 0
        for index in indices:
            sample = self.samples[index]
            count = sample.last - sample.first
            rows.append(torch.arange(sample.first, sample.last))
            samples.append(replace(sample, first=first, last=first + count))
            first += count
        chosen, table = torch.cat(rows), self.table
        part = DetectionDataset(
            name=self.name,
            split=split,
            classes=self.classes,
            samples=samples,
            table=BoxTable(table.boxes[chosen], table.labels[chosen], table.difficult[chosen], table.crowd[chosen]),
            problems=self.problems,
            annotated=self.annotated,
            max_pixels=self.max_pixels,
        )
        return _PartInMemory(part, self, indices) if self.in_memory else part

    def image_path(self, index: int) -> str:
        """Path of an image."""
        return self.samples[index].path

    def report(self) -> str | None:
        """One line about skipped images and dropped or clipped boxes; None if there are none."""
        return ", ".join(self.problems) or None

    def fingerprint(self) -> str:
        """SHA-256 of classes, file names, sizes and annotations; independent of the machine."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for sample in self.samples:
            row = (sample.name, sample.image_id, sample.size, sample.first, sample.last)
            digest.update(repr(row).encode())
        table = self.table
        digest.update(table.boxes.numpy().astype("<f4").tobytes())
        digest.update(table.labels.numpy().astype("<i8").tobytes())
        digest.update(table.difficult.numpy().tobytes() + table.crowd.numpy().tobytes())
        return digest.hexdigest()


class _PartInMemory(DetectionDataset):
    """Some of the images of a data set that has no image files.

    Args:
        part: annotations of the images.
        whole: the data set.
        indices: of the images in it.
    """

    in_memory = True

    def __init__(self, part: DetectionDataset, whole: DetectionDataset, indices: Sequence[int]) -> None:
        super().__init__(
            name=part.name,
            split=part.split,
            classes=part.classes,
            samples=part.samples,
            table=part.table,
            problems=part.problems,
            annotated=part.annotated,
            max_pixels=part.max_pixels,
        )
        self._whole, self._indices = whole, list(indices)

    def _image(self, index: int) -> Tensor:
        return self._whole._image(self._indices[index])

    def identity(self, index: int) -> str:
        """Identity of the image in the whole data set."""
        return self._whole.identity(self._indices[index])


def shared_images(first: DetectionDataset, second: DetectionDataset) -> int:
    """Number of images of the second data set that are also in the first, by their paths."""
    paths = {sample.path for sample in first.samples}
    return sum(sample.path in paths for sample in second.samples)


class SplitBuilder:
    """Collects the images of a split; boxes are clipped to the image, and dropped if nothing remains.

    Args:
        classes: classes to keep, in the order of the labels; boxes of other classes are dropped and counted.
        problems: problems of the split's files; the reader adds to it.
    """

    def __init__(self, classes: Sequence[str], problems: Problems | None = None) -> None:
        self.classes = tuple(classes)
        self.problems = problems or Problems()
        self._labels = {name: label for label, name in enumerate(classes)}
        self._samples: list[Sample] = []
        self._boxes: list[tuple[float, float, float, float]] = []
        self._annotations: list[Annotation] = []
        self._other_class = self._empty = self._clipped = self._duplicates = 0

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
        """Add an image; the default of `image_id` is its index in the split.

        Raises:
            InputError: broken images are skipped, and this image can't be decoded; or its decoder is not installed.
        """
        if missing_decoder(path) is not None:
            read_header(path, self.problems.max_pixels)  # the suffix may be wrong
        if self.problems.decode:
            read_image(path, size, prefer_upright, self.problems.max_pixels)
        first = len(self._annotations)
        for annotation in annotations:
            self._add_box(annotation, size)
        added = self._annotations[first:]
        self._duplicates += len(added) - len({(annotation.corners, annotation.name) for annotation in added})
        number = len(self._samples) if image_id is None else image_id
        self._samples.append(Sample(str(path), name, number, size, prefer_upright, first, len(self._annotations)))

    def finish(self, name: str, split: str, origin: str | Path) -> DetectionDataset:
        """Build the data set; `origin` names it in messages."""
        self.problems.require_none(origin)
        if not self._samples:
            raise self.problems.no_usable_image(origin, f"{origin}: the split {split!r} contains no image.")
        if self._empty and not self._annotations and not self._other_class:
            raise InputError(
                f"{origin}: none of the {self._empty} boxes of the split {split!r} lies in its image; "
                "check the unit and the order of their coordinates."
            )
        return DetectionDataset(
            name=name,
            split=split,
            classes=self.classes,
            samples=self._samples,
            table=self._table(),
            problems=[*self.problems.report(len(self._samples)), *self._box_problems()],
            max_pixels=self.problems.max_pixels,
        )

    def _add_box(self, annotation: Annotation, size: tuple[int, int]) -> None:
        if annotation.name not in self._labels:
            self._other_class += 1
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
        self._annotations.append(annotation)

    def _table(self) -> BoxTable:
        annotations = self._annotations
        return BoxTable(
            boxes=torch.tensor(self._boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([self._labels[annotation.name] for annotation in annotations], dtype=torch.int64),
            difficult=torch.tensor([annotation.difficult for annotation in annotations], dtype=torch.bool),
            crowd=torch.tensor([annotation.crowd for annotation in annotations], dtype=torch.bool),
        )

    def _box_problems(self) -> list[str]:
        total = len(self._annotations) + self._empty + self._other_class
        counts = (
            (self._empty, "dropped (no extent after clipping)"),
            (self._clipped, "clipped to the image"),
            (self._other_class, "dropped (other classes)"),
            (self._duplicates, "duplicated (same class and corners, kept)"),
        )
        nonzero = [(count, action) for count, action in counts if count]
        return [
            f"{count} of {total} boxes {action}" if index == 0 else f"{count} {action}"
            for index, (count, action) in enumerate(nonzero)
        ]


def _least_extent(side: int) -> float:
    return max(_MIN_EXTENT, _MIN_EXTENT_FRACTION * side)


def _clamp(value: float, limit: int) -> float:
    return min(max(float(value), 0.0), float(limit))


def finite(values: Iterable[float], where: str) -> None:
    """Raise InputError if a number is NaN or infinite; `where` names the file and its line or element."""
    try:
        all_finite = all(math.isfinite(value) for value in values)
    except OverflowError:  # an integer with hundreds of digits
        all_finite = False
    if not all_finite:
        raise InputError(f"{where}: a number is NaN or infinite.")


def select_classes(available: Sequence[str], selected: Sequence[str] | None, origin: str | Path) -> tuple[str, ...]:
    """Validate the selected classes of a data set; None selects all."""
    if not available:
        raise InputError(f"{origin} defines no classes.")
    if selected is None:
        return tuple(available)
    if not selected:
        raise InputError(f"The list of classes is empty; {origin} has: {', '.join(available)}.")
    for name in selected:
        if name not in available:
            raise unknown_name("class", name, available)
    if len(set(selected)) < len(selected):
        raise InputError(f"A class is given twice: {', '.join(selected)}.")
    return tuple(selected)
