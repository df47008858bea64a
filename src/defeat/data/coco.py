"""COCO data sets: one JSON file a split, boxes as `x y width height`, category ids with gaps."""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defeat.data.dataset import LARGEST_SIDE, Annotation, DetectionDataset, SplitBuilder, finite, select_classes
from defeat.data.files import is_file, leaves_folder, read_text, unknown_split
from defeat.data.images import read_header
from defeat.data.problems import Problems
from defeat.errors import InputError, shown

LOOKED_FOR = (
    "a COCO folder (annotations/instances_SPLIT*.json, annotations/SPLIT.json or SPLIT/_annotations.coco.json, "
    "with a list of 'images')"
)
_SPLIT_FILE = re.compile(r"(?:instances_)?(?P<split>.+?)(?:20\d\d)?")
# Files of COCO's other tasks.
_OTHER_TASKS = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")
_LARGEST = 2**63 - 1
_ROBOFLOW = "_annotations.coco.json"
# Roboflow calls the validation split `valid`.
_ALIASES = {"valid": "val"}


@dataclass(frozen=True, slots=True)
class _Image:
    path: Path
    name: str
    size: tuple[int, int]
    prefer_upright: bool


def split_names(path: Path) -> list[str]:
    """Splits that have an annotation file; without the year (`val` for `instances_val2017.json`) where it is unique."""
    return sorted(_split_files(path))


def read(path: Path, split: str, classes: Sequence[str] | None, problems: Problems) -> DetectionDataset:
    """Read a split; classes are the categories of its file, in the order of their ids."""
    file = _annotation_file(path, split)
    content = _load(file)
    names = _category_names(content, file)
    found = list(dict.fromkeys(names[number] for number in sorted(names)))
    builder = SplitBuilder(select_classes(found, classes, file), problems)
    images = _read_images(content, path, file, split, problems)
    boxes = _read_annotations(content, names, file, list(images), problems)
    for number, image in problems.track(images.items()):
        with problems.of_an_image():
            if isinstance(image, InputError):
                raise image
            annotations = boxes[number]
            if isinstance(annotations, InputError):
                raise annotations
            builder.add(
                image.path,
                image.name,
                image.size,
                annotations,
                image_id=number,
                prefer_upright=image.prefer_upright,
            )
    return builder.finish(path.resolve().name, split, file)


def _split_files(path: Path) -> dict[str, Path]:
    """Annotation files by the shortest name of their split that is unique."""
    by_name: dict[str, list[Path]] = {}
    for file in sorted((path / "annotations").glob("*.json")):
        match = _SPLIT_FILE.fullmatch(file.stem)
        if match is not None and not file.stem.startswith(_OTHER_TASKS):
            by_name.setdefault(match["split"], []).append(file)
    for file in sorted(path.glob(f"*/{_ROBOFLOW}")):
        by_name.setdefault(_ALIASES.get(file.parent.name, file.parent.name), []).append(file)
    files: dict[str, Path] = {}
    for name, candidates in by_name.items():
        if len(candidates) == 1:
            files[name] = candidates[0]
        else:
            files.update({_full_name(file): file for file in candidates})
    return files


def _full_name(file: Path) -> str:
    return file.parent.name if file.name == _ROBOFLOW else file.stem.removeprefix("instances_")


def _annotation_file(path: Path, split: str) -> Path:
    files = _split_files(path)
    if split in files:
        return files[split]
    for file in files.values():
        if split == _full_name(file):
            return file
    raise unknown_split(path, split, sorted(files))


