"""Values of a COCO file: numbers, ids and outlines, as tools write them. Every repair is counted."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from defeat.data.dataset import LARGEST_SIDE, finite
from defeat.errors import InputError, quoted

# What was repaired: phrases that follow a count.
TEXTS = "numbers written as text (read as numbers)"
EXTENTS = "annotations without a bbox (read as the extent of their segmentation)"
NO_BOX = "annotations dropped (no bbox)"
ORPHANS = "annotations dropped (their image is not in the file)"
MERGED = "image entries merged (each equal to an earlier one)"
SHORTENED = "images found by the end of their file_name (as it is, it names no file of the data set)"

Corners = tuple[float, float, float, float]

_LARGEST = 2**63 - 1
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,18}\s*")
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?\s*")
_LONGEST_NUMBER = 100  # characters
_LONGEST_GROUPS = 13  # of 5 bits in a count of a compressed mask, together at least 64 bits


def notes(repairs: Counter[str]) -> list[str]:
    """A phrase with a count for each kind of repair."""
    return [f"{count} {phrase}" for phrase, count in repairs.items() if count]


def as_number(value: Any, repairs: Counter[str]) -> Any:
    """A number that is written as text becomes a number; every other value stays as it is."""
    if not isinstance(value, str) or len(value) > _LONGEST_NUMBER or not _NUMBER.fullmatch(value):
        return value
    repairs[TEXTS] += 1
    return int(value) if _INTEGER.fullmatch(value) else float(value)


def integer(element: Any, key: str, where: str, repairs: Counter[str]) -> int:
    """An integer of an element, also where it is written as float or text.

    Raises:
        InputError: it is missing, something else, or too large.
    """
    value = as_number(element.get(key) if isinstance(element, dict) else None, repairs)
    # Some tools write integers as floats.
    if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{where}: its {key} is {quoted(value)}, not an integer.")
    if abs(value) > _LARGEST:
        raise InputError(f"{where}: its {key} is {quoted(value)}, too large a number.")
    return value


def text_id(element: Any, key: str) -> str | None:
    """An id that is text but no integer; None for every other value."""
    value = element.get(key) if isinstance(element, dict) else None
    return value if isinstance(value, str) and value and not _INTEGER.fullmatch(value) else None


def number_text_ids(elements: Sequence[Any], kind: str, repairs: Counter[str]) -> dict[str, int]:
    """Numbers for the ids that are text: those that no other element has, in order of appearance."""
    texts = dict.fromkeys(text for element in elements if (text := text_id(element, "id")) is not None)
    if not texts:
        return {}
    taken = set(_integer_ids(elements))
    free = (number for number in range(1, len(elements) + len(taken) + 1) if number not in taken)
    repairs[f"ids of {kind} that are no integers (numbered in order of appearance)"] += len(texts)
    return dict(zip(texts, free, strict=False))


def _integer_ids(elements: Sequence[Any]) -> Iterator[int]:
    for element in elements:
        try:
            yield integer(element, "id", "", Counter())
        except InputError:
            continue


def identifier(element: Any, key: str, where: str, numbers: dict[str, int], repairs: Counter[str]) -> int | str:
    """The number of an id; text that has none stays text.

    Args:
        element: contains the id.
        key: name of the id in the element.
        where: names the element in messages.
        numbers: of the ids that are text, see `number_text_ids`.
        repairs: counts the repairs.
    """
    text = text_id(element, key)
    return integer(element, key, where, repairs) if text is None else numbers.get(text, text)


def named(element: Any, index: int) -> str:
    """Name of an element in messages: its id, or else its index in the list."""
    number = element.get("id") if isinstance(element, dict) else None
    return f"number {index}" if number is None else f"with id {quoted(number)}"


def numbers_of(values: Any, repairs: Counter[str]) -> list[float] | None:
    """A list of numbers, also where they are written as text; None where it is something else."""
    if not isinstance(values, list):
        return None
    converted = [as_number(value, repairs) for value in values]
    return converted if all(_is_number(value) for value in converted) else None


def extent(segmentation: Any, where: str, repairs: Counter[str]) -> Corners | None:
    """Corners x1 y1 x2 y2 around a segmentation: polygons, or a mask in run-length encoding.

    Returns:
        None where it contains no point.

    Raises:
        InputError: it is something else.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return _mask_extent(segmentation, where)
    if not isinstance(segmentation, list):
        raise _invalid(where, segmentation)
    # Some tools write one polygon without the list around it.
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    points: list[float] = []
    for polygon in polygons:
        numbers = numbers_of(polygon, repairs)
        if numbers is None or len(numbers) % 2:
            raise _invalid(where, segmentation)
        finite(numbers, where)
        points += map(float, numbers)
    if not points:
        return None
    columns, rows = points[::2], points[1::2]
    return min(columns), min(rows), max(columns), max(rows)


def _mask_extent(mask: dict[str, Any], where: str) -> Corners | None:
    """Extent of a mask: runs of background and object in turn, column by column."""
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(_is_side(side) for side in size):
        raise InputError(f"{where}: the size of its segmentation is {quoted(size)}, not a height and a width.")
    height, width = size
    runs = _decompressed(counts, where) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and 0 <= run <= height * width for run in runs):
        raise _invalid(where, counts)
    if sum(runs) != height * width:
        raise InputError(f"{where}: the counts of its segmentation don't add up to {height} x {width} pixels.")
    corners = list(_runs_of_object(runs, height))
    if not corners:
        return None
    lefts, tops, rights, bottoms = zip(*corners, strict=True)
    return float(min(lefts)), float(min(tops)), float(max(rights) + 1), float(max(bottoms) + 1)


def _runs_of_object(runs: Iterable[int], height: int) -> Iterator[tuple[int, int, int, int]]:
    """First and last column and row of each run of the object, as x1 y1 x2 y2."""
    end = 0
    for index, run in enumerate(runs):
        start, end = end, end + run
        if index % 2 and run:
            (left, top), (right, bottom) = divmod(start, height), divmod(end - 1, height)
            # A run over the end of a column contains the last row, and the first row of the next column.
            yield (left, top, right, bottom) if left == right else (left, 0, right, height - 1)


def _decompressed(text: str, where: str) -> list[int]:
    """Runs of a compressed mask: groups of 5 bits, from the third run on as difference to the last but one."""
    runs: list[int] = []
    value = groups = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or groups > _LONGEST_GROUPS:
            raise _invalid(where, text)
        value |= (code & 31) << (5 * groups)
        groups += 1
        if code & 32:  # more groups follow
            continue
        if code & 16:  # negative
            value |= -1 << (5 * groups)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = groups = 0
    if groups:
        raise _invalid(where, text)
    return runs


def _invalid(where: str, segmentation: Any) -> InputError:
    return InputError(f"{where}: its segmentation is {quoted(segmentation)}, neither polygons nor a mask.")


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIDE


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
