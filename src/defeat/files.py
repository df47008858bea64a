"""Files that are written whole or not at all."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from shutil import disk_usage

from defeat.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what the system says where there is no room


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old content or the new one, never half of it.

    Raises:
        WriteError: it can't be written; what was there before stays.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise WriteError(path, len(content), error) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


class WriteError(InputError):
    """A file can't be written: the message names it, the reason, and where the disk is full, the bytes that it needs.

    Args:
        path: the file.
        needed: bytes that had to be written.
        error: what the system said.

    Attributes:
        reason: what the system said, in words.
    """

    def __init__(self, path: Path, needed: int, error: OSError) -> None:
        self.reason = error.strerror or str(error)
        room = ""
        if error.errno in FULL:
            with suppress(OSError):
                room = f", {disk_usage(path.parent).free:,} are free"
            room = f": it needs {needed:,} bytes{room}. Make room"
        super().__init__(f"{path} can't be written ({self.reason}){room}.")


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed left half-written, from a folder that no other process writes to."""
    for path in folder.glob(".*.[0-9]*"):
        if path.suffix[1:].isdigit():
            path.unlink(missing_ok=True)


def write_into(folder: Path, name: str, content: bytes) -> None:
    """Write a file into a folder, which is made where it is missing; as `write_atomically`.

    Raises:
        InputError: the folder or the file can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} can't be written ({error.strerror}).") from error
    write_atomically(folder / name, content)
