"""What a run will cost, from a few measured steps."""

import resource
from dataclasses import dataclass
from math import ceil
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from torch import Tensor

from defeat.data.loader import DetectionLoader
from defeat.detector.devices import wait_for
from defeat.engine.assembly import Parts, assemble, with_frozen_teacher
from defeat.engine.averaging import StudentAverage
from defeat.engine.datamodule import run_loader, run_steps
from defeat.engine.devices import training_device
from defeat.engine.gradients import Pulls, measure_pulls
from defeat.engine.optimisation import build_optimizer
from defeat.engine.settings import DistillSettings, TrainSettings
from defeat.engine.step import step_losses, total_loss
from defeat.engine.teacher_cache import cache_size, kept_parts
from defeat.types import Progress

STEPS = 3  # the first of them is a warm-up
IMAGES = 4
UNLABELLED = 16  # images without annotations that are looked at
FLOAT_BYTES = 4
LOG_BYTES = 400  # a line of metrics.jsonl, and as much in TensorBoard's events


@dataclass(frozen=True)
class MeasuredSteps:
    """A few steps of training, on the device that the run would use.

    Attributes:
        seconds: median of a step, data loading included.
        memory_bytes: most memory that the process held at any time: of the GPU, or of the machine without one.
        losses: every loss in the last of these steps by name, weighted; distillation is past its warm-up.
        pulls: gradient of each term of distillation over that of the detector's own losses (see `measure_pulls`).
        together: the same of all terms together.
    """

    seconds: float
    memory_bytes: int
    losses: dict[str, float]
    pulls: dict[str, float]
    together: float


@dataclass(frozen=True)
class RunCost:
    """The predicted cost of a run on this machine, on the device that it would use.

    Attributes:
        step_seconds: a training step, data loading included.
        image_seconds: detecting the objects of an evaluation image.
        steps: optimiser steps of the run.
        epoch_steps: optimiser steps of an epoch.
        evaluated: images that are looked at in all evaluations.
        disk_bytes: what the run directory will hold.
        measured: the steps behind it.
    """

    step_seconds: float
    image_seconds: float
    steps: int
    epoch_steps: int
    evaluated: int
    disk_bytes: int
    measured: MeasuredSteps

    @property
    def seconds(self) -> float:
        """The whole run."""
        return self.steps * self.step_seconds + self.evaluated * self.image_seconds


def estimate_run(settings: TrainSettings, console: Console) -> RunCost:
    """Take a few steps, detect on a few images, and write nothing.

    Args:
        settings: of the run.
        console: where to say what was found in the data.

    Raises:
        InputError: something about the settings, the data or the pair is not valid.
    """
    parts = assemble(settings, console, UNLABELLED)
    settings = parts.choices.applied(settings)
    return estimate_parts(settings, with_frozen_teacher(parts, settings))


def estimate_parts(settings: TrainSettings, parts: Parts) -> RunCost:
    """The same for parts that are there already, with a frozen teacher; running statistics change, weights don't."""
    device = training_device(settings)
    for module in (parts.student, parts.teacher, parts.method):
        if module is not None:
            module.to(device)
    processes = settings.nodes * (settings.devices if settings.devices != "auto" else 1)
    per_epoch = len(_loader(parts, settings, processes))
    steps = run_steps(settings, per_epoch)
    evaluations = settings.epochs // settings.eval_every if settings.eval_every else 1
    measured = _measured_steps(parts, settings)
    return RunCost(
        step_seconds=measured.seconds,
        image_seconds=_image_seconds(parts),
        steps=steps,
        epoch_steps=per_epoch,
        evaluated=ceil(max(1, evaluations) * len(parts.evaluation) / processes),
        disk_bytes=_disk_bytes(parts, settings, steps // settings.log_every) + _cache_bytes(parts, settings),
        measured=measured,
    )


def _measured_steps(parts: Parts, settings: TrainSettings) -> MeasuredSteps:
    optimizer = build_optimizer(parts.student, parts.method, settings)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the weights stay as they are
    average = None if settings.ema is None else StudentAverage(parts.student, settings.ema)
    past_warm_up = Progress(step=1, steps=1, epoch=0, epochs=settings.epochs)
    parts.student.train()
    times: list[float] = []
    losses: dict[str, Tensor] = {}
    pulls = Pulls({}, 0.0)
    begin = perf_counter()
    for step, batch in zip(range(STEPS), _loader(parts, settings), strict=False):
        prepared = parts.student.prepare(*batch)
        output, terms = step_losses(parts.student, prepared, past_warm_up, parts.method, parts.teacher)
        losses = output.losses | terms
        if terms and step == 0:  # which is not timed
            pulls = measure_pulls(terms, output)
        optimizer.zero_grad()
        total_loss(losses).backward()
        optimizer.step()
        if average is not None:
            average.update_parameters(parts.student)
        wait_for(parts.student.device)
        times.append(perf_counter() - begin)
        begin = perf_counter()
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    return MeasuredSteps(median(times[1:] or times), _peak_memory(parts), values, pulls.terms, pulls.together)


def _loader(parts: Parts, settings: TrainSettings, processes: int = 1) -> DetectionLoader:
    return run_loader(settings, parts.training, parts.unlabelled, world_size=processes)


def _peak_memory(parts: Parts) -> int:
    device = parts.student.device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # which Linux counts in kilobytes


def _image_seconds(parts: Parts) -> float:
    parts.student.eval()
    times = []
    for index in range(min(IMAGES, len(parts.evaluation))):
        begin = perf_counter()
        image, _ = parts.evaluation[index]
        parts.student.predict([image])
        times.append(perf_counter() - begin)
    return median(times) if times else 0.0


def _cache_bytes(parts: Parts, settings: TrainSettings) -> int:
    """The teacher's maps of every view of every image, where they are kept."""
    if not isinstance(settings, DistillSettings) or settings.cache_teacher is None:
        return 0
    assert parts.teacher is not None
    assert parts.method is not None
    datasets = [one for one in (parts.training, parts.unlabelled) if one is not None]
    assert settings.augmentation.views is not None
    size = cache_size(parts.teacher, kept_parts(parts.method), datasets, settings.augmentation.views).bytes
    return min(size, settings.cache_bytes if settings.cache_bytes is not None else size)


def _disk_bytes(parts: Parts, settings: TrainSettings, lines: int) -> int:
    """The student's weights, a checkpoint of everything that is kept, logs and detections."""
    student = sum(weight.numel() for weight in parts.student.parameters())
    method = 0 if parts.method is None else sum(weight.numel() for weight in parts.method.parameters())
    detections = len(parts.evaluation) * 100 * 6 * FLOAT_BYTES
    moments = 1 if settings.optimizer == "sgd" else 2  # numbers that the optimiser keeps of each weight
    weights = FLOAT_BYTES * (student + (1 + moments) * (student + method))
    if settings.ema is not None:
        weights += FLOAT_BYTES * student
    if settings.keep == "best":
        weights += FLOAT_BYTES * student + detections
    return weights + detections + 2 * lines * LOG_BYTES
