"""The data set that every format is read into: annotations are validated on opening, images are decoded lazily."""

import hashlib
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from defeat.data.columns import (
    CLIP_TOLERANCE,
    MIN_EXTENT,
    MIN_EXTENT_FRACTION,
    AnnotationColumns,
    Integers,
    clip,
)
from defeat.data.images import MAX_PIXELS, missing_decoder, read_header, read_image
from defeat.data.problems import Problems
from defeat.data.tables import BoxTable, Sample, SampleTable, Strings
from defeat.errors import InputError, unknown_name
from defeat.notebook import html_table
from defeat.types import Target

# In pixels: float32 represents every integer up to this.
LARGEST_SIDE = 1 << 24


@dataclass(frozen=True, slots=True)
class Annotation:
    """A box as read from a file, not yet clipped to the image: x1 y1 x2 y2 in pixels, ends exclusive."""

    corners: tuple[float, float, float, float]
    name: str
    difficult: bool = False
    crowd: bool = False


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Images with boxes: `dataset[index]` is `(image, target)`, the image (3, H, W) uint8 RGB.

    Attributes:
        classes: names of the K classes, in the order of the labels.
        name: name of the data set.
        split: name of the split.
        samples: the images of the split, in a fixed order.
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
        samples: Iterable[Sample],
        table: BoxTable,
        problems: Sequence[str] = (),
        annotated: bool = True,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.classes = tuple(classes)
        self.name = name
        self.split = split
        self.samples = samples if isinstance(samples, SampleTable) else SampleTable.of(samples)
        self.problems = list(problems)
        self.annotated = annotated
        self.table = table
        self.max_pixels = max_pixels

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image, in pixels; a new list each time."""
        return [(height, width) for height, width in self.samples.sizes.tolist()]

    def _repr_html_(self) -> str:
        rows: dict[str, object] = {
            "images": len(self),
            "boxes": len(self.table.boxes),
            "classes": ", ".join(self.classes),
            "problems": "; ".join(self.problems) or "none",
        }
        return html_table(f"{self.name}, split {self.split}", rows)

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
        ranges = self.samples.rows[torch.tensor(indices, dtype=torch.int64)].tolist()
        rows = torch.cat([torch.zeros(0, dtype=torch.int64), *(torch.arange(first, last) for first, last in ranges)])
        table = self.table
        part = DetectionDataset(
            name=self.name,
            split=split,
            classes=self.classes,
            samples=self.samples.take(indices),
            table=BoxTable(table.boxes[rows], table.labels[rows], table.difficult[rows], table.crowd[rows]),
            problems=self.problems,
            annotated=self.annotated,
            max_pixels=self.max_pixels,
        )
        return _PartInMemory(part, self, indices) if self.in_memory else part

    def image_path(self, index: int) -> str:
        """Path of an image."""
        return self.samples.paths[index]

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
    paths = set(first.samples.paths)
    return sum(path in paths for path in second.samples.paths)


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
        self._boxes = array("f")  # four numbers per box
        self._box_labels = array("q")
        self._difficult, self._crowd = array("b"), array("b")
        self._tables: tuple[SampleTable, BoxTable] | None = None
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
        first = len(self._box_labels)
        added = [annotation for annotation in annotations if self._add_box(annotation, size)]
        self._duplicates += len(added) - len({(annotation.corners, annotation.name) for annotation in added})
        number = len(self._samples) if image_id is None else image_id
        self._samples.append(Sample(str(path), name, number, size, prefer_upright, first, len(self._box_labels)))

    def add_columns(
        self, paths: Strings, names: Strings, image_ids: Integers, sizes: Integers, annotations: AnnotationColumns
    ) -> None:
        """Add all images of the split at once, none of which is decoded, and whose orientation is not preferred.

        Args:
            paths: paths of the images.
            names: see `Sample`.
            image_ids: (N,) see `Sample`.
            sizes: (N, 2) height and width.
            annotations: the boxes, those of an image in the order to keep.
        """
        assert not self._samples
        clipped = clip(annotations, sizes)
        self._empty, self._clipped, self._other_class = clipped.empty, clipped.clipped, clipped.other_class
        self._duplicates = clipped.duplicates()
        ends, kept = clipped.ends(len(sizes)), clipped.annotations
        samples = SampleTable(
            paths=paths,
            names=names,
            image_ids=torch.from_numpy(image_ids),
            sizes=torch.from_numpy(sizes),
            prefer_upright=torch.zeros(len(sizes), dtype=torch.bool),
            rows=torch.from_numpy(np.stack([ends[:-1], ends[1:]], axis=1)),
        )
        table = BoxTable(
            boxes=torch.from_numpy(clipped.boxes),
            labels=torch.from_numpy(kept.labels),
            difficult=torch.zeros(len(kept.labels), dtype=torch.bool),
            crowd=torch.from_numpy(kept.crowd),
        )
        self._tables = samples, table

    def finish(self, name: str, split: str, origin: str | Path) -> DetectionDataset:
        """Build the data set; `origin` names it in messages."""
        self.problems.require_none(origin)
        samples, table = self._tables or (SampleTable.of(self._samples), self._table())
        if not len(samples):
            raise self.problems.no_usable_image(origin, f"{origin}: the split {split!r} contains no image.")
        if self._empty and not len(table.labels) and not self._other_class:
            raise InputError(
                f"{origin}: none of the {self._empty} boxes of the split {split!r} lies in its image; "
                "check the unit and the order of their coordinates."
            )
        return DetectionDataset(
            name=name,
            split=split,
            classes=self.classes,
            samples=samples,
            table=table,
            problems=[*self.problems.report(len(samples)), *self._box_problems(len(table.labels))],
            max_pixels=self.problems.max_pixels,
        )

    def _add_box(self, annotation: Annotation, size: tuple[int, int]) -> bool:
        """Add a box unless it is dropped; `columns.clip` does the same for all boxes at once."""
        if annotation.name not in self._labels:
            self._other_class += 1
            return False
        x1, y1, x2, y2 = annotation.corners
        height, width = size
        box = (_clamp(x1, width), _clamp(y1, height), _clamp(x2, width), _clamp(y2, height))
        if box[2] - box[0] < _least_extent(width) or box[3] - box[1] < _least_extent(height):
            self._empty += 1
            return False
        if max(abs(new - old) for new, old in zip(box, annotation.corners, strict=True)) > CLIP_TOLERANCE:
            self._clipped += 1
        self._boxes.extend(box)
        self._box_labels.append(self._labels[annotation.name])
        self._difficult.append(annotation.difficult)
        self._crowd.append(annotation.crowd)
        return True

    def _table(self) -> BoxTable:
        return BoxTable(
            boxes=torch.from_numpy(np.array(self._boxes, dtype=np.float32).reshape(-1, 4)),
            labels=torch.from_numpy(np.array(self._box_labels, dtype=np.int64)),
            difficult=torch.from_numpy(np.array(self._difficult, dtype=np.bool_)),
            crowd=torch.from_numpy(np.array(self._crowd, dtype=np.bool_)),
        )

    def _box_problems(self, boxes: int) -> list[str]:
        total = boxes + self._empty + self._other_class
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
    return max(MIN_EXTENT, MIN_EXTENT_FRACTION * side)


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
