"""Images of a COCO file: their entries, and the files that these mean."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

from defeat.data.dataset import LARGEST_SIDE
from defeat.data.files import is_file, is_image, leaves_folder, walk
from defeat.data.formats.coco.values import MERGED, SHORTENED, identifier, integer, named, number_text_ids
from defeat.data.images import OWN_DECODER, read_header
from defeat.data.problems import Problems
from defeat.data.reading.pairs import ALL, SPLIT_FOLDERS
from defeat.data.tables import Strings
from defeat.errors import InputError

_LONGEST_END = 16  # folders of a file_name that are looked at
# A relative file_name without `.`, `..`, empty parts, backslash and drive: joined to a folder, it is only appended.
_PLAIN = re.compile(r"(?!.:)(?!\.\.?(?:/|\Z))[^/\\\0]+(?:/(?!\.\.?(?:/|\Z))[^/\\\0]+)*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of a file.

    Attributes:
        path: its path.
        name: its path relative to the folder of all images.
        size: height and width that its boxes refer to.
        prefer_upright: see `Sample`.
    """

    path: Path
    name: str
    size: tuple[int, int]
    prefer_upright: bool


@dataclass(frozen=True)
class ImageFolders:
    """Where the images of a split may be.

    Attributes:
        base: folder of all images.
        roots: the folders in it that file names may be relative to, in order of precedence.
        split: name of the split.
        searched: whether images are also searched in the other folders below `base`.
    """

    base: Path
    roots: tuple[Path, ...]
    split: str
    searched: bool

    @cached_property
    def below(self) -> dict[str, list[Path]]:
        """All images below `base` that may be of the split, by their names without folders."""
        images: dict[str, list[Path]] = {}
        for path in walk(self.base) if self.searched else ():
            if is_image(path) and not self._is_of_another_split(path.relative_to(self.base)):
                images.setdefault(path.name, []).append(path)
        return images

    def _is_of_another_split(self, path: Path) -> bool:
        splits = {SPLIT_FOLDERS[part.lower()] for part in path.parent.parts if part.lower() in SPLIT_FOLDERS}
        return self.split in SPLIT_FOLDERS.values() and bool(splits) and self.split not in splits

    def ending_with(self, end: Sequence[str], least: int) -> list[Path]:
        """The images whose path has the longest part in common with the end of a file name.

        Args:
            end: folders and name.
            least: how many of them must be in common.
        """
        for length in range(len(end), least - 1, -1):
            paths = [path for root in self.roots if is_file(path := root.joinpath(*end[-length:]))]
            if paths:
                return list({path.resolve(): path for path in reversed(paths)}.values())
        lengths = {path: _common_length(end, path.relative_to(self.base).parts) for path in self.below.get(end[-1], ())}
        longest = max(lengths.values(), default=0)
        return [path for path, length in lengths.items() if length == longest >= least]


def plain_files(file_names: Sequence[str], folders: ImageFolders) -> tuple[Strings, Strings] | None:
    """Paths and names of images that all lie where their file_name says, in one usual folder.

    Returns:
        None where it is not that simple: a file doesn't exist, two are the same, a decoder may be missing, or a name
        could be understood in two ways; see `ImageReader`.
    """
    if any(name.lower().endswith(OWN_DECODER) for name in file_names):
        return None
    if not all(map(_PLAIN.fullmatch, file_names)) or len(set(map(os.path.normcase, file_names))) < len(file_names):
        return None
    root = next((root for root in folders.roots if is_file(root / file_names[0])), None)
    if root is None:
        return None
    in_root = f"{root / 'x'}"[:-1]
    if not all(is_file(f"{in_root}{name}") for name in file_names):
        return None
    below = (root / "x").relative_to(folders.base).as_posix()[:-1]
    names = Strings.of(file_names, beginning=below)
    if os.sep == "/":
        return Strings(in_root, names.data, names.ends), names
    return Strings.of([name.replace("/", os.sep) for name in file_names], beginning=in_root), names


