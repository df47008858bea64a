"""Content of a COCO file: its categories, and its annotations by image."""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defeat.data.dataset import Annotation, finite
from defeat.data.files import is_file, read_json
from defeat.data.formats.coco.values import (
    EXTENTS,
    NO_BOX,
    ORPHANS,
    Corners,
    as_number,
    extent,
    identifier,
    named,
    number_text_ids,
    numbers_of,
)
from defeat.data.problems import Problems
from defeat.errors import InputError, quoted

_KEYS = (re.compile(rb'"images"\s*:\s*\['), re.compile(rb'"(?:annotations|categories)"\s*:\s*(?:\[|null)'))
_CHUNK = 1 << 20  # bytes of a file that are searched at once
_OVERLAP = 128  # bytes that a key with its bracket may need


@dataclass(frozen=True)
class Categories:
    """Categories of a file.

    Attributes:
        names: names by number.
        text_ids: numbers of the ids that are text.
        root: name of the category that is the supercategory of all others, as Roboflow writes it; None without one.
    """

    names: dict[int, str]
    text_ids: dict[str, int]
    root: str | None

    def classes(self) -> list[str]:
        """Names in the order of their numbers; categories of one name are one class."""
        return list(dict.fromkeys(self.names[number] for number in sorted(self.names)))


def looks_like_coco(file: Path) -> bool:
    """Whether a file is JSON with lists of images and of annotations or categories, without parsing it."""
    if file.suffix.lower() != ".json" or not is_file(file):
        return False
    missing, text = list(_KEYS), b""
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                text = text[-_OVERLAP:] + chunk
                missing = [key for key in missing if not key.search(text)]
                if not missing:
                    return True
    except OSError:
        return False
    return False


def load(file: Path) -> dict[str, Any]:
    """Read a file: lists of images and categories, and a list of annotations or null."""
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{file} is not a COCO file: it has no list of 'images'.")
    for key in ("annotations", "categories"):
        is_null = key == "annotations" and key in content and content[key] is None
        if not is_null and not isinstance(content.get(key), list):
            raise InputError(f"{file} has no list of {key!r}: it is {quoted(content.get(key))}.")
    return content


def read_categories(elements: list[Any], file: Path, repairs: Counter[str]) -> Categories:
    """Read the categories of a file, given as in the file."""
    names: dict[int, str] = {}
    text_ids = number_text_ids(elements, "categories", repairs)
    for index, element in enumerate(elements):
        where = f"{file}: category {named(element, index)}"
        number, name = identifier(element, "id", where, text_ids, repairs), element.get("name")
        assert isinstance(number, int)  # each text has its number
        if not isinstance(name, str) or not name:
            raise InputError(f"{where} has no name.")
        if number in names:
            raise InputError(f"{where}: this id is used twice.")
        names[number] = name
    return Categories(names, text_ids, _root(elements))


def _root(elements: list[dict[str, Any]]) -> str | None:
    names = {element["name"] for element in elements}
    above = [element.get("supercategory") for element in elements]
    candidates = {name for name in above if isinstance(name, str) and name in names}
    if len(candidates) != 1:
        return None
    (root,) = candidates
    is_above_all_others = all(
        (element["name"] == root) != (name == root) for element, name in zip(elements, above, strict=True)
    )
    return root if is_above_all_others else None


def uses_category(content: dict[str, Any], categories: Categories, name: str) -> bool:
    """Whether an annotation of a file is of a category, given by its name."""
    numbers = {number for number, other in categories.names.items() if other == name}
    for element in content["annotations"] or ():
        try:
            if identifier(element, "category_id", "", categories.text_ids, Counter()) in numbers:
                return True
        except InputError:
            continue  # of no category; reported where its split is read
    return False


def read_annotations(
    content: dict[str, Any],
    categories: Categories,
    file: Path,
    images: Collection[int],
    text_ids: dict[str, int],
    problems: Problems,
    repairs: Counter[str],
) -> dict[int, list[Annotation] | InputError]:
    """Boxes of each image; an error if one is broken.

    Args:
        content: of the file.
        categories: of the file.
        file: its path, for messages.
        images: ids of the images.
        text_ids: numbers of the image ids that are text.
        problems: gets the broken annotations.
        repairs: counts the repairs.

    Raises:
        InputError: no annotation has a box.
    """
    boxes: dict[int, list[Annotation]] = {number: [] for number in images}
    broken: dict[int, InputError] = {}
    elements = content["annotations"] or []
    for index, element in enumerate(elements):
        where = f"{file}: annotation {named(element, index)}"
        try:
            number = identifier(element, "image_id", where, text_ids, repairs)
        except InputError as error:
            problems.add(error)
            repairs[ORPHANS] += 1
            continue
        if isinstance(number, str) or number not in boxes:
            repairs[ORPHANS] += 1
            continue
        try:
            annotation = _read_annotation(element, categories, where, repairs)
            boxes[number] += [] if annotation is None else [annotation]
        except InputError as error:
            problems.add(error)
            broken.setdefault(number, error)
    _require_meaning(elements, file, problems, repairs)
    return boxes | broken


def _require_meaning(elements: list[Any], file: Path, problems: Problems, repairs: Counter[str]) -> None:
    """Refuse a file whose annotations were all dropped because it is written in another way than COCO."""
    if elements and repairs[ORPHANS] == len(elements):
        problems.add(
            InputError(f"{file}: none of its {len(elements)} annotations has the id of an image; check their image_id.")
        )
    has_boxes = any(isinstance(element, dict) and "bbox" in element for element in elements)
    if repairs[NO_BOX] and not repairs[EXTENTS] and not has_boxes:
        raise InputError(f"{file}: none of its {len(elements)} annotations has a bbox or a segmentation.")


def _read_annotation(
    element: dict[str, Any], categories: Categories, where: str, repairs: Counter[str]
) -> Annotation | None:
    """An annotation; None without a box."""
    category = identifier(element, "category_id", where, categories.text_ids, repairs)
    if isinstance(category, str) or category not in categories.names:
        raise InputError(f"{where}: the category {quoted(category)} is not among the categories of the file.")
    corners = _read_corners(element, where, repairs)
    crowd = as_number(element.get("iscrowd"), repairs) or 0
    if crowd not in (0, 1):
        raise InputError(f"{where}: its iscrowd is {quoted(crowd)}, neither 0 nor 1.")
    return None if corners is None else Annotation(corners, categories.names[category], crowd=bool(crowd))


def _read_corners(element: dict[str, Any], where: str, repairs: Counter[str]) -> Corners | None:
    box = element.get("bbox")
    if box is None or box == []:
        corners = extent(element.get("segmentation"), where, repairs)
        repairs[NO_BOX if corners is None else EXTENTS] += 1
        return corners
    numbers = numbers_of(box, repairs)
    if numbers is None or len(numbers) != 4:
        raise InputError(f"{where}: its bbox is {quoted(box)}, not a list of four numbers.")
    finite(numbers, where)
    x, y, width, height = map(float, numbers)
    return x, y, x + width, y + height