def _load(file: Path) -> dict[str, Any]:
    text = read_text(file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # also for a number of thousands of digits
        raise InputError(f"{file} is not well-formed JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{file} is no COCO file: it has no list of 'images'.")
    for key in ("annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise InputError(f"{file} has no list of {key!r}: it is {shown(content.get(key))}.")
    return content


def _category_names(content: dict[str, Any], file: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for place, element in enumerate(content["categories"]):
        where = f"{file}: category {_named(element, place)}"
        number, name = _integer(element, "id", where), element.get("name")
        if not isinstance(name, str) or not name:
            raise InputError(f"{where} has no name.")
        if number in names:
            raise InputError(f"{where}: this id is used twice.")
        names[number] = name
    return names


def _read_images(
    content: dict[str, Any], path: Path, file: Path, split: str, problems: Problems
) -> dict[int, _Image | InputError]:
    """The images by their ids; the error where one is broken."""
    images: dict[int, _Image | InputError] = {}
    owners: dict[Path, int] = {}
    root: Path | None = None
    for place, element in enumerate(content["images"]):
        where = f"{file}: image {_named(element, place)}"
        with problems.of_an_image():
            number = _integer(element, "id", where)
            if number in images:  # whose boxes are those of this id?
                images[number] = InputError(f"{where}: this id is used twice.")
                continue
            try:
                name = _file_name(element, where)
                if (same := Path(name)) in owners:  # each of the two lacks the other's boxes
                    twice = images[owners[same]] = InputError(f"{where} has the file_name {name!r} of another image.")
                    raise twice
                owners[same] = number
                root = root or _image_root(path, file, split, name, where)
                images[number] = _read_image_entry(element, path, root / name, where)
            except InputError as error:
                images[number] = error
    return images


def _file_name(element: dict[str, Any], where: str) -> str:
    name = element.get("file_name")
    if not isinstance(name, str) or not name:
        raise InputError(f"{where} has no file_name.")
    if leaves_folder(name):
        raise InputError(f"{where}: the file_name {name!r} leads out of the data set.")
    return name


def _image_root(path: Path, file: Path, split: str, name: str, where: str) -> Path:
    """The folder that file names are relative to: the first of the usual ones that holds the first image."""
    full = _full_name(file)
    names = (full, split, f"{split}2017", f"images/{full}", f"images/{split}", "images", ".")
    roots = dict.fromkeys([*(path / folder for folder in names), file.parent])
    for root in roots:
        if is_file(root / name):
            return root
    raise InputError(f"{where}: {name!r} does not exist; looked in {', '.join(map(str, roots))}.")


def _read_image_entry(element: dict[str, Any], folder: Path, path: Path, where: str) -> _Image:
    if not is_file(path):
        raise InputError(f"{where}: {path} does not exist.")
    name = path.relative_to(folder).as_posix()
    if element.get("width") is None or element.get("height") is None:
        return _Image(path, name, read_header(path).upright, prefer_upright=True)
    width, height = _integer(element, "width", where), _integer(element, "height", where)
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        raise InputError(f"{where}: its size is {width} x {height} pixels.")
    return _Image(path, name, (height, width), prefer_upright=False)


def _read_annotations(
    content: dict[str, Any], names: dict[int, str], file: Path, images: Collection[int], problems: Problems
) -> dict[int, list[Annotation] | InputError]:
    """The boxes of each image; the error where one is broken."""
    boxes: dict[int, list[Annotation]] = {number: [] for number in images}
    broken: dict[int, InputError] = {}
    nowhere = 0
    for place, element in enumerate(content["annotations"]):
        where = f"{file}: annotation {_named(element, place)}"
        try:
            number = _image_of(element, boxes, where)
        except InputError as error:
            problems.add(error)
            nowhere += 1
            continue
        try:
            boxes[number].append(_read_annotation(element, names, where))
        except InputError as error:
            problems.add(error)
            broken.setdefault(number, error)
    if nowhere:
        problems.notes.append(f"{nowhere} annotations left out (of no image in the file)")
    return boxes | broken


def _image_of(element: Any, images: Collection[int], where: str) -> int:
    number = _integer(element, "image_id", where)
    if number not in images:
        raise InputError(f"{where} is of the unknown image {number}.")
    return number


def _read_annotation(element: dict[str, Any], names: dict[int, str], where: str) -> Annotation:
    category = _integer(element, "category_id", where)
    if category not in names:
        raise InputError(f"{where}: the category {category} is not among the categories of the file.")
    box = element.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise InputError(f"{where}: its bbox is {shown(box)}, not a list of four numbers.")
    finite(box, where)
    x, y, width, height = map(float, box)
    crowd = element.get("iscrowd") or 0
    if crowd not in (0, 1):
        raise InputError(f"{where}: its iscrowd is {shown(crowd)}, neither 0 nor 1.")
    return Annotation((x, y, x + width, y + height), names[category], crowd=bool(crowd))


def _integer(element: Any, key: str, where: str) -> int:
    value = element.get(key) if isinstance(element, dict) else None
    # Some tools write whole numbers as floats; NaN and infinity are no integers.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{where}: its {key} is {shown(value)}, not a whole number.")
    if abs(value) > _LARGEST:
        raise InputError(f"{where}: its {key} is {shown(value)}, too large a number.")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named(element: Any, place: int) -> str:
    """How to name an element in a message: by its id, else by its place in the list."""
    number = element.get("id") if isinstance(element, dict) else None
    return f"number {place}" if number is None else f"with id {shown(number)}"
