"""COCO files in which nothing is broken: read as arrays; only annotations of unknown images are dropped."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from defeat.data.columns import AnnotationColumns, Flags, Integers
from defeat.data.dataset import Annotation, SplitBuilder
from defeat.data.formats.coco.columns import CocoColumns, read_columns
from defeat.data.formats.coco.file import Categories
from defeat.data.formats.coco.images import ImageFolders, plain_files
from defeat.data.formats.coco.values import ORPHANS, notes
from defeat.data.tables import Strings


@dataclass(frozen=True)
class UsualFile:
    """A file, with N images and A annotations, in which nothing is broken.

    Attributes:
        columns: its content.
        paths: paths of the images.
        names: their names relative to the folder of all images.
        images: (A,) index of the image of each annotation, -1 for an unknown image.
    """

    columns: CocoColumns
    paths: Strings
    names: Strings
    images: Integers

    def add_to(self, builder: SplitBuilder, categories: Categories, repairs: Counter[str]) -> None:
        """Add all images to a split, and a note about dropped annotations."""
        known: Flags = self.images >= 0
        repairs[ORPHANS] += int((~known).sum())
        builder.problems.notes += notes(repairs)
        labels = {name: label for label, name in enumerate(builder.classes)}
        numbers = np.array(sorted(categories.names), dtype=np.int64)
        classes = np.array([labels.get(categories.names[number], -1) for number in numbers.tolist()], dtype=np.int64)
        rows = np.searchsorted(numbers, self.columns.categories_of[known])
        annotations = AnnotationColumns(
            self.images[known], self.columns.corners[known], classes[rows], self.columns.crowd[known]
        )
        if builder.problems.decode:
            self._add_one_by_one(builder, annotations)
        else:
            builder.add_columns(self.paths, self.names, self.columns.image_ids, self.columns.sizes, annotations)

    def _add_one_by_one(self, builder: SplitBuilder, annotations: AnnotationColumns) -> None:
        """Add the images that can be decoded."""
        order = np.argsort(annotations.images, kind="stable")
        ends = np.searchsorted(annotations.images[order], np.arange(len(self.paths) + 1))
        for index in builder.problems.track(range(len(self.paths))):
            with builder.problems.skip_broken_image():
                height, width = self.columns.sizes[index].tolist()
                builder.add(
                    self.paths[index],
                    self.names[index],
                    (height, width),
                    _annotations(annotations.chosen(order[ends[index] : ends[index + 1]]), builder.classes),
                    image_id=int(self.columns.image_ids[index]),
                    prefer_upright=False,
                )


def _annotations(columns: AnnotationColumns, classes: tuple[str, ...]) -> Iterator[Annotation]:
    """The boxes of an image; without a name where the class is not selected."""
    rows = zip(columns.corners.tolist(), columns.labels.tolist(), columns.crowd.tolist(), strict=True)
    for (x1, y1, x2, y2), label, crowd in rows:
        yield Annotation((x1, y1, x2, y2), classes[label] if label >= 0 else "", crowd=crowd)


def read_usual(file: Path, folders: ImageFolders) -> UsualFile | None:
    """Read a file; None where an element, an image or a category needs the careful reader."""
    columns = read_columns(file)
    if columns is None:
        return None
    images = _indices(columns.images_of, columns.image_ids)
    known = images >= 0
    numbers = [category["id"] for category in columns.categories]
    if not np.isin(columns.categories_of[known], numbers).all() or (len(known) and not known.any()):
        return None
    found = plain_files(columns.file_names, folders)
    return None if found is None else UsualFile(columns, *found, images)


def _indices(values: Integers, different: Integers) -> Integers:
    """Index of each value among different ones, -1 where it is none of them."""
    order = np.argsort(different)
    nearest = order[np.minimum(np.searchsorted(different, values, sorter=order), len(order) - 1)]
    return np.where(different[nearest] == values, nearest, -1)
