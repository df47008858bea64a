"""The lock of a run directory: one process at a time writes into it."""

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
    """Another process writes into the folder."""


class RunLock:
    """A file that names the process which writes into a folder; it goes with the process that wrote it.

    A process that was killed leaves the file: it is stale where no process of this host has its number and its time of
    start, and is then taken over. Whether a process of another host still runs can't be known from here.

    Args:
        folder: the folder; it is made where it is missing.

    Attributes:
        path: the file.
        held: whether this object holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.held = folder / ".lock", False

    def take(self, notify: Callable[[str], None] = lambda _: None) -> bool:
        """Take the lock.

        Args:
            notify: called with a sentence about a stale lock that was taken over.

        Returns:
            Whether a process that is gone left its lock.

        Raises:
            LockedError: another process holds it.
            InputError: the folder can't be written.
        """
        if sys.platform == "win32":  # has no such locks
            return False
        left = self.path.exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self._opened()
        except OSError as error:
            raise InputError(f"{self.path.parent} can't be written ({error.strerror}).") from error
        try:
            before = _content(os.pread(file, 4096, 0))
            self._require_stale(before)
            if before:
                notify(f"The process {before['pid']} that wrote into {self.path.parent} is gone: going on without it.")
            own = {"pid": os.getpid(), "host": socket.gethostname(), "started": started(os.getpid())}
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(own).encode(), 0)
        except OSError as error:
            raise InputError(f"{self.path} can't be written ({error.strerror}).") from error
        finally:
            os.close(file)
        self.held = True
        return left

    def release(self) -> None:
        """Give the lock back, and remove the folder if nothing else came into it."""
        if not self.held:
            return
        self.held = False
        self.path.unlink(missing_ok=True)
        try:
            self.path.parent.rmdir()
        except OSError:  # not empty
            return

    def _opened(self) -> int:
        """The file, opened by nobody else at the same time: it is read and written as one."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if os.fstat(file).st_ino == self.path.stat().st_ino:
                    return file
            except FileNotFoundError:  # its owner has just removed it
                pass
            os.close(file)

    def _require_stale(self, content: dict[str, Any]) -> None:
        """Raise LockedError where the process that a lock names may still be there."""
        if not content:
            return
        pid, host, folder = content["pid"], content["host"], self.path.parent
        if host != socket.gethostname():
            raise LockedError(
                f"{folder} is written to by process {pid} on {host}; if that is gone, delete {self.path} and try again."
            )
        if is_running(pid, content["started"]):
            raise LockedError(f"{folder} is written to by process {pid} of this machine: wait for it, or stop it.")


def _content(text: bytes) -> dict[str, Any]:
    """What a lock says; nothing where it was torn, because its writer was killed at that very moment."""
    try:
        content = json.loads(text)
        found = {"pid": int(content["pid"]), "host": content["host"], "started": content["started"]}
        return found if found["pid"] > 0 else {}
    except (ValueError, TypeError, KeyError):
        return {}


def is_running(pid: int, since: int | None) -> bool:
    """Whether a process of this machine is still there.

    Args:
        pid: its number, which another process may have got since.
        since: when it was started, as `started` gave it.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is there, and somebody else's
        pass
    return started(pid) == since


def started(pid: int) -> int | None:
    """When a process was started, in ticks of the system; None where the system doesn't say or the process is dead."""
    try:
        # Behind the name, which may hold spaces and brackets: the state, and as the twentieth the time.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(rest[18])
