"""Atomic writes: a file is written completely or not at all."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from shutil import disk_usage

from defeat.errors import InputError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader sees either the old or the new content, never a part of it.

    Raises:
        WriteError: the file can't be written; the old content is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise WriteError(path, len(content), error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


class WriteError(InputError):
    """A file can't be written: the message names the file, the reason, and for a full disk the bytes it needs.

    Args:
        path: the file.
        needed: size of the content in bytes.
        error: the error of the operating system.

    Attributes:
        reason: text of the system's error.
    """

    def __init__(self, path: Path, needed: int, error: OSError) -> None:
        self.reason = error.strerror or str(error)
        space = ""
        if error.errno in DISK_FULL:
            with suppress(OSError):
                space = f", {disk_usage(path.parent).free:,} are free"
            space = f": it needs {needed:,} bytes{space}. Make room"
        super().__init__(f"{path} can't be written ({self.reason}){space}.")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of a killed process from a folder that no other process writes to."""
    for path in folder.glob(".*.[0-9]*"):
        if path.suffix[1:].isdigit():
            path.unlink(missing_ok=True)


def write_into(folder: Path, name: str, content: bytes) -> None:
    """Create a folder if needed, and write a file into it with `write_atomically`.

    Raises:
        InputError: the folder or the file can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} can't be written ({error.strerror}).") from error
    write_atomically(folder / name, content)
