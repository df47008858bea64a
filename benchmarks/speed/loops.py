"""Single steps of whole runs of `defeat train` and `defeat distill`."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from benchmarks.speed.bare import Step
from benchmarks.speed.work import Work, training_images
from defeat.assembly.run import run
from defeat.assembly.settings import TrainSettings
from defeat.data import DataSource
from defeat.engine.module import DetectionModule

WAIT = 300.0  # seconds until a step times out


class Enough(Exception):  # noqa: N818 (not an error)
    """Ends a run."""


class Stepper:
    """A run in a separate thread that waits after each step until the next one is requested.

    A timing spans from the end of one step to the end of the next, including data loading and the training loop.
    """

    current = threading.local()

    def __init__(self, settings: TrainSettings) -> None:
        self._go, self._done = threading.Event(), threading.Event()
        self._enough, self._error = False, None
        self._thread = threading.Thread(target=self._run, args=(settings,), daemon=True)

    def step(self) -> None:
        """Run one step; the first call starts the run."""
        self._done.clear()
        if self._thread.is_alive():
            self._go.set()
        else:
            self._thread.start()
        if not self._done.wait(WAIT):
            raise TimeoutError("The run did not finish a step.")
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """End the run, if it was started."""
        self._enough = True
        self._go.set()
        if self._thread.is_alive():
            self._thread.join(WAIT)

    def pause(self) -> None:
        """Wait for the next request; called by the run after each step."""
        self._done.set()
        self._go.wait()
        self._go.clear()
        if self._enough:
            raise Enough

    def _run(self, settings: TrainSettings) -> None:
        self.current.stepper = self
        try:
            run(settings, Console(quiet=True))
        except Enough:
            return
        except BaseException as error:
            self._error = error
            self._done.set()


@contextmanager
def stepping(kept: bool) -> Iterator[None]:
    """Make runs in steppers pause after each step; with kept images they decode each image once."""
    end_of_step, open_split = DetectionModule.on_train_batch_end, DataSource.open

    def pausing(module: DetectionModule, *arguments: Any) -> None:
        end_of_step(module, *arguments)
        Stepper.current.stepper.pause()

    def opened(source: DataSource, split: str, *arguments: Any) -> Any:
        return training_images(source.data) if split == "train" else open_split(source, split, *arguments)

    with patch.object(DetectionModule, "on_train_batch_end", pausing):
        if not kept:
            yield
            return
        with patch.object(DataSource, "open", opened):
            yield


def run_step(work: Work, folder: Path, ends: ExitStack, distill: bool = False, **options: Any) -> Step:
    """A step of a run of `train` or `distill`; `ends` ends the run."""
    teacher = work.save_teacher(folder / "teacher") if distill else None
    stepper = Stepper(work.settings(folder / "run", teacher, **options))
    ends.callback(stepper.end)
    return stepper.step
