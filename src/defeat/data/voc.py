"""PASCAL VOC folders: one XML file an image, the images of a split listed in a text file.

Corners count pixels from 1 and both ends belong to the box: `xmin ymin xmax ymax` is `xmin-1 ymin-1 xmax ymax` here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from defeat.data.dataset import Annotation, DetectionDataset, SplitBuilder, finite, select_classes
from defeat.data.files import find_image, is_file, leaves_folder, read_lines, unknown_split
from defeat.data.images import read_header
from defeat.data.problems import Problems
from defeat.errors import InputError

LOOKED_FOR = "a VOC folder (Annotations, JPEGImages and ImageSets/Main, or a folder of such years)"
_PARTS = ("Annotations", "JPEGImages", "ImageSets/Main")
# A line of the lists that say which images hold a class: `000005 -1`.
_FLAG = re.compile(r"\s+(-1|0|1)$")

# What tools write; "unspecified" is the usual text for everything that nobody filled in.
_FLAGS = {"": False, "0": False, "false": False, "unspecified": False, "1": True, "true": True}


@dataclass(frozen=True)
class VocPart:
    """One VOC folder of several that are read as one.

    Attributes:
        folder: holds `Annotations`, `JPEGImages` and `ImageSets/Main`.
        train: the split that serves as `train`, when the user named one.
    """

    folder: Path
    train: str | None = None


@dataclass(frozen=True, slots=True)
class _File:
    suffix: str
    size: tuple[int, int] | None
    annotations: list[Annotation]


def find_folders(path: Path) -> list[Path]:
    """The VOC folders at `path`: itself, or the years it holds (also below its `VOCdevkit`)."""
    for parent in (path, path / "VOCdevkit"):
        if _is_voc(parent):
            return [parent]
        if parent.is_dir():
            years = [folder for folder in sorted(parent.iterdir()) if _is_voc(folder)]
            if years:
                return years
    return []


def split_names(parts: Sequence[VocPart]) -> list[str]:
    """Splits that at least one part has.

    Where the user named the training split of a part, splits that share an image with it are left out.
    """
    names: set[str] = set()
    for part in parts:
        own = _splits(part.folder)
        if part.train is not None:
            training = set(_listed(part.folder, _own_split(part, "train")))
            own = [name for name in own if training.isdisjoint(_listed(part.folder, name))]
            names.add("train")
        names.update(own)
    return sorted(names)


def read(parts: Sequence[VocPart], split: str, classes: Sequence[str] | None, problems: Problems) -> DetectionDataset:
    """Read a split, joined over all parts that have it.

    Classes are the sorted names in all annotations of all parts, so that every split numbers them alike. A broken
    annotation is a problem, therefore, whichever split it is of.
    """
    chosen = [(part.folder, _own_split(part, split)) for part in parts]
    origin = ", ".join(str(part.folder) for part in parts)
    if not any(own in _splits(folder) for folder, own in chosen):
        raise unknown_split(origin, split, split_names(parts))
    contents = {part.folder: _read_annotations(part.folder) for part in parts}
    files = [file for folder in contents.values() for file in folder.values()]
    found = {box.name for file in files if isinstance(file, _File) for box in file.annotations}
    for file in files:
        if isinstance(file, InputError) and not (problems.skip and found):
            problems.add(file)
    if problems.found and not found:
        raise problems.nothing_left(origin, "")
    builder = SplitBuilder(select_classes(sorted(found), classes, origin), problems)
    for folder, own in chosen:
        if own in _splits(folder):
            prefix = f"{folder.name}/" if len(parts) > 1 else ""
            for stem in problems.track(_stems(folder, own, problems)):
                with problems.of_an_image():
                    _add_image(builder, folder, prefix, stem, contents[folder])
    name = "+".join(part.folder.resolve().name for part in parts)
    return builder.finish(name, split, origin)


def _is_voc(folder: Path) -> bool:
    return all((folder / part).is_dir() for part in _PARTS)


def _own_split(part: VocPart, split: str) -> str:
    if split != "train" or part.train is None:
        return split
    if part.train not in _splits(part.folder):
        raise unknown_split(part.folder, part.train, _splits(part.folder))
    return part.train


def _splits(folder: Path) -> list[str]:
    return [file.stem for file in sorted((folder / "ImageSets/Main").glob("*.txt")) if not _lists_a_class(folder, file)]


def _lists_a_class(folder: Path, file: Path) -> bool:
    line = next((line.strip() for line in read_lines(file) if line.strip()), "")
    return bool(_FLAG.search(line)) and not is_file(folder / "Annotations" / f"{line}.xml")


def _listed(folder: Path, split: str) -> list[str]:
    lines = (line.strip() for line in read_lines(folder / "ImageSets/Main" / f"{split}.txt"))
    return [line for line in lines if line]


def _stems(folder: Path, split: str, problems: Problems) -> list[str]:
    file = folder / "ImageSets/Main" / f"{split}.txt"
    stems: dict[str, None] = {}
    for stem in _listed(folder, split):
        with problems.of_an_image():
            if leaves_folder(stem):
                raise InputError(f"{file}: the image {stem!r} is outside the data set.")
            if stem in stems:
                raise InputError(f"{file} lists the image {stem!r} twice.")
            stems[stem] = None
    return list(stems)


def _read_annotations(folder: Path) -> dict[str, _File | InputError]:
    """The files with annotations by the name of their image; the error where one is broken."""
    root = folder / "Annotations"
    return {file.relative_to(root).with_suffix("").as_posix(): _tried(file) for file in sorted(root.rglob("*.xml"))}


def _tried(path: Path) -> _File | InputError:
    try:
        return _read_file(path)
    except InputError as error:
        return error


def _add_image(
    builder: SplitBuilder, folder: Path, prefix: str, stem: str, files: dict[str, _File | InputError]
) -> None:
    if stem not in files:
        raise InputError(f"{folder / 'Annotations' / stem}.xml does not exist, but the split lists {stem!r}.")
    file = files[stem]
    if isinstance(file, InputError):
        raise file
    path = find_image(folder / "JPEGImages", stem, file.suffix)
    if path is None:
        raise InputError(f"{folder / 'JPEGImages' / stem}{file.suffix or '.jpg'} does not exist.")
    header = read_header(path)
    if file.size is not None and file.size not in (header.stored, header.upright):
        (height, width), (real_height, real_width) = file.size, header.upright
        raise InputError(
            f"{folder / 'Annotations' / stem}.xml is for an image of {width:.12g} x {height:.12g} pixels, "
            f"but {path} has {real_width} x {real_height}."
        )
    upright = file.size is None or file.size != header.stored
    name = f"{prefix}{path.relative_to(folder).as_posix()}"
    builder.add(path, name, header.upright if upright else header.stored, file.annotations, prefer_upright=upright)


def _read_file(path: Path) -> _File:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, DefusedXmlException, ValueError, LookupError, OSError) as error:
        raise InputError(f"{path} is not well-formed XML: {error}.") from error
    if root is None or root.tag != "annotation":
        raise InputError(f"{path} is no VOC annotation: its root element is not <annotation>.")
    boxes = [
        _read_object(element, f"{path}: object {number}") for number, element in enumerate(root.findall("object"), 1)
    ]
    return _File(Path(root.findtext("filename") or "").suffix, _read_size(root, path), boxes)


def _read_size(root: Any, path: Path) -> tuple[int, int] | None:
    element = root.find("size")
    if element is None:
        return None
    # Some tools write a size of zero when they do not know it.
    width, height = (_number(element, key, f"{path}: size") for key in ("width", "height"))
    return (int(height), int(width)) if width > 0 and height > 0 else None


def _read_object(element: Any, where: str) -> Annotation:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise InputError(f"{where} has no <name>.")
    box = element.find("bndbox")
    if box is None:
        raise InputError(f"{where} ({name}) has no <bndbox>.")
    where = f"{where} ({name})"
    x1, y1, x2, y2 = (_number(box, key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (element.findtext("difficult") or "").strip().lower()
    if difficult not in _FLAGS:
        raise InputError(f"{where}: <difficult> is {difficult!r}, neither 0 nor 1.")
    # Two equal corners are a click that went wrong, not an object of one pixel.
    corners = (x1 - 1, y1 - 1, x2, y2) if x2 > x1 and y2 > y1 else (0.0, 0.0, 0.0, 0.0)
    return Annotation(corners, name, difficult=_FLAGS[difficult])


def _number(element: Any, key: str, where: str) -> float:
    text = element.findtext(key)
    if text is None:
        raise InputError(f"{where} has no <{key}>.")
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"{where}: <{key}> is {text.strip()!r}, not a number.") from error
    finite((value,), f"{where}, <{key}>")
    return value
