"""VGG Image Annotator (VIA), version 1 and 2: one file for many images, as JSON, project or CSV.

VIA draws in pixels of the upright image, and does not write the sizes of images.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from defeat.data.dataset import Annotation, DetectionDataset, finite
from defeat.data.files import ends_of_file, is_hidden, read_json, read_text
from defeat.data.problems import Problems
from defeat.data.reading.layout import Layout
from defeat.data.reading.listed import ImageFolders, ListedImage, files_of_splits, read_listed
from defeat.data.reading.pairs import RECOGNISED_BY, AnnotationFile
from defeat.data.reading.shapes import Corners, around_ellipse, around_points, number, numbers
from defeat.errors import InputError, quoted

LOOKED_FOR = "a VIA file (.json or .csv with regions, or a VIA 2 project)"
_ENDS = 1 << 14  # bytes of a file that are looked into
_PROJECT = "_via_img_metadata"
_CSV = b"region_shape_attributes"
# Attributes that are the class where regions have several.
_CLASS_FIRST = ("label", "class")
_CLASS_ELSE = ("class_name", "category", "object", "name", "type")
_WITHOUT_AREA = ("point",)


def find(path: Path, images: str | Path | None = None) -> Layout | None:
    """Find VIA files: at the path, or in a folder and its subfolders.

    Raises:
        InputError: it is a project of VIA 3, or it is not clear which file is for which split.
    """
    files = [file for file in _candidates(path) if _is_via(file)]
    if not files:
        return None
    root = path if path.is_dir() else path.parent
    splits = files_of_splits(root, files, "VIA files")
    return Layout("VIA", tuple(sorted(splits)), partial(_read, root, splits, images))


def _candidates(path: Path) -> Iterator[Path]:
    """Files that may be VIA's: a few of each folder, because VIA writes one file for many images."""
    if path.is_file():
        yield path
        return
    for folder in (path, *_subfolders(path)):
        files = [file for suffix in ("json", "csv") for file in sorted(folder.glob(f"*.{suffix}"))]
        yield from [file for file in files if not is_hidden(file.name) and file.is_file()][: 2 * RECOGNISED_BY]


def _subfolders(path: Path) -> Iterator[Path]:
    for depth in ("*", "*/*"):
        yield from (folder for folder in sorted(path.glob(depth)) if folder.is_dir() and not is_hidden(folder.name))


def _is_via(path: Path) -> bool:
    content = ends_of_file(path, _ENDS)
    if path.suffix.lower() == ".csv":
        return _CSV in content
    if b'"_via_img_metadata"' in content or b'"_via_settings"' in content:
        return True
    if all(key in content for key in (b'"project"', b'"vid_list"', b'"data_format_version"')):
        raise InputError(
            f"{path} is a project of VIA 3, which is not read: annotate or convert it with VIA 2, or export it as COCO."
        )
    return b'"regions"' in content and b'"filename"' in content


def _read(
    root: Path,
    splits: dict[str, Path],
    images: str | Path | None,
    split: str,
    classes: Sequence[str] | None,
    problems: Problems,
) -> DetectionDataset:
    entries = {name: list(_entries(file)) for name, file in splits.items()}
    attribute = _class_attribute(root, [entry for listed in entries.values() for _, entry in listed], problems)
    readers = {name: _Reader(file, attribute) for name, file in splits.items()}
    listed = {name: [reader.image(where, entry) for where, entry in entries[name]] for name, reader in readers.items()}
    unnamed = sum(reader.unnamed for reader in readers.values())
    if unnamed and not any(reader.named for reader in readers.values()):
        raise InputError(f"{root}: {unnamed} regions, and none has a value of {attribute!r}, which would be its class.")
    if split in readers and readers[split].unnamed:
        problems.notes.append(f"{readers[split].unnamed} regions without a class (no {attribute!r}) dropped")
    file = splits.get(split, root)
    relative_to = [
        folder
        for parent in (file.parent, root)
        for folder in (parent, parent / "images", parent / split, parent / "images" / split)
    ]
    return read_listed(listed, ImageFolders(root, relative_to, images), split, classes, problems)


