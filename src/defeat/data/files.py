"""Finding and reading the files of a data set, which are untrusted input."""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from defeat.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without a byte order mark."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8: {error}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file; other than `str.splitlines`, which also breaks at what may stand in a file's name."""
    return read_text(path).split("\n")


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no system takes is none."""
    return exists(path) and path.is_file()


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; a name that no system takes is none."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def leaves_folder(name: str) -> bool:
    """Whether a file name of an annotation is absolute or climbs out of its folder, by the rules of any system."""
    windows = PureWindowsPath(name)
    return PurePosixPath(name).is_absolute() or bool(windows.anchor) or ".." in windows.parts


def absolute(path: Path) -> Path:
    """The absolute path without `..`; links are not followed, so that linked folders stay part of a data set."""
    return Path(os.path.abspath(path))


def is_image(path: Path) -> bool:
    """Whether the suffix is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def find_image(folder: Path, stem: str, preferred_suffix: str) -> Path | None:
    """The image `stem` in `folder`, whatever its suffix; the preferred one wins."""
    for suffix in (preferred_suffix, *IMAGE_SUFFIXES):
        for variant in dict.fromkeys((suffix, suffix.lower(), suffix.upper())):
            # Not with_suffix: a stem may hold dots of its own.
            path = folder / f"{stem}{variant}"
            if variant and is_file(path):
                return path
    return None


def unknown_split(path: str | Path, split: str, valid: list[str]) -> InputError:
    """The error for a split that the data set does not have."""
    return InputError(f"{path} has no split {split!r}; it has: {', '.join(valid) or 'none'}.")