class ImageReader:
    """Reads the images of a file.

    Args:
        folders: where the images may be.
        file: path of the file, for messages.
        problems: gets the entries without an id.
        repairs: counts the repairs.

    Attributes:
        images: images by id, in the order of the file; an error for a broken image.
        text_ids: numbers of the ids that are text.
    """

    def __init__(self, folders: ImageFolders, file: Path, problems: Problems, repairs: Counter[str]) -> None:
        self.images: dict[int, CocoImage | InputError] = {}
        self.text_ids: dict[str, int] = {}
        self._folders = folders
        self._file = file
        self._problems = problems
        self._repairs = repairs
        self._elements: dict[int, dict[str, Any]] = {}
        self._owners: dict[Path, int] = {}
        self._root: Path | None = None
        self._repeated: set[int] = set()  # ids of different entries
        self._missing: dict[int, tuple[str, str]] = {}  # id: file_name, name of the element in messages

    def read(self, elements: Sequence[Any]) -> None:
        """Read all entries: first those whose file_name is a file, then those whose end is one."""
        self.text_ids = number_text_ids(elements, "images", self._repairs)
        for index, element in enumerate(elements):
            where = f"{self._file}: image {named(element, index)}"
            with self._problems.skip_broken_image():
                number = identifier(element, "id", where, self.text_ids, self._repairs)
                assert isinstance(number, int)  # each text has its number
                self._add(number, element, where)
        for number, (name, where) in self._missing.items():
            end = self._end_of(name)
            if end is not None and number not in self._repeated:
                self._add_by_end(number, name, where, *end)

    def _add(self, number: int, element: dict[str, Any], where: str) -> None:
        if number in self._elements:
            if _are_equal(self._elements[number], element):
                self._repairs[MERGED] += 1
            else:  # boxes of this id are ambiguous
                self.images[number] = InputError(f"{where}: this id is used twice.")
                self._repeated.add(number)
            return
        self._elements[number] = element
        try:
            name = _file_name(element, where)
            if not leaves_folder(name) and (path := self._path(name)) is not None:
                self._own(path, number, name, where)
                self._read_entry(number, path, where)
            else:
                self._missing[number] = (name, where)
                self.images[number] = self._does_not_exist(name, where)
        except InputError as broken:
            self.images[number] = broken

    def _path(self, name: str) -> Path | None:
        """A file by its name as it is: in the first usual folder that contains an image."""
        root = self._root or next((root for root in self._folders.roots if is_file(root / name)), None)
        if root is None or not is_file(root / name):
            return None
        self._root = root
        return root / name

    def _own(self, path: Path, number: int, name: str, where: str) -> None:
        if path in self._owners:  # each of the two lacks the boxes of the other
            error = InputError(f"{where} has the file_name {name!r} of another image.")
            self.images[self._owners[path]] = error
            raise error
        self._owners[path] = number

    def _does_not_exist(self, name: str, where: str) -> InputError:
        if leaves_folder(name):
            return InputError(f"{where}: the file_name {name!r} is outside the data set, which has no such image.")
        if self._root is not None:
            return InputError(f"{where}: {self._root / name} does not exist.")
        looked_in = ", ".join(map(str, self._folders.roots))
        return InputError(f"{where}: {name!r} does not exist; looked in {looked_in}.")

    def _end_of(self, name: str) -> tuple[list[str], int] | None:
        """The end of a file_name that may be a file, and how much of it must be; None where it is as it should be."""
        windows = PureWindowsPath(name)  # which takes the separators of any system
        parts = list(windows.parts[1:] if windows.anchor else windows.parts)
        end = parts[max((index + 1 for index, part in enumerate(parts) if part == ".."), default=0) :][-_LONGEST_END:]
        if not end:
            return None
        if leaves_folder(name) or "\\" in name or "://" in name or self._root is None:
            return end, 1
        # The others are where they should be: this one may be in the folder of another split, but is never guessed.
        return (end, len(parts)) if self._folders.split == ALL else None

    def _add_by_end(self, number: int, name: str, where: str, end: list[str], least: int) -> None:
        paths = self._folders.ending_with(end, least)
        if not paths:
            return
        try:
            if len(paths) > 1:
                raise InputError(f"{where}: the file_name {name!r} may be {' or '.join(map(str, paths[:2]))}.")
            self._own_by_end(paths[0], number, name, where)
            self._read_entry(number, paths[0], where)
            self._repairs[SHORTENED] += 1
        except InputError as broken:
            self.images[number] = broken

    def _own_by_end(self, path: Path, number: int, name: str, where: str) -> None:
        owner = self._owners.setdefault(path, number)
        if owner == number:
            return
        error = InputError(f"{where}: the file_name {name!r} leads to {path}, the file of another image.")
        if owner in self._missing:  # also found by the end of its file_name: it is unknown which of them it is
            self._repairs[SHORTENED] -= isinstance(self.images[owner], CocoImage)
            self.images[owner] = error
        raise error

    def _read_entry(self, number: int, path: Path, where: str) -> None:
        element, name = self._elements[number], path.relative_to(self._folders.base).as_posix()
        if element.get("width") is None or element.get("height") is None:
            size = read_header(path, self._problems.max_pixels).upright
            self.images[number] = CocoImage(path, name, size, prefer_upright=True)
            return
        width, height = (integer(element, key, where, self._repairs) for key in ("width", "height"))
        if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
            raise InputError(f"{where}: its size is {width} x {height} pixels.")
        self.images[number] = CocoImage(path, name, (height, width), prefer_upright=False)


def _file_name(element: dict[str, Any], where: str) -> str:
    name = element.get("file_name")
    if not isinstance(name, str) or not name:
        raise InputError(f"{where} has no file_name.")
    return name


def _are_equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    try:
        return first == second
    except RecursionError:  # lists far inside lists
        return False


def _common_length(end: Sequence[str], parts: Sequence[str]) -> int:
    return next(_differences(end, parts), min(len(end), len(parts)))


def _differences(end: Sequence[str], parts: Sequence[str]) -> Iterator[int]:
    pairs = zip(reversed(end), reversed(parts), strict=False)
    return (index for index, (first, second) in enumerate(pairs) if first != second)
