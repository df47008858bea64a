"""CVAT for images 1.1: one XML file for many images, boxes and other shapes in pixels."""

import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from defeat.data.dataset import LARGEST_SIDE, Annotation, DetectionDataset, finite
from defeat.data.files import ends_of_file, is_hidden
from defeat.data.problems import Problems
from defeat.data.reading.layout import Layout
from defeat.data.reading.listed import ImageFolders, ListedImage, files_of_splits, read_listed
from defeat.data.reading.pairs import ALL, RECOGNISED_BY, SPLIT_FOLDERS, AnnotationFile
from defeat.data.reading.shapes import Corners, around_ellipse, around_points, around_rotated
from defeat.errors import InputError, quoted

LOOKED_FOR = "CVAT for images (annotations.xml)"
_ENDS = 1 << 14  # bytes of a file that are looked into
_ROOT = re.compile(rb"<annotations[\s>]")
_CONTENT = re.compile(rb"<(?:image|track|meta|version)[\s>]")
_WITHOUT_AREA = ("points", "polyline", "skeleton", "cuboid")
_NO_SHAPE = ("tag", "attribute")


def find(path: Path, images: str | Path | None = None) -> Layout | None:
    """Find CVAT files: at the path, or in a folder and its subfolders.

    The splits are the subsets that the files name, so the files are read here.

    Raises:
        InputError: a file is of CVAT for video, or broken, or it is not clear which is for which split.
    """
    files = [file for file in _candidates(path) if _is_cvat(file)]
    if not files:
        return None
    root = path if path.is_dir() else path.parent
    splits: dict[str, list[ListedImage]] = {}
    for split, file in files_of_splits(root, files, "CVAT files").items():
        for subset, image in _images(file):
            name = SPLIT_FOLDERS.get(subset.lower(), subset) if len(files) == 1 and subset else split
            splits.setdefault(name, []).append(image)
    if not splits:
        raise InputError(f"{files[0]} is a file of CVAT without an <image>.")
    mixed = len(splits) > 1 and ALL in splits
    notes = (f"{len(splits[ALL])} images without a subset are the split {ALL!r}",) if mixed else ()
    return Layout("CVAT for images", tuple(sorted(splits)), partial(_read, root, splits, images), notes)


def _candidates(path: Path) -> Iterator[Path]:
    """Files that may be CVAT's: a few of each folder, because CVAT writes one file for many images."""
    if path.is_file():
        yield path
        return
    for folder in (path, *sorted(path.glob("*"))):
        if not is_hidden(folder.name):
            files = [file for file in sorted(folder.glob("*.xml")) if not is_hidden(file.name) and file.is_file()]
            yield from files[:RECOGNISED_BY]


def _is_cvat(path: Path) -> bool:
    content = ends_of_file(path, _ENDS)
    return bool(_ROOT.search(content)) and bool(_CONTENT.search(content))


def _read(
    root: Path,
    splits: dict[str, list[ListedImage]],
    images: str | Path | None,
    split: str,
    classes: Sequence[str] | None,
    problems: Problems,
) -> DetectionDataset:
    parents = dict.fromkeys(image.file.parent for image in splits.get(split, ()))
    folders = [folder for parent in (*parents, root) for folder in (parent / "images", parent)]
    return read_listed(splits, ImageFolders(root, folders, images), split, classes, problems)


def _images(file: Path) -> Iterator[tuple[str, ListedImage]]:
    """The images of a file, with the subset that each is in; empty where it is in none.

    Raises:
        InputError: the file is not well-formed, or of CVAT for video.
    """
    depth = 0
    root: Any = None
    try:
        for event, element in ElementTree.iterparse(str(file), events=("start", "end")):
            depth += 1 if event == "start" else -1
            root = element if root is None else root
            if event == "start" or depth != 1:
                continue
            if element.tag == "track":
                raise InputError(
                    f"{file} is of CVAT for video (it has tracks), which is not read: export the task as 'CVAT for "
                    "images 1.1', COCO or YOLO."
                )
            if element.tag == "image":
                yield element.get("subset", "").strip(), _image(file, element)
            root.clear()  # what has been read is not kept
    except InputError:
        raise
    except (ElementTree.ParseError, DefusedXmlException, ValueError, LookupError, OSError) as error:
        raise InputError(f"{file} is not well-formed XML: {error}.") from error


def _image(file: Path, element: Any) -> ListedImage:
    name = element.get("name", "").strip()
    where = f"{file}: image {quoted(name or element.get('id'))}"
    annotations, dropped, rotated = [], [], 0
    try:
        if not name:
            raise InputError(f"{where} has no name.")
        size = _size(element, where)
        for number, shape in enumerate(element, 1):
            if shape.tag in _NO_SHAPE:
                continue
            annotation = _annotation(shape, f"{where}, shape {number}")
            if annotation is None:
                dropped.append(shape.tag if shape.tag in _WITHOUT_AREA else "of an unknown kind")
            else:
                annotations.append(annotation)
                rotated += shape.tag == "box" and bool(shape.get("rotation"))
    except InputError as error:
        return ListedImage(where, file, name, error)
    subset = element.get("subset", "").strip()
    return ListedImage(where, file, name, AnnotationFile(name, size, annotations), subset, dropped, rotated)


def _size(element: Any, where: str) -> tuple[int, int] | None:
    """Height and width; None where the file doesn't say."""
    if element.get("width") is None or element.get("height") is None:
        return None
    width, height = (_number(element, key, where) for key in ("width", "height"))
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        raise InputError(f"{where}: its size is {width:.12g} x {height:.12g} pixels.")
    return int(height), int(width)


def _annotation(shape: Any, where: str) -> Annotation | None:
    """The object of a shape; None where the shape has no area."""
    corners = _corners(shape, where)
    if corners is None:
        return None
    finite(corners, where)
    name = shape.get("label", "").strip()
    if not name:
        raise InputError(f"{where} has no label.")
    return Annotation(corners, name)


def _corners(shape: Any, where: str) -> Corners | None:
    if shape.tag == "polygon":
        return around_points(_points(shape, where))
    if shape.tag == "mask":
        left, top, width, height = (_number(shape, key, where) for key in ("left", "top", "width", "height"))
        return left, top, left + width, top + height
    angle = math.radians(_number(shape, "rotation", where)) if shape.get("rotation") else 0.0
    if shape.tag == "ellipse":
        x, y, radius_x, radius_y = (_number(shape, key, where) for key in ("cx", "cy", "rx", "ry"))
        return around_ellipse(x, y, radius_x, radius_y, angle)
    if shape.tag == "box":
        x1, y1, x2, y2 = (_number(shape, key, where) for key in ("xtl", "ytl", "xbr", "ybr"))
        return around_rotated((x1, y1, x2, y2), angle) if angle else (x1, y1, x2, y2)
    return None


def _points(shape: Any, where: str) -> list[tuple[float, float]]:
    """Points written as `x,y;x,y`."""
    text = shape.get("points", "")
    points = []
    for point in text.split(";"):
        try:
            x, y = map(float, point.split(","))
        except ValueError as error:
            raise InputError(f"{where}: its points are {quoted(text)}, not pairs such as 1.5,2;3,4.") from error
        points.append((x, y))
    finite((value for point in points for value in point), where)
    return points


def _number(element: Any, key: str, where: str) -> float:
    text = element.get(key)
    if text is None:
        raise InputError(f"{where} has no {key}.")
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"{where}: its {key} is {quoted(text)}, not a number.") from error
    finite((value,), f"{where}, {key}")
    return value
