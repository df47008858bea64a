"""Descriptions of YOLO data sets: classes and splits in a YAML file or in Darknet's `obj.data`, or classes alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from defeat.data.files import absolute, exists, read_lines, read_text
from defeat.data.formats.yolo.paths import ends_of, find_entry, is_folder, resolve, without_parents
from defeat.data.reading.pairs import SPLIT_FOLDERS
from defeat.errors import InputError, quoted

_LARGEST_INDEX = 1_000_000
_LARGEST_DARKNET = 100_000  # bytes of an `obj.data`
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Description:
    """The classes and images of a data set.

    Attributes:
        file: the description, or the folder without one; for messages.
        root: the data folder.
        names: the classes by their index, sorted.
        splits: folders and lists of the images of each split, as written.
        images: images of the splits that are found in the folder, not described.
        labels: label files by their image, where they are found by their name.
        notes: a phrase for each assumption.
    """

    file: Path
    root: Path
    names: Mapping[int, str]
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    images: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    labels: Mapping[Path, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML uses the last, and merge keys.

    Maps that are merged recursively would grow without bounds.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct the dict of a mapping node."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        duplicate = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if duplicate is not None:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {duplicate!r}", node.start_mark)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Treat `<<` as an ordinary key, which no constructor accepts."""


def load_yaml(file: Path) -> dict[Any, Any]:
    """Content of a YAML file.

    Raises:
        InputError: it is not a map in YAML.
    """
    text = read_text(file)
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 (a safe loader)
    except Exception as error:  # the library also raises errors of the constructed types
        raise InputError(f"{file} is not well-formed YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a YOLO description: expected keys such as 'train' and 'names'.")
    return content


def keys_of(file: Path) -> set[str]:
    """Keys with a value of a YAML file; none where it is not a map in YAML, or its names are not names of classes."""
    try:
        content = load_yaml(file)
    except InputError:
        return set()
    if not isinstance(content.get("names"), list | dict):
        return set()
    return {key for key, value in content.items() if isinstance(key, str) and value}


def is_darknet(file: Path) -> bool:
    """Whether a file is like `obj.data`, with the file of the classes."""
    if file.suffix.lower() != ".data" or file.stat().st_size > _LARGEST_DARKNET:
        return False
    try:
        return any(line.partition("=")[0].strip() == "names" for line in read_lines(file))
    except InputError:
        return False


def read_yaml(file: Path) -> Description:
    """Read a YAML file.

    Raises:
        InputError: it is invalid, or its folder doesn't exist.
    """
    content, notes = load_yaml(file), list[str]()
    path = content.get("path") or "."
    if not isinstance(path, str | int | float):
        raise InputError(f"{file}: 'path' is {quoted(path)}, not a path.")
    splits = _splits(content, file, notes)
    root = _root(str(path), splits, file, notes)
    return Description(file, root, _read_names(content, file), splits, notes=tuple(notes))


def read_darknet(file: Path) -> Description:
    """Read a file such as `obj.data`: lines `key = value` with the file of the classes and the lists of the splits.

    Raises:
        InputError: it is invalid, or the file of the classes doesn't exist.
    """
    content: dict[Any, Any] = {}
    for number, line in enumerate(read_lines(file), 1):
        key, sign, value = (part.strip() for part in line.partition("="))
        if line.strip().startswith(("#", ";")) or not line.strip():
            continue
        if not sign or key in content:
            raise InputError(f"{file}, line {number}: expected 'key = value', with each key once.")
        content[key] = value
    if not content.get("names"):
        raise InputError(f"{file} has no line 'names = FILE' with the file of the classes.")
    content.setdefault("val", content.get("valid"))  # the usual key
    if content["val"] == content.get("valid"):
        content.pop("valid", None)
    notes: list[str] = []
    root = absolute(file.parent)
    names = read_names(resolve(root, content["names"], "names", file, notes))
    count = content.get("classes", str(len(names)))
    if count != str(len(names)):
        raise InputError(f"{file}: 'classes' is {quoted(count)}, but {content['names']!r} has {len(names)} classes.")
    return Description(file, root, names, _splits(content, file, notes), notes=tuple(notes))