def _entries(file: Path) -> Iterator[tuple[str, Any]]:
    """The entry of each image, as in VIA's JSON, with what names it in messages."""
    if file.suffix.lower() == ".csv":
        yield from _rows(file)
        return
    content = read_json(file)
    if isinstance(content, dict) and _PROJECT in content:
        content = content[_PROJECT]
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a VIA file: it is no object of images, but {quoted(content)}.")
    for key, entry in content.items():
        yield f"{file}: entry {quoted(key)}", entry


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Entries of a CSV file, which has a row per region."""
    entries: dict[str, dict[str, Any]] = {}
    try:
        for row in csv.DictReader(io.StringIO(read_text(file), newline="")):
            name = row.get("filename") or row.get("#filename")
            if not name:
                raise InputError(f"{file}: a row has no filename.")
            entry = entries.setdefault(name, {"filename": name, "regions": []})
            shape = json.loads(row.get("region_shape_attributes") or "{}")
            if shape:
                attributes = json.loads(row.get("region_attributes") or "{}")
                entry["regions"].append({"shape_attributes": shape, "region_attributes": attributes})
    except InputError:
        raise
    except (csv.Error, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not a CSV file of VIA: {error}.") from error
    for name, entry in entries.items():
        yield f"{file}: image {quoted(name)}", entry


def _regions(entry: Any) -> list[Any]:
    """Regions of an image; an object with a key per region in version 1."""
    regions = entry.get("regions") if isinstance(entry, dict) else None
    if isinstance(regions, dict):
        return list(regions.values())
    return regions if isinstance(regions, list) else []


def _class_attribute(root: Path, entries: Iterable[Any], problems: Problems) -> str:
    """The attribute of regions that is their class.

    Raises:
        InputError: there is none, or it is not clear which.
    """
    names: dict[str, None] = {}
    for entry in entries:
        for region in _regions(entry):
            attributes = region.get("region_attributes") if isinstance(region, dict) else None
            names.update(dict.fromkeys(attributes if isinstance(attributes, dict) else ()))
    if not names:
        raise InputError(
            f"{root}: no region has an attribute, so that there is no class: add one called 'label' in VIA, and export "
            "again."
        )
    if len(names) == 1:
        return next(iter(names))
    by_lower = {name.strip().lower(): name for name in reversed(names)}
    chosen = next((by_lower[name] for name in _CLASS_FIRST if name in by_lower), None)
    others = [by_lower[name] for name in _CLASS_ELSE if name in by_lower]
    chosen = others[0] if chosen is None and len(others) == 1 else chosen
    if chosen is None:
        listed = ", ".join(quoted(name) for name in list(names)[:10])
        raise InputError(
            f"{root}: it is not clear which attribute of the regions is their class: {listed}; rename that one to "
            "'label' in VIA, and export again."
        )
    problems.notes.append(f"the attribute {chosen!r} of the regions read as their class ({len(names)} attributes)")
    return chosen


class _Reader:
    """Reads the entries of a file.

    Args:
        file: the file.
        attribute: the attribute of a region that is its class.

    Attributes:
        named: number of regions with a class.
        unnamed: number of regions without one.
    """

    def __init__(self, file: Path, attribute: str) -> None:
        self.file = file
        self.attribute = attribute
        self.named = self.unnamed = 0

    def image(self, where: str, entry: Any) -> ListedImage:
        """Read the entry of an image."""
        name, dropped = "", []
        try:
            if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str) or not entry["filename"]:
                raise InputError(f"{where} has no filename.")
            name = entry["filename"]
            if not isinstance(entry.get("regions", []), list | dict):
                raise InputError(f"{where}: its regions are {quoted(entry['regions'])}, not a list.")
            annotations = []
            for index, region in enumerate(_regions(entry)):
                kind, annotation = self._region(region, f"{where}, region {index}")
                if annotation is not None:
                    annotations.append(annotation)
                elif kind is not None:
                    dropped.append(kind)
        except InputError as error:
            return ListedImage(where, self.file, name, error)
        return ListedImage(where, self.file, name, AnnotationFile(name, None, annotations), dropped=dropped)

    def _region(self, region: Any, where: str) -> tuple[str | None, Annotation | None]:
        """The kind of a shape without area, or the object of a region; neither where it has no class."""
        shape = region.get("shape_attributes") if isinstance(region, dict) else None
        if not isinstance(shape, dict):
            raise InputError(f"{where} has no shape_attributes.")
        kind = shape.get("name")
        if not isinstance(kind, str):
            raise InputError(f"{where}: the name of its shape is {quoted(kind)}, not a text.")
        if kind in _WITHOUT_AREA:
            return kind, None
        corners = _corners(kind, shape, where)
        if corners is None:
            return "of an unknown kind", None
        finite(corners, where)
        name = _class_name(region.get("region_attributes"), self.attribute, where)
        if name is None:
            self.unnamed += 1
            return None, None
        self.named += 1
        return None, Annotation(corners, name)


def _class_name(attributes: Any, attribute: str, where: str) -> str | None:
    """The class of a region; None where it has none."""
    value = attributes.get(attribute) if isinstance(attributes, dict) else None
    if isinstance(value, dict):  # check boxes
        checked = [key for key, state in value.items() if state]
        if len(checked) > 1:
            raise InputError(f"{where}: {attribute!r} has several values, {quoted(checked)}; an object has one class.")
        value = checked[0] if checked else None
    if isinstance(value, int) and not isinstance(value, bool):
        value = quoted(value)
    if value is None or (isinstance(value, str) and value.strip() in ("", "undefined")):
        return None
    if not isinstance(value, str):
        raise InputError(f"{where}: {attribute!r} is {quoted(value)}, not the name of a class.")
    return value.strip()


def _corners(kind: str, shape: dict[str, Any], where: str) -> Corners | None:
    """Box around a shape; None for an unknown kind."""
    if kind == "rect":
        x, y, width, height = (number(shape, key, where) for key in ("x", "y", "width", "height"))
        return x, y, x + width, y + height
    if kind in ("polygon", "polyline"):
        columns, rows = (numbers(shape.get(key), f"{where}, {key}") for key in ("all_points_x", "all_points_y"))
        if not columns or len(columns) != len(rows):
            raise InputError(f"{where}: {len(columns)} columns, but {len(rows)} rows of points.")
        return around_points(list(zip(columns, rows, strict=True)))
    if kind in ("circle", "ellipse"):
        x, y = number(shape, "cx", where), number(shape, "cy", where)
        if kind == "circle":
            radius = number(shape, "r", where)
            return around_ellipse(x, y, radius, radius)
        angle = number(shape, "theta", where) if "theta" in shape else 0.0
        return around_ellipse(x, y, number(shape, "rx", where), number(shape, "ry", where), angle)
    return None
