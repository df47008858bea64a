"""Paths in YOLO's descriptions and lists, also those that were written on another machine.

Such a path is absolute or begins with a folder that doesn't exist here. Its longest end that exists in the data folder
is taken; no path leads out of the data folder.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

from defeat.data.files import absolute, exists, is_file, read_lines
from defeat.data.problems import Problems
from defeat.data.reading.pairs import RECOGNISED_BY
from defeat.errors import InputError, quoted

_LONGEST = 4096  # characters of a path that is looked for
_DEEPEST = 64  # folders of a path that is looked for


def is_folder(path: Path) -> bool:
    """Whether a folder exists; false for an invalid name."""
    return exists(path) and path.is_dir()


def ends_of(name: str, root: Path) -> Iterator[tuple[str, ...]]:
    """Ends of a path, with separators of any system, that may exist in the data folder; the longest first.

    Args:
        name: the path.
        root: the data folder.
    """
    windows = PureWindowsPath(name if len(name) <= _LONGEST else "")
    parts = windows.parts[1:] if windows.anchor else windows.parts
    if not parts or ".." in parts or len(parts) > _DEEPEST or _leads_inside(name, root):
        return
    yield parts
    if windows.anchor or not exists(root / parts[0]):
        for first in range(1, len(parts)):
            yield parts[first:]


def without_parents(name: str) -> str:
    """A path with `/` as separator, without `../` at its beginning."""
    return re.sub(r"^(\.\./)+", "", name.replace("\\", "/"))


def find_entry(root: Path, entry: str) -> Path | None:
    """The folder or list that an entry of a split means, where it is not at the path as written."""
    return next((path for end in ends_of(without_parents(entry), root) if exists(path := root.joinpath(*end))), None)


def resolve(root: Path, entry: str, key: str, file: Path, notes: list[str]) -> Path:
    """The path that an entry of a description means.

    Args:
        root: the data folder.
        entry: the path as written.
        key: name of the split or of the other entry.
        file: the description.
        notes: gets a phrase if the path is not taken as written.

    Raises:
        InputError: it doesn't exist, or is outside the data folder.
    """
    path = absolute(root / entry)
    if not exists(path) and entry.startswith("../"):
        # Paths in exports of Roboflow assume that the YAML file is one folder deeper.
        path = absolute(root / entry[3:])
    if exists(path) and path.is_relative_to(root):
        return path
    moved = None if exists(path) else find_entry(root, entry)
    if moved is not None:
        notes.append(f"{key!r} names {quoted(entry)}, read as {quoted(moved.relative_to(root).as_posix())}")
        return moved
    if not path.is_relative_to(root):
        raise InputError(
            f"{file}: {key!r} names {quoted(entry)}, outside the data set; "
            "set 'path' to the folder that contains everything."
        )
    raise InputError(f"{file}: {key!r} names {path}, which does not exist.")


class ListReader:
    """Reads the lists of a split's images.

    All paths that were written on another machine must have the same beginning, so that two images are never taken for
    one.

    Args:
        root: the data folder.
        problems: gets the problems of the lines.
    """

    def __init__(self, root: Path, problems: Problems) -> None:
        self._root = root
        self._problems = problems
        self._beginning: tuple[str, ...] | None = None
        self._moved = self._hidden = 0

    def read(self, file: Path) -> list[Path]:
        """Images of a list; paths with `./` are relative to the list, others to the data folder.

        Raises:
            InputError: the list can't be read.
        """
        images = []
        for number, line in enumerate(read_lines(file), 1):
            name = line.strip()
            if name and self._is_added_by_macos(name):
                self._hidden += 1
            elif name:
                with self._problems.skip_broken_image():
                    images.append(self._image(file, name, f"{file}, line {number}"))
        return images

    def begins_with_image(self, file: Path) -> bool:
        """Whether one of the first lines of a file names an image."""
        try:
            names = [line.strip() for line in read_lines(file)[:RECOGNISED_BY] if line.strip()]
        except InputError:
            return False
        for name in names:
            with suppress(InputError):
                self._image(file, name, str(file))
                return True
        return False

    def notes(self) -> list[str]:
        """A phrase for each kind of repair so far."""
        notes = []
        if self._moved and self._beginning:
            beginning = quoted("/".join(self._beginning))
            notes.append(f"{self._moved} listed paths read in the data folder, without {beginning}")
        elif self._moved:
            notes.append(f"{self._moved} listed paths read relative to the data folder, with '/'")
        if self._hidden:
            notes.append(f"{self._hidden} listed files of macOS ignored")
        return notes

    def _image(self, file: Path, name: str, where: str) -> Path:
        image = absolute((file.parent if name.startswith("./") else self._root) / name)
        inside = image.is_relative_to(self._root)
        if inside and is_file(image):
            return image
        moved = None if exists(image) else self._find(name)
        if moved is not None:
            self._moved += 1
            return moved
        if not inside:
            raise InputError(f"{where}: {quoted(name)} is outside the data set {self._root}.")
        raise InputError(f"{where}: the image {image} does not exist.")

    def _find(self, name: str) -> Path | None:
        """The image that a path of another machine means."""
        ends = list(ends_of(name, self._root))
        for end in ends:
            beginning = ends[0][: len(ends[0]) - len(end)]
            path = self._root.joinpath(*end)
            if self._beginning in (None, beginning) and is_file(path):
                self._beginning = beginning
                return path
        return None

    @staticmethod
    def _is_added_by_macos(name: str) -> bool:
        path = PurePosixPath(name.replace("\\", "/"))
        return path.name.startswith("._") or "__MACOSX" in path.parts


def _leads_inside(name: str, root: Path) -> bool:
    """Whether an absolute path is one of the data folder, so that it is of this machine."""
    return PurePosixPath(name).is_absolute() and absolute(Path(name)).is_relative_to(root)
