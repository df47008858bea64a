"""YOLO data sets: a `data.yaml`, and beside each image a text file of `class cx cy width height`, relative to its size.

A line with more columns is a polygon, `class x1 y1 x2 y2 ...`; its extent is the box.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from defeat.data.dataset import Annotation, DetectionDataset, SplitBuilder, finite, select_classes
from defeat.data.files import absolute, exists, is_file, is_image, read_text, shown, unknown_split
from defeat.data.images import read_header
from defeat.errors import InputError

LOOKED_FOR = "a YOLO folder (data.yaml with 'names' and 'train')"
_FILE_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LARGEST_INDEX = 1_000_000
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class _Configuration:
    file: Path
    root: Path
    names: dict[int, str]
    splits: dict[str, list[str]]


def find_file(path: Path) -> Path | None:
    """The YAML file of the data set at `path`: the path itself, or a file of a usual name in it."""
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
        return path
    return next((path / name for name in _FILE_NAMES if (path / name).is_file()), None)


def split_names(file: Path) -> list[str]:
    """Splits that the YAML file names."""
    return sorted(_load(file).splits)


def read(file: Path, split: str, classes: Sequence[str] | None) -> DetectionDataset:
    """Read a split; classes are the names of the YAML file, in the order of their indices."""
    configuration = _load(file)
    if split not in configuration.splits:
        raise unknown_split(file, split, sorted(configuration.splits))
    builder = SplitBuilder(select_classes(list(configuration.names.values()), classes, file))
    images = _list_images(configuration, split)
    labels = [_label_file(image, configuration.root) for image in images]
    if images and not any(label.is_file() for label in labels):
        raise InputError(f"No image of the split {split!r} of {file} has a label file; looked for {labels[0]} first.")
    for image, label in zip(images, labels, strict=True):
        size = read_header(image).upright
        boxes = _read_labels(label, configuration.names, size) if label.is_file() else []
        builder.add(image, image.relative_to(configuration.root).as_posix(), size, boxes)
    return builder.finish(configuration.root.resolve().name, split, file)


class _Loader(yaml.SafeLoader):
    """Refuses to merge maps: those merged in each other would grow without bounds."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave `<<` an ordinary key, which no constructor knows."""


def _load(file: Path) -> _Configuration:
    text = read_text(file)
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 # a safe loader
    except Exception as error:  # beside its own errors, the library hands on those of every kind of value
        raise InputError(f"{file} is not well-formed YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is no YOLO description: expected keys such as 'train' and 'names'.")
    path = content.get("path") or "."
    if not isinstance(path, str):
        raise InputError(f"{file}: 'path' is {shown(path)}, not a path.")
    root = absolute(file.parent / path)
    if not (exists(root) and root.is_dir()):
        raise InputError(f"{file}: its 'path' leads to {root}, which is no folder.")
    splits = {name: _entries(content[name], name, file) for name in _SPLITS if content.get(name)}
    return _Configuration(file, root, _read_names(content, file), splits)


def _entries(value: Any, split: str, file: Path) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        raise InputError(f"{file}: {split!r} is {shown(value)}, neither a path nor a list of paths.")
    return entries


def _read_names(content: dict[Any, Any], file: Path) -> dict[int, str]:
    raw = content.get("names")
    if isinstance(raw, list):
        raw = dict(enumerate(raw))
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"{file}: 'names' is {shown(raw)}, neither a list of classes nor a map from index to class.")
    if any(isinstance(name, Collection) and not isinstance(name, str) for name in raw.values()):
        raise InputError(f"{file}: a class in 'names' is no name but a list or a map.")
    try:
        names = {int(index): str(name) for index, name in raw.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{file}: a key of 'names' is not a class index: {error}.") from error
    if len(set(names.values())) < len(raw):
        raise InputError(f"{file}: 'names' holds a class twice.")
    count = content.get("nc")
    if count is not None and count != len(names):
        raise InputError(f"{file}: 'nc' is {shown(count)}, but 'names' has {len(names)} classes.")
    if min(names) < 0 or max(names) > _LARGEST_INDEX:
        raise InputError(f"{file}: a class index in 'names' is not from 0 to {_LARGEST_INDEX}.")
    return {index: names[index] for index in sorted(names)}


def _list_images(configuration: _Configuration, split: str) -> list[Path]:
    images: list[Path] = []
    for entry in configuration.splits[split]:
        place = _resolve(entry, configuration, split)
        if place.is_dir():
            images += sorted(file for file in place.rglob("*") if is_image(file) and file.is_file())
        elif place.suffix.lower() == ".txt":
            images += _read_list(place, configuration.root)
        else:
            raise InputError(f"{configuration.file}: {split!r} names {place}, neither a folder nor a .txt list.")
    return list(dict.fromkeys(images))


def _resolve(entry: str, configuration: _Configuration, split: str) -> Path:
    place = absolute(configuration.root / entry)
    if not exists(place) and entry.startswith("../"):
        # Exports of Roboflow are written as if the YAML file stood one folder deeper.
        place = absolute(configuration.root / entry[3:])
    if not place.is_relative_to(configuration.root):
        raise InputError(
            f"{configuration.file}: {split!r} names {entry!r}, outside the data set; "
            "set 'path' to the folder that holds everything."
        )
    if not exists(place):
        raise InputError(f"{configuration.file}: {split!r} names {place}, which does not exist.")
    return place


def _read_list(file: Path, root: Path) -> list[Path]:
    """Images of a list file; `./` means the folder of the list, everything else the root of the data set."""
    images = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        image = absolute((file.parent if name.startswith("./") else root) / name)
        if not image.is_relative_to(root):
            raise InputError(f"{file}, line {number}: {name!r} is outside the data set {root}.")
        if not is_file(image):
            raise InputError(f"{file}, line {number}: the image {image} does not exist.")
        images.append(image)
    return images


def _label_file(image: Path, root: Path) -> Path:
    """`images/a/b.jpg` has its labels in `labels/a/b.txt`; without a folder `images` they are beside it."""
    folders = list(image.relative_to(root).parent.parts)
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        folders[last] = "labels"
    return root.joinpath(*folders, f"{image.stem}.txt")


def _read_labels(file: Path, names: dict[int, str], size: tuple[int, int]) -> list[Annotation]:
    return [
        _read_line(line.split(), names, size, f"{file}, line {number}")
        for number, line in enumerate(read_text(file).splitlines(), 1)
        if line.strip()
    ]


def _read_line(columns: list[str], names: dict[int, str], size: tuple[int, int], where: str) -> Annotation:
    try:
        values = [float(column) for column in columns]
    except ValueError as error:
        raise InputError(f"{where}: {error}.") from error
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise InputError(
            f"{where} has {len(values)} columns; expected a class and 'cx cy width height', or three or more points."
        )
    finite(values, where)
    index = int(values[0])
    if index != values[0] or index not in names:
        raise InputError(f"{where}: there is no class {columns[0]}; the indices go from {min(names)} to {max(names)}.")
    height, width = size
    if len(values) == 5:
        cx, cy, w, h = values[1:]
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    else:
        xs, ys = values[1::2], values[2::2]
        corners = (min(xs), min(ys), max(xs), max(ys))
    x1, y1, x2, y2 = corners
    return Annotation((x1 * width, y1 * height, x2 * width, y2 * height), names[index])
