"""What a run will cost, from a few measured steps."""

from dataclasses import dataclass
from math import ceil
from statistics import median
from time import perf_counter

import torch
from rich.console import Console

from defeat.data.loader import training_loader
from defeat.engine.assembly import Parts, assemble
from defeat.engine.inference import choose_device, wait_for
from defeat.engine.settings import TrainSettings
from defeat.engine.step import step_losses, total_loss
from defeat.types import Progress

STEPS = 3  # the first of them is a warm-up
IMAGES = 4
FLOAT_BYTES = 4
LOG_BYTES = 400  # a line of metrics.jsonl, and as much in TensorBoard's events


@dataclass(frozen=True)
class RunCost:
    """The predicted cost of a run on this machine, on the device that it would use.

    Attributes:
        step_seconds: a training step, data loading included.
        image_seconds: detecting the objects of an evaluation image.
        steps: optimiser steps of the run.
        evaluated: images that are looked at in all evaluations.
        disk_bytes: what the run directory will hold.
    """

    step_seconds: float
    image_seconds: float
    steps: int
    evaluated: int
    disk_bytes: int

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
    parts = assemble(settings, console)
    device = choose_device("cpu" if settings.accelerator == "cpu" else "auto")
    for module in (parts.student, parts.teacher, parts.method):
        if module is not None:
            module.to(device)
    if parts.teacher is not None:
        parts.teacher.eval().requires_grad_(False)
    processes = settings.nodes * (settings.devices if settings.devices != "auto" else 1)
    per_epoch = ceil(len(parts.training) / (settings.batch_size * processes))
    steps = min(settings.epochs * per_epoch, settings.max_steps or settings.epochs * per_epoch)
    evaluations = settings.epochs // settings.eval_every if settings.eval_every else 1
    return RunCost(
        step_seconds=_step_seconds(parts, settings, steps),
        image_seconds=_image_seconds(parts),
        steps=steps,
        evaluated=ceil(max(1, evaluations) * len(parts.evaluation) / processes),
        disk_bytes=_disk_bytes(parts, steps // settings.log_every),
    )


def _step_seconds(parts: Parts, settings: TrainSettings, steps: int) -> float:
    modules = [module for module in (parts.student, parts.method) if module is not None]
    trained = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=settings.momentum)  # the weights stay as they are
    loader = training_loader(
        parts.training, batch_size=settings.batch_size, seed=settings.seed, workers=0, flip=settings.flip
    )
    batches = iter(loader)
    parts.student.train()
    times = []
    for step in range(STEPS):
        begin = perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        progress = Progress(step, steps, 0, settings.epochs)
        prepared = parts.student.prepare(*batch)
        output, terms = step_losses(parts.student, prepared, progress, parts.method, parts.teacher)
        optimizer.zero_grad()
        total_loss(output.losses | terms).backward()
        optimizer.step()
        wait_for(parts.student.device)
        times.append(perf_counter() - begin)
    return median(times[1:] or times)


def _image_seconds(parts: Parts) -> float:
    parts.student.eval()
    times = []
    for index in range(min(IMAGES, len(parts.evaluation))):
        begin = perf_counter()
        image, _ = parts.evaluation[index]
        parts.student.predict([image])
        times.append(perf_counter() - begin)
    return median(times) if times else 0.0


def _disk_bytes(parts: Parts, lines: int) -> int:
    """The student's weights, a checkpoint with momentum, the adaptation layers likewise, logs and detections."""
    student = sum(weight.numel() for weight in parts.student.parameters())
    method = 0 if parts.method is None else sum(weight.numel() for weight in parts.method.parameters())
    weights = FLOAT_BYTES * (student + 2 * (student + method))
    detections = len(parts.evaluation) * 100 * 6 * FLOAT_BYTES
    return weights + detections + 2 * lines * LOG_BYTES
