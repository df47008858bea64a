"""Read the images and annotations of a large COCO file piece by piece, into arrays.

Only what needs no repair and no message is read here. Of everything else, `read_columns` returns None, and the file is
left to the careful reader, which holds all of it in memory. What is read here is read in the same way.

The elements of the two long lists are parsed a few thousand at once. A list is divided at a comma between two braces
without knowing whether that comma is one of the list itself: if the text before it is valid JSON between brackets, it
is.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from defeat.data.columns import Flags, Floats, Integers
from defeat.data.dataset import LARGEST_SIDE
from defeat.data.files import paused_garbage_collection

_BLOCK = 1 << 20  # bytes that are read at once
_LONGEST = 1 << 26  # bytes of an element, or of everything outside the two lists
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LIST = re.compile(rb'"(images|annotations)"[ \t\r\n]*:[ \t\r\n]*\[')
_NEAR_END = 1 << 14  # bytes in which the last element of a block is looked for first
_LONGEST_KEY = 128  # bytes that a key with its bracket may need
_EMPTY = re.compile(rb"[ \t\r\n]*\]")
_END = re.compile(rb"\}[ \t\r\n]*\]")
_BETWEEN = re.compile(rb"\}[ \t\r\n]*,[ \t\r\n]*(?=\{)")
_SMALLEST = -(2**63)  # whose absolute value is too large


class _UnusualError(ValueError):
    """Something that is left to the careful reader."""


@dataclass(frozen=True)
class CocoColumns:
    """Images and annotations of a file: N images and A annotations.

    Attributes:
        categories: the categories as in the file, whose ids are integers.
        image_ids: (N,) different ids.
        file_names: N names.
        sizes: (N, 2) height and width.
        images_of: (A,) id of the image of each annotation, which may be unknown.
        categories_of: (A,) id of its category, which may be unknown.
        corners: (A, 4) x1 y1 x2 y2.
        crowd: (A,).
    """

    categories: list[Any]
    image_ids: Integers
    file_names: list[str]
    sizes: Integers
    images_of: Integers
    categories_of: Integers
    corners: Floats
    crowd: Flags

    def uses(self, numbers: Collection[int]) -> bool:
        """Whether an annotation is of one of the categories, given by their ids."""
        return bool(np.isin(self.categories_of, list(numbers)).any())


def read_columns(file: Path) -> CocoColumns | None:
    """Read a file whose elements are all as they should be; None for any other."""
    try:
        with file.open("rb") as stream, paused_garbage_collection():
            return _read(stream)
    except (OSError, ValueError, KeyError, OverflowError, RecursionError):  # reported by the careful reader
        return None


def _read(stream: BinaryIO) -> CocoColumns:
    text = _Text(stream)
    images, annotations = _Images(), _Annotations()
    add: dict[str, Callable[[list[Any]], None]] = {"images": images.add, "annotations": annotations.add}
    skeleton = b""  # the text without the elements of the two lists
    while (head := text.up_to_list()) is not None:
        before, key = head
        skeleton += before
        _require(len(skeleton) <= _LONGEST)
        # If this is valid, the list is a value of the outermost object.
        _require(next(reversed(_parsed(skeleton + b"]}")), None) == key and key in add)
        for elements in text.elements():
            _require_types(elements, {dict})
            add[key](elements)
        add.pop(key)
        skeleton += b"]"
    content = _parsed(skeleton + text.rest())
    _require(not add and isinstance(content.get("categories"), list))
    for category in content["categories"]:
        _require(type(category) is dict and type(category.get("id")) is int)
    ids, names, sizes = images.columns()
    images_of, categories_of, corners, crowd = annotations.columns()
    return CocoColumns(content["categories"], ids, names, sizes, images_of, categories_of, corners, crowd)


class _Text:
    """The text of a file, read in blocks."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._text = b""
        self._read_more()
        self._text = self._text.removeprefix(_BYTE_ORDER_MARK)

    def up_to_list(self) -> tuple[bytes, str] | None:
        """Text up to the next list, with its bracket, and the key of the list; None without one."""
        start = 0
        while (match := _LIST.search(self._text, start)) is None:
            start = max(0, len(self._text) - _LONGEST_KEY)
            if not self._read_more():
                return None
        before, self._text = self._text[: match.end()], self._text[match.end() :]
        return before, match[1].decode()

    def elements(self) -> Iterator[list[Any]]:
        """Elements of a list, some at once; afterwards the text begins after its last bracket."""
        while not self._text.strip():
            _require(self._read_more())
        if (match := _EMPTY.match(self._text)) is not None:
            self._text = self._text[match.end() :]
            return
        is_last = False
        while not is_last:
            end, start, is_last = self._divide()
            elements = orjson.loads(b"[%b]" % self._text[:end])
            self._text = self._text[start:]
            yield elements

    def rest(self) -> bytes:
        """The remaining text, after the last list."""
        return self._text

    def _divide(self) -> tuple[int, int, bool]:
        """Where whole elements end, where the text goes on, and whether the list ends there."""
        searched = 0
        while True:
            if (match := _END.search(self._text, searched)) is not None:
                return match.start() + 1, match.end(), True
            for start in (max(searched, len(self._text) - _NEAR_END), searched):
                *_, last = (None, *_BETWEEN.finditer(self._text, start))
                if last is not None:
                    return last.start() + 1, last.end(), False
            brace = self._text.rfind(b"}", searched)
            searched = brace if brace >= 0 else len(self._text)
            _require(self._read_more())

    def _read_more(self) -> bool:
        """Read a block; false at the end of the file."""
        block = self._stream.read(_BLOCK)
        self._text += block
        _require(len(self._text) <= _LONGEST)
        return bool(block)


