"""Labelme: one JSON file per image, with boxes, polygons and circles in pixels."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from defeat.data.dataset import LARGEST_SIDE, Annotation, DetectionDataset
from defeat.data.files import ends_of_file, read_json
from defeat.data.problems import Problems
from defeat.data.reading.layout import Layout
from defeat.data.reading.pairs import AnnotationFile, Pairs, Unannotated, find_pairs, read_pairs
from defeat.data.reading.shapes import Corners, around_ellipse, around_points, dropped_shapes, numbers
from defeat.errors import InputError, quoted

LOOKED_FOR = "labelme files (.json with 'shapes' and 'imagePath')"
_ENDS = 1 << 16  # bytes; `imageData`, the whole image in base64, may be between the keys
_OUTLINES = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")
_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def find(path: Path, unannotated: Unannotated) -> Layout | None:
    """Find labelme files and their images below a folder."""
    form = _Json()
    pairs = find_pairs(path, form) if path.is_dir() else None
    if pairs is None:
        return None
    reader = partial(_read, pairs, form, unannotated)
    return Layout("labelme files (.json)", tuple(sorted(pairs.splits)), reader)


def _read(
    pairs: Pairs,
    form: "_Json",
    unannotated: Unannotated,
    split: str,
    classes: Sequence[str] | None,
    problems: Problems,
) -> DetectionDataset:
    try:
        dataset = read_pairs(pairs, form, unannotated, split, classes, problems)
    except InputError as error:
        dropped = dropped_shapes(form.dropped_in(pairs.annotations))
        if not dropped or form.has_objects or problems.messages:
            raise
        raise InputError(f"{pairs.root} contains no object: {dropped[0]}.") from error
    files = [pair.annotation for pair in pairs.splits[split] if pair.annotation is not None]
    dataset.problems += dropped_shapes(form.dropped_in(files))
    return dataset


class _Json:
    """The format of labelme's files; remembers the shapes that it drops.

    Attributes:
        has_objects: whether any file had an object.
    """

    suffix = ".json"

    def __init__(self) -> None:
        self.has_objects = False
        self._dropped: dict[Path, list[str]] = {}

    def dropped_in(self, files: Sequence[Path]) -> list[str]:
        """Kinds of the shapes that were dropped from files."""
        return [kind for file in files for kind in self._dropped.get(file, ())]

    def recognises(self, path: Path) -> bool:
        """Whether the keys of labelme are at the beginning and the end of a file."""
        content = ends_of_file(path, _ENDS)
        return b'"shapes"' in content and (b'"imagePath"' in content or b'"imageHeight"' in content)

    def parse(self, path: Path) -> AnnotationFile:
        """Read a file."""
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            raise InputError(f"{path} is not a labelme file: it has no list of 'shapes'.")
        annotations, dropped = [], []
        for index, shape in enumerate(content["shapes"]):
            where = f"{path}: shape number {index}"
            annotation = _annotation(shape, where)
            if annotation is None:
                dropped.append(_kind(shape, where))
            else:
                annotations.append(annotation)
        self.has_objects = self.has_objects or bool(annotations)
        self._dropped[path] = [kind if kind in _WITHOUT_AREA else "of an unknown kind" for kind in dropped]
        name = content.get("imagePath")
        return AnnotationFile(name if isinstance(name, str) else "", _size(content, str(path)), annotations)


def _size(content: dict[str, Any], where: str) -> tuple[int, int] | None:
    """Height and width; None where the file doesn't say."""
    sides = []
    for key in ("imageHeight", "imageWidth"):
        side = content.get(key)
        if side is None:
            return None
        if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= LARGEST_SIDE:
            raise InputError(f"{where}: its {key} is {quoted(side)}, not a number of pixels.")
        sides.append(side)
    return sides[0], sides[1]


def _annotation(shape: Any, where: str) -> Annotation | None:
    """The object of a shape; None where the shape has no area."""
    kind = _kind(shape, where)
    points = _points(shape, where)
    if not points:
        raise InputError(f"{where} has no points.")
    corners = _corners(kind, points, where)
    if corners is None:
        return None
    name = shape.get("label")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{where}: its label is {quoted(name)}, not a name.")
    return Annotation(corners, name.strip(), difficult=shape.get("difficult") is True)


def _kind(shape: Any, where: str) -> str:
    if not isinstance(shape, dict):
        raise InputError(f"{where} is {quoted(shape)}, not a shape.")
    kind = shape.get("shape_type", "polygon")  # old versions had no other
    if not isinstance(kind, str):
        raise InputError(f"{where}: its shape_type is {quoted(kind)}, not a name.")
    return kind


def _points(shape: dict[str, Any], where: str) -> list[tuple[float, float]]:
    points = shape.get("points")
    if not isinstance(points, list):
        raise InputError(f"{where}: its points are {quoted(points)}, not a list.")
    pairs = [numbers(point, f"{where}, points") for point in points]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(f"{where}: a point has other than two coordinates.")
    return [(pair[0], pair[1]) for pair in pairs]


def _corners(kind: str, points: Sequence[tuple[float, float]], where: str) -> Corners | None:
    """Box around a shape; None where it has no area."""
    if kind in _OUTLINES:
        return around_points(points)
    if kind in ("rectangle", "circle", "mask") and len(points) < 2:
        raise InputError(f"{where} is a {kind} of {len(points)} points, not of two.")
    if kind == "rectangle":  # of two opposite corners in any order, or of four
        return around_points(points)
    if kind == "circle":
        (x, y), (rim_x, rim_y) = points[:2]
        radius = math.hypot(rim_x - x, rim_y - y)
        return around_ellipse(x, y, radius, radius)
    if kind == "mask":  # the last row and column are part of it
        x1, y1, x2, y2 = around_points(points)
        return x1, y1, x2 + 1, y2 + 1
    return None
