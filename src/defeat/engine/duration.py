"""Notice about the duration of long trainings on CPU, and ways to shorten them."""

from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from defeat.engine.experiment import Experiment
from defeat.engine.module import DetectionModule

STEPS = 10  # measured steps
LONG = 600.0  # seconds
SMALL_SIZE = 160  # pixels; at this size, a detector trains on CPU in minutes
SMALL_BACKBONE = "tf_efficientnet_lite0"
WAITS = 0.25  # fraction of a step spent waiting for images, above which more workers help


class LongRunNotice(Callback):
    """After a few steps on CPU, reports the expected duration of the training if it is more than ten minutes.

    Attributes:
        done: whether the steps were measured.
    """

    def __init__(self) -> None:
        self.done = False
        self._ends: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Measure the step; report once."""
        if self.done:
            return
        assert isinstance(module, DetectionModule)
        self._ends.append(perf_counter())
        if len(self._ends) <= STEPS:
            return
        self.done = True
        if module.device.type != "cpu":
            return
        step = median(later - earlier for earlier, later in pairwise(self._ends))
        remaining = (module.progress.steps - trainer.global_step) * step
        if remaining > LONG:
            waiting = max(0.0, 1 - median(module.step_seconds[-STEPS:]) / step)
            module.notify(duration_message(remaining, module.experiment, waiting))


def duration_message(seconds: float, experiment: Experiment, waiting: float = 0.0) -> str:
    """Expected duration of a training, and options that would shorten it.

    Args:
        seconds: remaining duration, without evaluations.
        experiment: the experiment.
        waiting: fraction of a step, 0..1, in which the detector waits for images.
    """
    options = []
    if (size := experiment.student.info.size) > SMALL_SIZE:
        options.append(f"--size {max(SMALL_SIZE, size // 2 // 32 * 32)}")
    if experiment.student.spec.backbone != SMALL_BACKBONE:
        options.append(f"--backbone {SMALL_BACKBONE}")
    if waiting > WAITS:
        options.append(f"--workers {2 * experiment.workers + 1}")
    if experiment.distillation is not None and experiment.distillation.cache is None:
        options.append("--cache-teacher FOLDER")
    options.append("fewer --epochs")
    minutes = round(seconds / 60)
    duration = f"{minutes} minutes" if minutes < 120 else f"{seconds / 3600:.1f} hours"
    return f"This training will take about {duration} on this CPU; faster: {', '.join(options)}, a GPU."
