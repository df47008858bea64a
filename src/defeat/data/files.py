"""Find and read the files of a data set, which are untrusted input."""

import gc
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from defeat.errors import InputError

# The last three need a decoder that not every installation has, see `images.missing_decoder`.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif")
_MACOS_FOLDER = "__MACOSX"


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file, without its byte order mark."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8: {error}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a UTF-8 file; `str.splitlines` would also split at characters that file names may contain."""
    return read_text(path).split("\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file in UTF-8; NaN and Infinity, which Python accepts, are left to the reader."""
    text = read_text(path)
    try:
        with paused_garbage_collection():
            return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for a number with thousands of digits
        raise InputError(f"{path} is not well-formed JSON: {error}.") from error


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Pause the search for reference cycles, which JSON has none of.

    It runs again and again while millions of lists and objects are made, and takes most of the time of a fast parser.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def ends_of_file(path: Path, size: int) -> bytes:
    """The first and the last `size` bytes of a file, to recognise its format by; empty if it can't be read."""
    if not is_file(path):  # opening a pipe would wait
        return b""
    try:
        with path.open("rb") as file:
            beginning = file.read(size)
            file.seek(max(size, os.fstat(file.fileno()).st_size - size))
            return beginning + file.read(size)
    except (OSError, ValueError):
        return b""


def walk(root: Path) -> Iterable[Path]:
    """All files below a folder in the order of their names, without hidden ones and what macOS adds to archives."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        paths = (Path(folder, name) for name in sorted(names) if not is_hidden(name))
        yield from (path for path in paths if path.is_file())  # not pipes and devices, which would be waited for


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of a data set's: hidden, or `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def hidden_below(folder: Path, path: Path) -> bool:
    """Whether a file below a folder is hidden, or in a hidden folder."""
    return any(map(is_hidden, path.relative_to(folder).parts))


def is_file(path: str | Path) -> bool:
    """Whether a file exists; false for an invalid name."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # too long, or contains a zero byte
        return False


def exists(path: Path) -> bool:
    """Whether a file or folder exists; false for an invalid name."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or contains a zero byte
        return False


def leaves_folder(name: str) -> bool:
    """Whether a file name in an annotation is absolute or contains `..`, by the rules of POSIX or Windows."""
    windows = PureWindowsPath(name)
    return PurePosixPath(name).is_absolute() or bool(windows.anchor) or ".." in windows.parts


def absolute(path: Path) -> Path:
    """Absolute path without `..`; links are not resolved, so that linked folders remain part of a data set."""
    return Path(os.path.abspath(path))


def is_image(path: Path) -> bool:
    """Whether a path has the suffix of an image, and is not one of the files that macOS adds to archives."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_macos_file(path)


def is_macos_file(path: Path) -> bool:
    """Whether macOS added a file to a folder or an archive: `._photo.jpg`, `.DS_Store`, or anything in `__MACOSX`."""
    return path.name.startswith("._") or path.name == ".DS_Store" or _MACOS_FOLDER in path.parts


def find_image(folder: Path, stem: str, preferred_suffix: str) -> Path | None:
    """Find the image `stem` in `folder` with any suffix; the preferred suffix has precedence."""
    for suffix in (preferred_suffix, *IMAGE_SUFFIXES):
        for variant in dict.fromkeys((suffix, suffix.lower(), suffix.upper())):
            # Not with_suffix: a stem may contain dots.
            path = folder / f"{stem}{variant}"
            if variant and is_file(path):
                return path
    return None


def unknown_split(path: str | Path, split: str, valid: list[str]) -> InputError:
    """Build the error for an unknown split."""
    return InputError(f"{path} has no split {split!r}; it has: {', '.join(valid) or 'none'}.")
