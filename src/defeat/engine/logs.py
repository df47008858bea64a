"""What a run writes while it goes on: `metrics.jsonl`, checkpoints, and what the terminal shows."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor

from defeat.engine.guards import require_finite_weights
from defeat.engine.module import DetectionModule
from defeat.files import WriteError, write_atomically


class JsonLinesLogger(Logger):
    """Appends a line of JSON for each logged step or evaluation.

    Attributes:
        path: the file.
        quiet: whether to write nothing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.quiet = path, False
        self._last: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "jsonl"

    @property
    def version(self) -> str:
        """Version of the log."""
        return "1"

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        """The file."""
        return self.path

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line."""
        values = {name: _number(value) for name, value in metrics.items() if name not in ("epoch", "AP")}
        if not values or self.quiet:
            return
        line = {"step": step, "epoch": metrics.get("epoch"), **values}
        if line == self._last:  # it was needed before a checkpoint
            return
        self._last = line
        text = json.dumps(line) + "\n"
        try:
            with self.path.open("a") as file:
                file.write(text)
        except OSError as error:
            raise WriteError(self.path, len(text), error) from error

    def size(self) -> int:
        """Bytes of the lines so far, which are safe on the disk then."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def cut(self, size: int) -> None:
        """Remove the lines behind the first bytes, which come again, and one that a crash tore."""
        if self.path.exists():
            kept = self.path.read_bytes()[:size]
            write_atomically(self.path, kept[: kept.rfind(b"\n") + 1])

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the settings are in `config.yaml`."""


def _number(value: float | Tensor) -> float:
    return float(f"{float(value):.7g}")


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The user stopped the run; a checkpoint was written."""


class Checkpoint(Callback):
    """Writes `checkpoints/last.ckpt` and the student's files.

    That is before and after every evaluation, after every epoch, every so many steps, and where a user stops.

    Args:
        folder: the run directory.
        every: steps between two checkpoints within an epoch; 0 for none.
        lines: what is cut off behind the checkpoint from which a run goes on.

    Attributes:
        stop: whether the user wants the run to stop.
        signal: how he said so.
    """

    def __init__(self, folder: Path, every: int = 0, lines: JsonLinesLogger | None = None) -> None:
        self.folder, self.every, self.lines = folder, every, lines
        self.path = folder / "checkpoints" / "last.ckpt"
        self.stop, self.signal = False, signal.SIGINT
        self._before_evaluation = False

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Save or stop between two steps, where weights and counters belong together."""
        if trainer.is_last_batch:  # what comes next saves and stops
            return
        stop = self._is_stopped(trainer)
        if stop or (self.every and trainer.global_step % self.every == 0):
            trainer._logger_connector.update_train_step_metrics()  # else this step's line would be missing
            self._save(trainer, module)
        if stop:
            raise Interrupted

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Save before an evaluation: it may take long, or more memory than there is."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._before_evaluation = True
            self._save(trainer, module)
            self._before_evaluation = False
            self._stop_here(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *arguments: Any, **more: Any) -> None:
        """Stop; the checkpoint from before the evaluation stays. Processes have different numbers of batches."""
        if trainer.world_size == 1:
            self._stop_here(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write a checkpoint."""
        self._save(trainer, module)
        self._stop_here(trainer)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say where the log stands, and let a run that goes on from before an evaluation begin with that."""
        if self.lines is not None and trainer.is_global_zero:
            checkpoint["log_bytes"] = self.lines.size()
        if self._before_evaluation:
            # What Lightning takes for an evaluation that was left in its first batch, and begins again.
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"] = begun

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Cut the log off behind the checkpoint."""
        if self.lines is not None and trainer.is_global_zero and "log_bytes" in checkpoint:
            self.lines.cut(checkpoint["log_bytes"])

    def _is_stopped(self, trainer: Trainer) -> bool:
        """Whether one process was told to stop, which stops all at the same step."""
        return trainer.strategy.reduce_boolean_decision(self.stop, all=False)

    def _stop_here(self, trainer: Trainer) -> None:
        if self._is_stopped(trainer):
            raise Interrupted

    def _save(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, DetectionModule)
        require_finite_weights(module, trainer.global_step)
        trainer.save_checkpoint(self.path)
        if trainer.is_global_zero:
            module.save_student(self.folder)

    @contextmanager
    def interruptible(self, console: Console) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM finish the step and write a checkpoint; a further Ctrl-C ends the process."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.stop and number == signal.SIGINT:
                console.show_cursor()
                os._exit(128 + number)  # no file is ever half written
            if not self.stop:
                self.stop, self.signal = True, signal.Signals(number)

        try:
            before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread, where no signal arrives
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class EpochLines(Callback):
    """One line an epoch, for terminals that can't show a progress bar and for log files."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began, self.first_step = 0.0, 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock; a resumed run counts its own steps only."""
        self.began, self.first_step = perf_counter(), trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Say where the run stands."""
        if not trainer.is_global_zero:
            return
        assert isinstance(module, DetectionModule)
        loss = float(trainer.callback_metrics.get("train/loss", 0))
        text = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {loss:.3f}"
        fresh = module.last_evaluation if module.evaluated_step == trainer.global_step else None
        if fresh is not None and (accuracy := fresh.metrics["AP"]) is not None:
            text += f"  AP {accuracy:.1f}"
        step, steps = trainer.global_step, int(trainer.estimated_stepping_batches)
        left = (perf_counter() - self.began) / max(1, step - self.first_step) * (steps - step)
        self.console.print(f"{text}  {timedelta(seconds=round(left))} left", highlight=False)


def progress_callback(console: Console) -> Callback:
    """A progress bar with the time left, or a line an epoch where the output is not a terminal."""
    return RichProgressBar(leave=True) if console.is_terminal else EpochLines(console)