class _Images:
    """Collects the columns of the images."""

    def __init__(self) -> None:
        self._ids: list[Integers] = []
        self._sizes: list[Integers] = []
        self._names: list[str] = []

    def add(self, elements: list[Any]) -> None:
        """Add images."""
        self._ids.append(_integers(elements, "id"))
        sizes = np.stack([_integers(elements, "height"), _integers(elements, "width")], axis=1)
        _require(bool(((sizes >= 1) & (sizes <= LARGEST_SIDE)).all()))
        self._sizes.append(sizes)
        names = list(map(itemgetter("file_name"), elements))
        _require_types(names, {str})
        self._names += names

    def columns(self) -> tuple[Integers, list[str], Integers]:
        """Ids, names and sizes."""
        _require(bool(self._ids))
        ids = np.concatenate(self._ids)
        _require(len(np.unique(ids)) == len(ids))
        return ids, self._names, np.concatenate(self._sizes)


class _Annotations:
    """Collects the columns of the annotations."""

    def __init__(self) -> None:
        self._images = [np.zeros(0, dtype=np.int64)]
        self._categories = [np.zeros(0, dtype=np.int64)]
        self._corners = [np.zeros((0, 4), dtype=np.float64)]
        self._crowd = [np.zeros(0, dtype=np.bool_)]

    def add(self, elements: list[Any]) -> None:
        """Add annotations."""
        self._images.append(_integers(elements, "image_id"))
        self._categories.append(_integers(elements, "category_id"))
        boxes = list(map(itemgetter("bbox"), elements))
        _require_types(boxes, {list})
        _require(set(map(len, boxes)) == {4})
        numbers = list(chain.from_iterable(boxes))
        _require_types(numbers, {int, float})
        corners = np.array(numbers, dtype=np.float64).reshape(-1, 4)
        _require(bool(np.isfinite(corners).all()))
        with np.errstate(over="ignore"):  # the end of a box may be infinite
            corners[:, 2:] += corners[:, :2]
        self._corners.append(corners)
        crowd = [element.get("iscrowd") for element in elements]
        _require_types(crowd, {int, bool, type(None)})
        _require(set(crowd) <= {0, 1, None})
        self._crowd.append(np.array(crowd, dtype=np.bool_))

    def columns(self) -> tuple[Integers, Integers, Floats, Flags]:
        """Ids of images and categories, corners, and whether it is a crowd."""
        images, categories = np.concatenate(self._images), np.concatenate(self._categories)
        return images, categories, np.concatenate(self._corners), np.concatenate(self._crowd)


def _integers(elements: list[Any], key: str) -> Integers:
    """A column of integers that fit into 64 bits."""
    values = list(map(itemgetter(key), elements))
    _require_types(values, {int})
    column = np.array(values, dtype=np.int64)
    _require(column.min() > _SMALLEST)
    return column


def _require_types(values: list[Any], types: set[type]) -> None:
    _require(set(map(type, values)) <= types)


def _require(is_usual: bool) -> None:
    if not is_usual:
        raise _UnusualError


def _parsed(text: bytes) -> dict[str, Any]:
    """A JSON object; which of two equal keys counts is left to the careful reader."""
    content = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repetition)
    _require(isinstance(content, dict))
    return content  # type: ignore[no-any-return]


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _require(max(Counter(key for key, _ in pairs).values(), default=1) == 1)
    return dict(pairs)
