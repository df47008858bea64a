"""YOLO data sets: a `data.yaml`, and beside each image a text file of `class cx cy width height`, relative to its size.

A line with more columns is a polygon, `class x1 y1 x2 y2 ...`; its extent is the box.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from defeat.data.dataset import Annotation, DetectionDataset, SplitBuilder, finite, select_classes
from defeat.data.files import absolute, exists, is_file, is_image, read_lines, read_text, unknown_split
from defeat.data.images import read_header
from defeat.data.problems import Problems
from defeat.errors import InputError, shown

LOOKED_FOR = "a YOLO folder (data.yaml with 'names' and 'train')"
_FILE_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LARGEST_INDEX = 1_000_000
_SPLITS = ("train", "val", "test")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which PyYAML takes the last, and to merge maps.

    Maps merged in each other would grow without bounds.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave `<<` an ordinary key, which no constructor knows."""


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


def read(file: Path, split: str, classes: Sequence[str] | None, problems: Problems) -> DetectionDataset:
    """Read a split; classes are the names of the YAML file, in the order of their indices."""
    configuration = _load(file)
    if split not in configuration.splits:
        raise unknown_split(file, split, sorted(configuration.splits))
    builder = SplitBuilder(select_classes(list(configuration.names.values()), classes, file), problems)
    images = _list_images(configuration, split, problems)
    labels = {image: _label_file(image, configuration.root) for image in images}
    if images and not any(map(is_file, labels.values())):
        first = labels[images[0]]
        raise InputError(f"No image of the split {split!r} of {file} has a label file; looked for {first} first.")
    for image in problems.track(images):
        with problems.of_an_image():
            size, label = read_header(image).upright, labels[image]
            boxes = _read_labels(label, configuration.names, size) if is_file(label) else []
            builder.add(image, image.relative_to(configuration.root).as_posix(), size, boxes)
    return builder.finish(configuration.root.resolve().name, split, file)


def _load(file: Path) -> _Configuration:
    text = read_text(file)
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 (a safe loader)
    except Exception as error:  # beside its own errors, the library hands on those of every kind of value
        raise InputError(f"{file} is not well-formed YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is no YOLO description: expected keys such as 'train' and 'names'.")
    path = content.get("path") or "."
    if not isinstance(path, str | int | float):
        raise InputError(f"{file}: 'path' is {shown(path)}, no path.")
    root = absolute(file.parent / str(path))
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
    for name in raw.values():
        # YAML reads words such as `no` and `on` as truth values.
        if isinstance(name, bool) or not isinstance(name, str | int | float) or name == "":
            raise InputError(f"{file}: the class {shown(name)} of 'names' is no name; put it in quotes.")
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


def _list_images(configuration: _Configuration, split: str, problems: Problems) -> list[Path]:
    images: list[Path] = []
    for entry in configuration.splits[split]:
        place = _resolve(entry, configuration, split)
        if place.is_dir():
            images += sorted(file for file in place.rglob("*") if is_image(file) and file.is_file())
        elif place.suffix.lower() == ".txt":
            images += _read_list(place, configuration.root, problems)
        else:
            raise InputError(f"{configuration.file}: {split!r} names {place}, neither a folder nor a .txt list.")
    once = list(dict.fromkeys(images))
    if repeated := len(images) - len(once):
        problems.notes.append(f"{repeated} images listed again (each is read once)")
    return once


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


def _read_list(file: Path, root: Path, problems: Problems) -> list[Path]:
    """Images of a list file; `./` means the folder of the list, everything else the root of the data set."""
    images = []
    for number, line in enumerate(read_lines(file), 1):
        name = line.strip()
        if name:
            with problems.of_an_image():
                images.append(_listed_image(file, root, name, f"{file}, line {number}"))
    return images


def _listed_image(file: Path, root: Path, name: str, where: str) -> Path:
    image = absolute((file.parent if name.startswith("./") else root) / name)
    if not image.is_relative_to(root):
        raise InputError(f"{where}: {name!r} is outside the data set {root}.")
    if not is_file(image):
        raise InputError(f"{where}: the image {image} does not exist.")
    return image


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
        for number, line in enumerate(read_lines(file), 1)
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
