"""Says how long a training will take, where that is long and could be shorter."""

from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from defeat.engine.experiment import Experiment
from defeat.engine.module import DetectionModule

STEPS = 10  # that are measured
LONG = 600.0  # seconds
SMALL_SIZE = 160  # pixels, at which a detector learns on a CPU in minutes
SMALL_BACKBONE = "tf_efficientnet_lite0"
WAITS = 0.25  # share of a step that is spent on loading images, from which on more processes help


class LongRunNotice(Callback):
    """After a few steps on a CPU, says how long the training will take, if that is more than ten minutes.

    Attributes:
        done: whether everything was said.
    """

    def __init__(self) -> None:
        self.done = False
        self._ends: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Look at the clock, and speak once."""
        if self.done:
            return
        assert isinstance(module, DetectionModule)
        self._ends.append(perf_counter())
        if len(self._ends) <= STEPS:
            return
        self.done = True
        if module.device.type != "cpu":
            return
        whole = median(later - earlier for earlier, later in pairwise(self._ends))
        left = (module.progress.steps - trainer.global_step) * whole
        if left > LONG:
            waiting = max(0.0, 1 - median(module.step_seconds[-STEPS:]) / whole)
            module.notify(sentence(left, module.experiment, waiting))


def sentence(seconds: float, experiment: Experiment, waiting: float = 0.0) -> str:
    """How long a training takes, and what would make it shorter.

    Args:
        seconds: that it takes from here on, evaluations excluded.
        experiment: what is trained.
        waiting: share of a step, 0..1, in which the detector waits for images.
    """
    ways = []
    if (size := experiment.student.info.size) > SMALL_SIZE:
        ways.append(f"--size {max(SMALL_SIZE, size // 2 // 32 * 32)}")
    if experiment.student.spec.backbone != SMALL_BACKBONE:
        ways.append(f"--backbone {SMALL_BACKBONE}")
    if waiting > WAITS:
        ways.append(f"--workers {2 * experiment.workers + 1}")
    if experiment.distillation is not None and experiment.distillation.cache is None:
        ways.append("--cache-teacher FOLDER")
    ways.append("fewer --epochs")
    minutes = round(seconds / 60)
    length = f"{minutes} minutes" if minutes < 120 else f"{seconds / 3600:.1f} hours"
    return f"This training will take about {length} on this CPU; faster: {', '.join(ways)}, a GPU."
