"""What a run writes while it goes on: `metrics.jsonl`, checkpoints, and what the terminal shows."""

import json
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
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor

from defeat.detector import save_model
from defeat.engine.guards import require_finite_weights
from defeat.engine.module import DetectionModule


class JsonLinesLogger(Logger):
    """Appends a line of JSON for each logged step or evaluation."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

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
        if not values:
            return
        line = {"step": step, "epoch": metrics.get("epoch"), **values}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the settings are in `config.yaml`."""


def _number(value: float | Tensor) -> float:
    return float(f"{float(value):.7g}")


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The user stopped the run; a checkpoint was written."""


class Checkpoint(Callback):
    """Writes `checkpoints/last.ckpt` and the student's files after every epoch, and at the step where a user stops."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "checkpoints" / "last.ckpt"
        self.stop = False

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Stop between two steps, where weights and counters belong together."""
        # One process that was told to stop stops all, at the same step.
        if trainer.strategy.reduce_boolean_decision(self.stop, all=False):
            trainer._logger_connector.update_train_step_metrics()  # else this step's line would be missing
            self._save(trainer, module)
            raise Interrupted

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write a checkpoint."""
        self._save(trainer, module)

    def _save(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, DetectionModule)
        require_finite_weights(module, trainer.global_step)
        beside = self.path.with_suffix(".part")
        trainer.save_checkpoint(beside)
        if trainer.is_global_zero:
            beside.replace(self.path)
            save_model(module.student, self.folder)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let the first Ctrl-C finish the step and write a checkpoint; a second one stops at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True

        try:
            before = signal.signal(signal.SIGINT, handle)
        except ValueError:  # not in the main thread, where no signal arrives
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


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
