"""PASCAL VOC folders: one XML file per image, the images of a split listed in a text file.

Corners count pixels from 1 and include both ends: `xmin ymin xmax ymax` becomes `xmin-1 ymin-1 xmax ymax`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from defeat.data.dataset import Annotation, DetectionDataset, SplitBuilder, finite, select_classes
from defeat.data.files import IMAGE_SUFFIXES, find_image, is_file, leaves_folder, read_lines, unknown_split
from defeat.data.problems import Problems
from defeat.data.reading.layout import Layout
from defeat.data.reading.pairs import (
    CLASS_FLAG,
    AnnotationFile,
    Pair,
    Pairs,
    Unannotated,
    add_pair,
    class_names,
    find_pairs,
    parsed,
    read_pairs,
)
from defeat.errors import InputError

LOOKED_FOR = "a VOC folder (Annotations, JPEGImages and ImageSets/Main, or a folder of such years)"
_ROOT = re.compile(rb"<annotation[\s>]")
_BEGINNING = 4096  # bytes in which the root element begins
_PARTS = ("Annotations", "JPEGImages", "ImageSets/Main")

# Values written by annotation tools; "unspecified" is the usual text of an empty field.
_FLAGS = {"": False, "0": False, "false": False, "unspecified": False, "1": True, "true": True}


@dataclass(frozen=True)
class VocPart:
    """One VOC folder of a joined data set.

    Attributes:
        folder: contains `Annotations`, `JPEGImages` and `ImageSets/Main`.
        train: the split used as `train`, if the user named one.
    """

    folder: Path
    train: str | None = None


def find_folders(path: Path) -> list[Path]:
    """VOC folders at `path`: the path itself, or the years in it (also in its `VOCdevkit`)."""
    for parent in (path, path / "VOCdevkit"):
        if _is_voc(parent):
            return [parent]
        if parent.is_dir():
            years = [folder for folder in sorted(parent.iterdir()) if _is_voc(folder)]
            if years:
                return years
    return []


def find_standard(path: Path, unannotated: Unannotated) -> Layout | None:
    """Find VOC folders with lists of their splits."""
    folders = find_folders(path)
    return joined([VocPart(folder) for folder in folders], unannotated) if folders else None


def find_pairs_of(path: Path, unannotated: Unannotated) -> Layout | None:
    """Find VOC annotation files in any other layout."""
    pairs = find_pairs(path, XML) if path.is_dir() else None
    if pairs is None:
        return None
    reader = partial(read_pairs, pairs, XML, unannotated)
    return Layout("VOC annotation files (.xml)", tuple(sorted(pairs.splits)), reader)


def joined(parts: Sequence[VocPart], unannotated: Unannotated) -> Layout:
    """Several VOC folders as one data set."""
    return Layout("VOC", tuple(split_names(parts)), partial(read, parts, unannotated))


def split_names(parts: Sequence[VocPart]) -> list[str]:
    """Splits of all parts.

    If the user named the training split of a part, splits that share an image with it are omitted.
    """
    names: set[str] = set()
    for part in parts:
        splits = _splits(part.folder)
        if part.train is not None:
            training = set(_listed(part.folder, _split_of_part(part, "train")))
            splits = [name for name in splits if training.isdisjoint(_listed(part.folder, name))]
            names.add("train")
        names.update(splits)
    return sorted(names)


def read(
    parts: Sequence[VocPart],
    unannotated: Unannotated,
    split: str,
    classes: Sequence[str] | None,
    problems: Problems,
) -> DetectionDataset:
    """Read a split, joined over all parts that have it.

    Classes are the sorted names in all annotations of all parts, so that labels are equal in all splits. Therefore a
    broken annotation of any split is a problem.
    """
    selected = [(part.folder, _split_of_part(part, split)) for part in parts]
    origin = ", ".join(str(part.folder) for part in parts)
    if not any(name in _splits(folder) for folder, name in selected):
        raise unknown_split(origin, split, split_names(parts))
    contents = {part.folder: _read_annotations(part.folder) for part in parts}
    files = [file for folder in contents.values() for file in folder.values()]
    available = class_names(files, origin, problems)
    builder = SplitBuilder(select_classes(available, classes, origin), problems)
    for folder, part_split in selected:
        if part_split in _splits(folder):
            prefix = f"{folder.name}/" if len(parts) > 1 else ""
            pairs = _pairs(folder, prefix, part_split, contents[folder], problems)
            for pair in problems.track(pairs.chosen(part_split, unannotated, problems)):
                with problems.skip_broken_image():
                    add_pair(
                        builder,
                        pair,
                        None if pair.annotation is None else contents[folder][_key(folder, pair.annotation)],
                    )
    name = "+".join(part.folder.resolve().name for part in parts)
    return builder.finish(name, split, origin)


def _is_voc(folder: Path) -> bool:
    return all((folder / part).is_dir() for part in _PARTS)


def _split_of_part(part: VocPart, split: str) -> str:
    if split != "train" or part.train is None:
        return split
    if part.train not in _splits(part.folder):
        raise unknown_split(part.folder, part.train, _splits(part.folder))
    return part.train


def _splits(folder: Path) -> list[str]:
    return [file.stem for file in sorted((folder / "ImageSets/Main").glob("*.txt")) if not _lists_a_class(folder, file)]


def _lists_a_class(folder: Path, file: Path) -> bool:
    line = next((line.strip() for line in read_lines(file) if line.strip()), "")
    return bool(CLASS_FLAG.search(line)) and not is_file(folder / "Annotations" / f"{line}.xml")


def _listed(folder: Path, split: str) -> list[str]:
    lines = (line.strip() for line in read_lines(folder / "ImageSets/Main" / f"{split}.txt"))
    return [line for line in lines if line]


def _pairs(
    folder: Path,
    prefix: str,
    split: str,
    files: Mapping[str, AnnotationFile | InputError],
    problems: Problems,
) -> Pairs:
    """The images that the list of a split names, with their annotation files."""
    pairs = []
    for stem in _stems(folder, split, files, problems):
        with problems.skip_broken_image():
            pairs.append(_pair(folder, prefix, stem, files))
    return Pairs(folder, {split: pairs}, True, ())


def _stems(folder: Path, split: str, files: Mapping[str, object], problems: Problems) -> list[str]:
    file = folder / "ImageSets/Main" / f"{split}.txt"
    stems: dict[str, None] = {}
    for name in _listed(folder, split):
        stem = _without_suffix(name, files)
        with problems.skip_broken_image():
            if leaves_folder(stem):
                raise InputError(f"{file}: the image {stem!r} is outside the data set.")
            if stem in stems:
                raise InputError(f"{file} lists the image {stem!r} twice.")
            stems[stem] = None
    return list(stems)


def _read_annotations(folder: Path) -> dict[str, AnnotationFile | InputError]:
    """Annotation files by the name of their image; an error for a broken file."""
    root = folder / "Annotations"
    return {_key(folder, file): parsed(XML, file) for file in sorted(root.rglob("*.xml"))}


def _key(folder: Path, file: Path) -> str:
    return file.relative_to(folder / "Annotations").with_suffix("").as_posix()


def _without_suffix(name: str, files: Mapping[str, object]) -> str:
    """The name of an image as lists should have it; some tools write the suffix of the image or of its file, too."""
    path = Path(name)
    return str(path.with_suffix("")) if name not in files and path.suffix.lower() in (*IMAGE_SUFFIXES, ".xml") else name


def _pair(folder: Path, prefix: str, stem: str, files: Mapping[str, AnnotationFile | InputError]) -> Pair:
    """The files of an image that a list names."""
    file = files.get(stem)
    suffix = PureWindowsPath(file.file_name).suffix if isinstance(file, AnnotationFile) else ""
    image = find_image(folder / "JPEGImages", stem, suffix)
    if image is None and file is None:
        raise InputError(
            f"{folder / 'Annotations' / stem}.xml does not exist, but the split lists {stem!r}; nor is there an image."
        )
    if image is None:
        raise InputError(f"{folder / 'JPEGImages' / stem}{suffix or '.jpg'} does not exist.")
    annotation = None if file is None else folder / "Annotations" / f"{stem}.xml"
    return Pair(f"{prefix}{image.relative_to(folder).as_posix()}", image, annotation)


def _parse(path: Path) -> AnnotationFile:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, DefusedXmlException, ValueError, LookupError, OSError) as error:
        if not _is_utf8(path):
            raise InputError(f"{path} is not in UTF-8 and declares no other encoding: save it as UTF-8.") from error
        raise InputError(f"{path} is not well-formed XML: {error}.") from error
    if root is None or root.tag != "annotation":
        raise InputError(f"{path} is not a VOC annotation: its root element is not <annotation>.")
    boxes = [
        _read_object(element, f"{path}: object {number}") for number, element in enumerate(root.findall("object"), 1)
    ]
    return AnnotationFile((root.findtext("filename") or "").strip(), _read_size(root, path), boxes)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    except OSError:
        pass
    return True


def _read_size(root: Any, path: Path) -> tuple[int, int] | None:
    element = root.find("size")
    if element is None:
        return None
    # Some tools write a size of zero if they do not know it.
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
    # Equal corners are an annotation mistake, not an object of one pixel.
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


class _Xml:
    """The format of VOC's annotation files, for folders of any layout."""

    suffix = ".xml"

    def recognises(self, path: Path) -> bool:
        """Whether the root element is <annotation>, judged by the beginning of the file."""
        try:
            with path.open("rb") as file:
                return bool(_ROOT.search(file.read(_BEGINNING)))
        except OSError:
            return False

    def parse(self, path: Path) -> AnnotationFile:
        """Read a file."""
        return _parse(path)


XML = _Xml()
