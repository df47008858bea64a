"""Output of a run during training: `metrics.jsonl`, checkpoints, and progress in the terminal."""

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
    """Appends a line of JSON for each logged step and evaluation.

    Attributes:
        path: the file.
        quiet: whether logging is disabled.
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
        if line == self._last:  # already written before a checkpoint
            return
        self._last = line
        text = json.dumps(line) + "\n"
        try:
            with self.path.open("a") as file:
                file.write(text)
        except OSError as error:
            raise WriteError(self.path, len(text), error) from error

    def size(self) -> int:
        """Size of the file in bytes, after it is written to disk."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def truncate(self, size: int) -> None:
        """Remove what follows the first bytes, and an incomplete line at their end."""
        if self.path.exists():
            content = self.path.read_bytes()[:size]
            write_atomically(self.path, content[: content.rfind(b"\n") + 1])

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the settings are in `config.yaml`."""


def _number(value: float | Tensor) -> float:
    return float(f"{float(value):.7g}")


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The user stopped the run; a checkpoint was written."""


class Checkpoint(Callback):
    """Writes `checkpoints/last.ckpt` and the student's files.

    A checkpoint is written before and after every evaluation, after every epoch, every `every` steps, and when the user
    stops the run.

    Args:
        folder: the run directory.
        every: steps between two checkpoints within an epoch; 0 for none.
        metrics_log: the log, which is truncated to its size at the checkpoint when a run is resumed.

    Attributes:
        stop: whether the user stops the run.
        signal: the signal of the user.
    """

    def __init__(self, folder: Path, every: int = 0, metrics_log: JsonLinesLogger | None = None) -> None:
        self.folder, self.every, self.metrics_log = folder, every, metrics_log
        self.path = folder / "checkpoints" / "last.ckpt"
        self.stop, self.signal = False, signal.SIGINT
        self._before_evaluation = False

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Save or stop between two steps, when weights and counters are consistent."""
        if trainer.is_last_batch:  # the end of the epoch saves and stops
            return
        if isinstance(module, DetectionModule) and not module.ends_step(index):
            return
        stop = self._is_stopped(trainer)
        if stop or (self.every and trainer.global_step % self.every == 0):
            trainer._logger_connector.update_train_step_metrics()  # otherwise this step's line would be missing
            self._save(trainer, module)
        if stop:
            raise Interrupted

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Save before an evaluation, which may take long or run out of memory."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._before_evaluation = True
            self._save(trainer, module)
            self._before_evaluation = False
            self._stop_here(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *arguments: Any, **keywords: Any) -> None:
        """Stop, with the checkpoint from before the evaluation."""
        if trainer.world_size == 1:  # several processes may have different numbers of batches
            self._stop_here(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write a checkpoint."""
        self._save(trainer, module)
        self._stop_here(trainer)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the size of the log; a run resumed from before an evaluation starts with the evaluation."""
        if self.metrics_log is not None and trainer.is_global_zero:
            checkpoint["log_bytes"] = self.metrics_log.size()
        if self._before_evaluation:
            # Lightning regards this as an evaluation that was interrupted in its first batch, and restarts it.
            interrupted = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"] = interrupted

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Truncate the log to its size at the checkpoint."""
        if self.metrics_log is not None and trainer.is_global_zero and "log_bytes" in checkpoint:
            self.metrics_log.truncate(checkpoint["log_bytes"])

    def _is_stopped(self, trainer: Trainer) -> bool:
        """Whether any process got a signal to stop; all processes stop at the same step."""
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
        """Let the first Ctrl-C or SIGTERM finish the step and write a checkpoint; a second Ctrl-C ends the process."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.stop and number == signal.SIGINT:
                console.show_cursor()
                os._exit(128 + number)  # files are written atomically, so none is incomplete
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
    """One line per epoch, for terminals without progress bars and for log files."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began, self.first_step = 0.0, 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start timing; a resumed run counts only its own steps."""
        self.began, self.first_step = perf_counter(), trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Print epoch, loss, AP and remaining time."""
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
    """A progress bar with the remaining time, or a line per epoch if the output is not a terminal."""
    return RichProgressBar(leave=True) if console.is_terminal else EpochLines(console)