def read_names(file: Path) -> dict[int, str]:
    """The classes of a file with a name in each line, in the order of their indices.

    Raises:
        InputError: it contains no class, an empty line, or a class twice.
    """
    names = [line.strip() for line in read_text(file).rstrip().split("\n")]
    if "" in names:
        raise InputError(f"{file}, line {names.index('') + 1} is empty: expected the name of a class in each line.")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{file} contains the class {quoted(name)} twice.")
        seen.add(name)
    if len(names) > _LARGEST_INDEX:
        raise InputError(f"{file} has {len(names)} lines; expected at most {_LARGEST_INDEX} classes.")
    return dict(enumerate(names))


def _splits(content: dict[Any, Any], file: Path, notes: list[str]) -> dict[str, list[str]]:
    """The entries of each split; other names of a split, such as `valid`, are read where its own is missing."""
    splits = {name: _entries(content[name], name, file) for name in _SPLITS if content.get(name)}
    keys: dict[str, str] = {name: name for name in splits}
    for key, split in SPLIT_FOLDERS.items():
        if key in _SPLITS or not content.get(key) or not _names_paths(content[key]):
            continue
        if split not in splits:
            splits[split], keys[split] = _entries(content[key], key, file), key
            notes.append(f"the key {key!r} is read as {split!r}")
        elif keys[split] == split:
            notes.append(f"the key {key!r} is ignored: there is {split!r}")
        else:
            raise InputError(f"{file} has both {keys[split]!r} and {key!r}: name one of them {split!r}.")
    return {name: splits[name] for name in _SPLITS if name in splits}


def _entries(value: Any, split: str, file: Path) -> list[str]:
    if not _names_paths(value):
        raise InputError(f"{file}: {split!r} is {quoted(value)}, neither a path nor a list of paths.")
    return value if isinstance(value, list) else [value]


def _names_paths(value: Any) -> bool:
    return all(isinstance(entry, str) for entry in (value if isinstance(value, list) else [value]))


def _root(path: str, splits: Mapping[str, Sequence[str]], file: Path, notes: list[str]) -> Path:
    """The data folder; where `path` doesn't exist here, the folder of the YAML file or a folder in it."""
    root, own = absolute(file.parent / path), absolute(file.parent)
    if root == root.parent != own:
        raise InputError(
            f"{file}: its 'path' is {quoted(path)}, all files of this machine: set it to the folder of the data set."
        )
    if is_folder(root):
        return root
    entries = [entry for split in splits.values() for entry in split]
    candidates = [own, *_folders_named(path, own)]
    folder = next((folder for folder in candidates if any(exists(folder / entry) for entry in entries)), None)
    folder = folder or next((folder for folder in candidates if any(find_entry(folder, e) for e in entries)), None)
    if folder is None:
        raise InputError(
            f"{file}: its 'path' is {quoted(path)}, which is not a folder, nor are the splits beside the file; "
            "set 'path' to the folder that contains everything."
        )
    where = "the folder of the file" if folder == own else quoted(folder.relative_to(own).as_posix())
    notes.append(f"'path' is {quoted(path)}, which is not a folder: {where} is read")
    return folder


def _folders_named(path: str, own: Path) -> list[Path]:
    """Folders beside the YAML file that end a path of another machine, the longest end first."""
    return [folder for end in ends_of(without_parents(path), own) if is_folder(folder := own.joinpath(*end))]


def _read_names(content: dict[Any, Any], file: Path) -> dict[int, str]:
    raw = content.get("names")
    if isinstance(raw, list):
        raw = dict(enumerate(raw))
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"{file}: 'names' is {quoted(raw)}, neither a list of classes nor a map from index to class.")
    for name in raw.values():
        # YAML reads words such as `no` and `on` as booleans.
        if isinstance(name, bool) or not isinstance(name, str | int | float) or name == "":
            raise InputError(f"{file}: the class {quoted(name)} of 'names' is not a text; put it in quotes.")
    try:
        names = {int(index): str(name) for index, name in raw.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{file}: a key of 'names' is not a class index: {error}.") from error
    if len(set(names.values())) < len(raw):
        raise InputError(f"{file}: 'names' contains a class twice.")
    count = content.get("nc")
    if count is not None and count != len(names):
        raise InputError(f"{file}: 'nc' is {quoted(count)}, but 'names' has {len(names)} classes.")
    if min(names) < 0 or max(names) > _LARGEST_INDEX:
        raise InputError(f"{file}: a class index in 'names' is not from 0 to {_LARGEST_INDEX}.")
    return {index: names[index] for index in sorted(names)}
