"""Detections of another tool, as it writes them for COCO: a list of boxes with `image_id`, `category_id` and `score`.

Such a list has neither names of images nor of classes. They are looked for in this order:

| | images | classes |
|---|---|---|
| 1 | `images` of a description, a COCO file with the ids that the tool used | its `categories` |
| 2 | `file_name` of each detection | `category_name` of each detection |
| 3 | `image_id` is the name of the file without its suffix, as Ultralytics writes it | the categories of the data |

A COCO file whose annotations have scores is its own description.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defeat.data.dataset import finite
from defeat.data.files import read_json
from defeat.errors import InputError, quoted
from defeat.types import Detections

_FARTHEST = 1e9  # pixels from the image to a corner of a box
_LONGEST_NUMBER = 18  # digits of an id

Key = int | str  # an id, or the path of an image
Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class DescribedImage:
    """An image of a description: its path, and its height and width in pixels if the file names them."""

    name: str
    size: Size | None


@dataclass(frozen=True)
class Description:
    """Images and categories by their ids, as a COCO file has them; empty where it has none.

    Attributes:
        path: the file.
        images: images by id.
        categories: names by id.
    """

    path: Path
    images: Mapping[Key, DescribedImage] = field(default_factory=dict)
    categories: Mapping[Any, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ResultsFile:
    """Detections of images, which are found by the names of the images.

    Attributes:
        path: the file.
        classes: names of the K classes, in the order of the labels.
        boxes: (D, 4) float32 x1 y1 x2 y2 in pixels of the original image, those of an image sorted by score.
        scores: (D,) float32 in 0..1.
        labels: (D,) int64 in 0..K-1.
        rows: first detection and index after the last by image: its path, or its name without folder and suffix (an
            integer where that is one).
        sizes: height and width of the images, if the file describes them.
        by_stem: whether images are named by the file name without its suffix.
        fingerprint: SHA-256 of the files.
        notes: what was assumed, a sentence each.
    """

    path: Path
    classes: tuple[str, ...]
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    rows: Mapping[Key, tuple[int, int]]
    sizes: Mapping[Key, Size]
    by_stem: bool
    fingerprint: str
    notes: tuple[str, ...] = ()

    def find(self, names: Sequence[str], sizes: Sequence[Size]) -> list[Detections | None]:
        """Detections of images.

        An image is found by its path, or else by its file name where only one image of the file has it.

        Args:
            names: paths of the images, relative to their folder.
            sizes: height and width of each in pixels.

        Returns:
            The detections of each image, not clipped to it; None for an image that the file does not have.

        Raises:
            InputError: two of the images are the same image of the file, or an image has another size there.
        """
        owners: dict[Key, str] = {}
        detections: list[Detections | None] = []
        for name, size, key in zip(names, sizes, self._keys(names), strict=True):
            if key is None:
                detections.append(None)
                continue
            if key in owners:
                raise InputError(
                    f"{owners[key]} and {name} are the same image in {self.path}: give --teacher-description a COCO "
                    "file with the paths of the images."
                )
            owners[key] = name
            if (described := self.sizes.get(key, size)) != size:
                raise InputError(
                    f"{name} has {_text(size)} pixels, but {self.path} is for one of {_text(described)} (width x "
                    "height): its boxes don't fit."
                )
            rows = slice(*self.rows[key])
            detections.append(Detections(self.boxes[rows], self.scores[rows], self.labels[rows]))
        return detections

    def has(self, names: Sequence[str], sizes: Sequence[Size], others: Sequence[str] = ()) -> list[bool]:
        """Whether the file has each image, of this size, and none of the other images is the same image of the file."""
        keys = self._keys(names)
        owners = Counter([*keys, *self._keys(others)])
        return [
            key is not None and owners[key] == 1 and self.sizes.get(key, size) == size
            for key, size in zip(keys, sizes, strict=True)
        ]

    def _keys(self, names: Sequence[str]) -> list[Key | None]:
        if self.by_stem:
            stems = [_as_id(PurePosixPath(name).stem) for name in names]
            return [stem if stem in self.rows else None for stem in stems]
        by_name: dict[str, list[Key]] = {}
        for key in self.rows:
            by_name.setdefault(PurePosixPath(str(key)).name, []).append(key)
        unique = {name: keys[0] for name, keys in by_name.items() if len(keys) == 1}
        return [name if name in self.rows else unique.get(PurePosixPath(name).name) for name in names]


def read_results(
    path: str | Path, description: str | Path | None = None, categories: Description | None = None
) -> ResultsFile:
    """Read a results file.

    Args:
        path: JSON file with a list of detections, or a COCO file whose annotations are detections.
        description: COCO file with the images and categories of the ids; its annotations are ignored.
        categories: of the data, for detections that name theirs in no other way.

    Raises:
        InputError: a file can't be read, is not such a file, or a detection is not valid; the message names it.
    """
    path = Path(path)
    content = read_json(path)
    described = None if description is None else _described(Path(description), read_json(description))
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        described = described or _described(path, content)
        content = content["annotations"]
    if not isinstance(content, list):
        raise InputError(f"{path} is not a results file of COCO: it has no list of detections.")
    if not content:
        raise InputError(f"{path} contains no detection.")
    reader = _Reader(path, content, described or Description(path), categories)
    digest = hashlib.sha256()
    for file in (path, *([] if description is None else [Path(description)])):
        digest.update(file.read_bytes())
    digest.update(repr(reader.classes).encode())
    return reader.read(digest.hexdigest())


def _described(path: Path, content: Any) -> Description:
    """Images and categories of a COCO file."""
    if not isinstance(content, dict) or not any(isinstance(content.get(key), list) for key in ("images", "categories")):
        raise InputError(f"{path} is not a COCO file: it has neither a list of 'images' nor one of 'categories'.")
    images: dict[Key, DescribedImage] = {}
    for where, element, key in _elements(path, content, "images", "image"):
        name = element.get("file_name")
        if not isinstance(name, str) or not name:
            raise InputError(f"{where}: its file_name is {quoted(name)}, not a path.")
        images[key] = DescribedImage(_posix(name), _size(element))
    names = [image.name for image in images.values()]
    if len(set(names)) < len(names):
        raise InputError(f"{path} has two images of the same file_name.")
    categories: dict[Key, str] = {}
    for where, element, key in _elements(path, content, "categories", "category"):
        name = element.get("name")
        if not isinstance(name, str) or not name:
            raise InputError(f"{where} has no name.")
        categories[key] = name
    return Description(path, images, categories)


def _elements(path: Path, content: Mapping[str, Any], kind: str, singular: str) -> Iterator[tuple[str, Any, Key]]:
    """Name for messages, content and id of the elements of a list."""
    seen: set[Key] = set()
    elements = content.get(kind)
    if elements is not None and not isinstance(elements, list):
        raise InputError(f"{path}: {kind!r} is {quoted(elements)}, not a list.")
    for index, element in enumerate(elements or []):
        where = f"{path}: {singular} number {index}"
        if not isinstance(element, dict):
            raise InputError(f"{where} is {quoted(element)}, not a map.")
        key = _id(element, "id", where)
        if key in seen:
            raise InputError(f"{where}: its id {quoted(key)} is used twice.")
        seen.add(key)
        yield where, element, key


def _size(element: Mapping[str, Any]) -> Size | None:
    height, width = (_as_integer(element.get(side)) for side in ("height", "width"))
    return None if height is None or width is None else (height, width)


class _Reader:
    """Reads the detections of a file.

    Args:
        path: of the file.
        records: the detections.
        description: of the file.
        categories: of the data.
    """

    def __init__(
        self, path: Path, records: Sequence[Any], description: Description, categories: Description | None
    ) -> None:
        self.path, self.records, self.images = path, records, description.images
        self.about = self.source = description.path  # of images, and of categories
        self.notes: list[str] = []
        for index, record in enumerate(records):
            if not isinstance(record, dict):
                raise InputError(f"{self._where(index)} is {quoted(record)}, not a map.")
        self.named = not self.images and all("file_name" in record for record in records)
        self.scored = any("score" in record for record in records)
        if not self.scored:
            self.notes.append(f"{path} has no scores: every box counts as certain.")
        self.categories = self._categories(description, categories)
        # Categories of one name are one class.
        self.classes = tuple(dict.fromkeys(self.categories[key] for key in sorted(self.categories, key=_order)))
        self._labels = {key: self.classes.index(name) for key, name in self.categories.items()}

    def _where(self, index: int) -> str:
        return f"{self.path}: detection number {index}"

    def _categories(self, description: Description, of_data: Description | None) -> Mapping[Any, str]:
        if description.categories:
            return description.categories
        names: dict[Key, str] = {}
        for index, record in enumerate(self.records):
            name = record.get("category_name")
            if not isinstance(name, str) or not name:
                break
            key = _id(record, "category_id", self._where(index)) if "category_id" in record else name
            if names.setdefault(key, name) != name:
                raise InputError(
                    f"{self._where(index)}: its category_id {quoted(key)} has the names {quoted(names[key])} and "
                    f"{quoted(name)}."
                )
        else:
            return names
        if of_data is None or not of_data.categories:
            raise InputError(
                f"{self.path} has ids of categories, and no names: give --teacher-description a COCO file with them."
            )
        self.source = of_data.path
        self.notes.append(f"The names of the categories in {self.path} are those of {of_data.path}.")
        return of_data.categories

    def read(self, fingerprint: str) -> ResultsFile:
        """All detections, by image and score."""
        keys: list[Key] = []
        corners, scores, labels = array("d"), array("f"), array("q")
        for index, record in enumerate(self.records):
            where = self._where(index)
            keys.append(self._image(record, where))
            labels.append(self._label(record, where))
            scores.append(self._score(record, where))
            corners.extend(_corners(record, where))
        names = [image.name for image in self.images.values()]
        numbers: dict[Key, int] = {key: index for index, key in enumerate(dict.fromkeys([*names, *keys]))}
        of_image = np.array([numbers[key] for key in keys], dtype=np.int64)
        order = np.lexsort((-np.array(scores), of_image))  # stable, by image and then by score
        counts = np.bincount(of_image, minlength=len(numbers))
        ends = np.concatenate([[0], counts.cumsum()]).tolist()
        return ResultsFile(
            path=self.path,
            classes=self.classes,
            boxes=torch.from_numpy(np.array(corners).reshape(-1, 4)[order].astype(np.float32)),
            scores=torch.from_numpy(np.array(scores, dtype=np.float32)[order]),
            labels=torch.from_numpy(np.array(labels, dtype=np.int64)[order]),
            rows={key: (ends[index], ends[index + 1]) for key, index in numbers.items()},
            sizes={image.name: image.size for image in self.images.values() if image.size is not None},
            by_stem=not self.images and not self.named,
            fingerprint=fingerprint,
            notes=tuple(self.notes),
        )

    def _image(self, record: Mapping[str, Any], where: str) -> Key:
        if self.named:
            name = record["file_name"]
            if not isinstance(name, str) or not name:
                raise InputError(f"{where}: its file_name is {quoted(name)}, not a path.")
            return _posix(name)
        key = _id(record, "image_id", where)
        if not self.images:
            return key
        if key not in self.images:
            raise InputError(f"{where}: its image_id {quoted(key)} is not among the images of {self.about}.")
        return self.images[key].name

    def _label(self, record: Mapping[str, Any], where: str) -> int:
        if "category_id" not in record and record.get("category_name") in self._labels:
            return self._labels[record["category_name"]]
        key = _id(record, "category_id", where)
        if key not in self._labels:
            raise InputError(f"{where}: its category_id {quoted(key)} is not among the categories of {self.source}.")
        return self._labels[key]

    def _score(self, record: Mapping[str, Any], where: str) -> float:
        if not self.scored:
            return 1.0
        score: Any = record.get("score")
        if not _is_number(score) or not 0 <= score <= 1:
            raise InputError(f"{where}: its score is {quoted(score)}, not a number in 0..1.")
        return float(score)


def _corners(record: Mapping[str, Any], where: str) -> tuple[float, float, float, float]:
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise InputError(f"{where}: its bbox is {quoted(box)}, not a list of four numbers.")
    finite(box, where)
    x, y, width, height = map(float, box)
    corners = x, y, x + width, y + height
    if max(map(abs, corners)) > _FARTHEST:
        raise InputError(f"{where}: its bbox is {quoted(box)}, farther from the image than {_FARTHEST:g} pixels.")
    return corners


def _id(element: Mapping[str, Any], key: str, where: str) -> Key:
    """An id: an integer, also where it is written as float or text, or else text."""
    value = element.get(key)
    if isinstance(value, str) and value:
        return _as_id(value)
    if (number := _as_integer(value)) is not None:
        return number
    raise InputError(
        f"{where}: its {key} is {quoted(value)}, not an id." if key in element else f"{where} has no {key}."
    )


def _text(size: Size) -> str:
    return f"{size[1]} x {size[0]}"


def _as_integer(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _as_id(text: str) -> Key:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER else text


def _order(key: Key) -> tuple[bool, Key]:
    """Integers before texts."""
    return isinstance(key, str), key


def _posix(name: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/")))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)  # not bool
