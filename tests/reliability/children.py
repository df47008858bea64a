"""Runs in child processes, which are killed at a chosen event.

An event is anything that changes the disk or the run: a file is opened for writing, half written, renamed or removed,
a step or an evaluation advances. Events are counted, so that a kill can be repeated at the same moment.
"""

import json
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from defeat.engine.logs import Checkpoint
from defeat.engine.module import DetectionModule
from tests.engine.tiny_runs import lines, results, weights

IN_A_RUN = {
    DetectionModule: (
        "on_train_start",
        "on_train_batch_start",
        "training_step",
        "on_after_backward",
        "on_train_batch_end",
        "validation_step",
        "on_validation_epoch_end",
    ),
    Checkpoint: ("on_train_batch_end", "on_validation_start", "on_validation_batch_end", "on_train_epoch_end"),
}


@dataclass
class Events:
    """Counts the events of a process, and kills it at one of them.

    Attributes:
        folder: where files are counted.
        kill_at: number of the fatal event, from 1; None for none.
        kind: only events of this kind count; None for all.
        seen: the counted events.
    """

    folder: Path
    kill_at: int | None = None
    kind: str | None = None
    seen: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Start counting in this process, but not in its children."""
        self.process = os.getpid()
        sys.addaudithook(self._audit)
        sync = os.fsync

        def synced(number: int) -> None:
            sync(number)
            path = Path(f"/proc/self/fd/{number}").readlink()
            if self.process == os.getpid() and is_temporary(path):
                self.happen(f"half {kind_of(path)}", lambda: os.ftruncate(number, os.fstat(number).st_size // 2))

        os.fsync = synced
        for owner, names in IN_A_RUN.items():
            for name in names:
                self._wrap(owner, name)

    def happen(self, kind: str, worse: Callable[[], Any] = lambda: None) -> None:
        """Count an event; `worse` damages files before the kill."""
        if self.kind in (None, kind):
            self.seen.append(kind)
            if len(self.seen) == self.kill_at:
                worse()
                os.kill(os.getpid(), signal.SIGKILL)

    def _wrap(self, owner: type, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            result = original(*arguments, **keywords)
            self.happen(name)
            return result

        setattr(owner, name, wrapped)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove") or self.process != os.getpid():
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        if not str(path).startswith(str(self.folder)):
            return
        path = Path(path)
        if event != "open":
            self.happen(f"{event[3:]} {kind_of(path)}")
            return
        mode, flags = arguments[1:]
        # The lock is the first file of a run: before it, there is nothing to resume.
        if flags & (os.O_WRONLY | os.O_RDWR) and not is_temporary(path) and path.name != ".lock":
            self.happen(f"open {kind_of(path)}", (lambda: tear(path)) if mode == "a" else lambda: None)


def is_temporary(path: Path) -> bool:
    """Whether a file is temporary, to be renamed when it is complete."""
    return path.name.startswith(".") and path.name.endswith(f".{os.getpid()}")


def tear(path: Path) -> None:
    """Half a line at the end of a log."""
    with open(path, "ab") as file:
        file.write(b'{"step": 1, "epo')


def kind_of(path: Path) -> str:
    """Name of a file without the parts that differ between processes."""
    return "cache" if "cache" in path.parts else path.name.removesuffix(f".{os.getpid()}").lstrip(".")


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        killed: whether it was killed.
        value: result of the job, or the traceback of its exception.
        seen: the counted events; empty for a killed child.
    """

    killed: bool
    value: Any = None
    seen: list[str] = field(default_factory=list)


def forked(
    job: Callable[[], Any], events: Events | None = None, meanwhile: Callable[[int], None] = lambda _: None
) -> Ended:
    """Run a job in a fork of this process, which has all modules imported already.

    Args:
        job: the job of the child.
        events: counts events in the child.
        meanwhile: called in the parent with the child's process id.

    Raises:
        AssertionError: the job raised an exception.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            if events is not None:
                events.watch()
            answer = (True, job(), events.seen if events is not None else [])
        except BaseException:
            answer = (False, traceback.format_exc(), [])
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    meanwhile(child)
    _, status = os.waitpid(child, 0)  # an answer is short enough to wait in the pipe
    with os.fdopen(reading, "rb") as pipe:
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return Ended(killed=True)
        good, value, seen = pickle.load(pipe)  # noqa: S301 (our own child's)
    assert good, value
    return Ended(False, value, seen)


def require_whole_files(folder: Path) -> None:
    """Check that all files are complete, except for the last line of the log."""
    for path in folder.rglob("*"):
        if path.name.startswith("."):  # incomplete, or the lock
            continue
        if path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())


def require_same(run: Path, whole: Path) -> None:
    """Check that the results of an interrupted run equal those of an uninterrupted one, bit for bit."""
    assert weights(run) == weights(whole)
    assert (run / "detections.safetensors").read_bytes() == (whole / "detections.safetensors").read_bytes()
    for name in ("metrics", "per_class", "steps", "images", "objects", "ended", "kept", "curve"):
        assert results(run)[name] == results(whole)[name], name
    assert lines(run) == lines(whole)
    left, right = (torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (run, whole))
    for name in (
        *("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"),
        *("first_steps", "watches", "selection"),
    ):
        assert equal(left[name], right[name]), name
    assert [path.name for path in run.rglob(".*")] == []  # no lock and no incomplete file


def equal(left: Any, right: Any) -> bool:
    """Whether nested lists, dicts and tensors are the same."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)
