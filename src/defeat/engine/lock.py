"""Lock of a run directory, so that only one process writes into it."""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from defeat.errors import InputError

if sys.platform != "win32":
    import fcntl


class LockedError(InputError):
    """Another process uses the folder."""


class RunLock:
    """A lock file that identifies the process which writes into a folder.

    A killed process leaves its file: the lock is stale, and is taken over, if no process of this host has its id and
    its start time. Processes of other hosts can't be checked.

    Args:
        folder: the folder; it is created if it is missing.

    Attributes:
        path: the lock file.
        held: whether this object holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.held = folder / ".lock", False

    def take(self, notify: Callable[[str], None] = lambda _: None) -> bool:
        """Take the lock.

        Args:
            notify: called with a message about a stale lock that was taken over.

        Returns:
            Whether there was a stale lock.

        Raises:
            LockedError: another process holds it.
            InputError: the folder can't be written.
        """
        if sys.platform == "win32":  # has no such locks
            return False
        existed = self.path.exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self._open_locked()
        except OSError as error:
            raise InputError(f"{self.path.parent} can't be written ({error.strerror}).") from error
        try:
            owner = _owner(os.pread(file, 4096, 0))
            self._require_stale(owner)
            if owner:
                notify(f"The process {owner['pid']} that used {self.path.parent} has ended: its lock is taken over.")
            this_process = {"pid": os.getpid(), "host": socket.gethostname(), "started": start_time(os.getpid())}
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(this_process).encode(), 0)
        except OSError as error:
            raise InputError(f"{self.path} can't be written ({error.strerror}).") from error
        finally:
            os.close(file)
        self.held = True
        return existed

    def owner(self) -> tuple[str, int] | None:
        """Host and id of the process in the lock file, whether or not it still runs; None without one."""
        try:
            owner = _owner(self.path.read_bytes())
        except OSError:
            return None
        return (owner["host"], owner["pid"]) if owner else None

    def release(self) -> None:
        """Release the lock, and remove the folder if it is empty."""
        if not self.held:
            return
        self.held = False
        self.path.unlink(missing_ok=True)
        try:
            self.path.parent.rmdir()
        except OSError:  # not empty
            return

    def _open_locked(self) -> int:
        """Open the file under an exclusive lock, so that reading and writing it is one operation."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if os.fstat(file).st_ino == self.path.stat().st_ino:
                    return file
            except FileNotFoundError:  # its owner has just removed it
                pass
            os.close(file)

    def _require_stale(self, owner: dict[str, Any]) -> None:
        """Raise LockedError if the process that owns the lock may still run."""
        if not owner:
            return
        pid, host, folder = owner["pid"], owner["host"], self.path.parent
        if host != socket.gethostname():
            raise LockedError(
                f"{folder} is used by process {pid} on {host}; if it has ended, delete {self.path} and try again."
            )
        if is_running(pid, owner["started"]):
            raise LockedError(f"{folder} is used by process {pid} of this machine: wait for it, or stop it.")


def _owner(text: bytes) -> dict[str, Any]:
    """The process in a lock file; empty if the file is incomplete, because its writer was killed."""
    try:
        content = json.loads(text)
        owner = {"pid": int(content["pid"]), "host": content["host"], "started": content["started"]}
        return owner if owner["pid"] > 0 else {}
    except (ValueError, TypeError, KeyError):
        return {}


def is_running(pid: int, since: int | None) -> bool:
    """Whether a process of this machine still runs.

    Args:
        pid: its id, which another process may have got in the meantime.
        since: its `start_time`.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it exists and belongs to another user
        pass
    return start_time(pid) == since


def start_time(pid: int) -> int | None:
    """Start time of a process in system ticks; None if it is unknown or the process is dead."""
    try:
        # The fields after the name, which may contain spaces and brackets: the state first, the start time as 20th.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(rest[18])
