"""Cost of a run, estimated from a few measured steps."""

import resource
from dataclasses import dataclass
from math import ceil
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from torch import Tensor

from defeat.assembly.assemble import assemble, with_frozen_teacher
from defeat.assembly.settings import TrainSettings
from defeat.detector import Detector, MapsNetwork
from defeat.detector.devices import wait_for
from defeat.distillation import Method
from defeat.engine.averaging import StudentAverage
from defeat.engine.devices import training_device
from defeat.engine.experiment import Experiment
from defeat.engine.gradients import GradientRatios, measure_gradient_ratios
from defeat.engine.optimisation import build_optimizer
from defeat.engine.step import step_losses, total_loss
from defeat.engine.teacher_cache import cache_size, cached_parts, require_views
from defeat.types import Progress

STEPS = 3  # the first of them is a warm-up
IMAGES = 4
UNLABELLED = 16  # images without annotations on which the teacher is run
FLOAT_BYTES = 4
LOG_BYTES = 400  # per line of metrics.jsonl, and as much in TensorBoard's events


@dataclass(frozen=True)
class MeasuredSteps:
    """A few steps of training, on the device that the run would use.

    Attributes:
        seconds: median time per step, with data loading.
        memory_bytes: peak memory, of the GPU or else of the process.
        losses: all losses of the last of these steps by name, weighted, after the warm-up of distillation.
        pulls: ratio of the gradient of each distillation term to that of the detector's own losses.
        together: the same ratio for the sum of all terms.
    """

    seconds: float
    memory_bytes: int
    losses: dict[str, float]
    pulls: dict[str, float]
    together: float


@dataclass(frozen=True)
class RunCost:
    """Predicted cost of a run on this machine, on the device that it would use.

    Attributes:
        step_seconds: time per training step, with data loading.
        image_seconds: time per evaluation image.
        steps: optimiser steps of the run.
        epoch_steps: optimiser steps per epoch.
        evaluated: images of all evaluations together.
        disk_bytes: size of the run directory.
        measured: the steps from which this was estimated.
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
        """Time of the whole run."""
        return self.steps * self.step_seconds + self.evaluated * self.image_seconds


def estimate_run(settings: TrainSettings, console: Console) -> RunCost:
    """Estimate the cost of a run from a few steps and a few predictions; nothing is written.

    Args:
        settings: settings of the run.
        console: where to print notes about the data.

    Raises:
        InputError: something about the settings, the data or the pair is not valid.
    """
    return estimate_experiment(with_frozen_teacher(assemble(settings, console, UNLABELLED).experiment))


def estimate_experiment(experiment: Experiment) -> RunCost:
    """Estimate the cost of an experiment with a frozen teacher; running statistics change, weights don't."""
    _move(experiment, training_device(experiment.devices))
    optimisation, devices = experiment.optimisation, experiment.devices
    processes = devices.nodes * (devices.devices if devices.devices != "auto" else 1)
    per_epoch = optimisation.epoch_steps(len(experiment.loader(world_size=processes)))
    steps, every = optimisation.steps(per_epoch), experiment.selection.evaluation_interval
    evaluations = optimisation.number_of_epochs // every if every else 1
    images = 0 if experiment.evaluation is None else len(experiment.evaluation)
    measured = _measured_steps(experiment)
    return RunCost(
        step_seconds=measured.seconds * optimisation.accumulate,
        image_seconds=_image_seconds(experiment),
        steps=steps,
        epoch_steps=per_epoch,
        evaluated=ceil(max(1, evaluations) * images / processes),
        disk_bytes=_disk_bytes(experiment, steps // experiment.logging.log_every) + _cache_bytes(experiment),
        measured=measured,
    )


def _move(experiment: Experiment, device: torch.device) -> None:
    experiment.student.to(device)
    if experiment.distillation is not None:
        experiment.distillation.teacher.to(device)
        experiment.distillation.method.to(device)


def _method(experiment: Experiment) -> Method | None:
    return None if experiment.distillation is None else experiment.distillation.method


def _measured_steps(experiment: Experiment) -> MeasuredSteps:
    student, optimisation = experiment.student, experiment.optimisation
    optimizer = build_optimizer(student, _method(experiment), optimisation)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the weights stay as they are
    average = None if optimisation.ema is None else StudentAverage(student, optimisation.ema)
    past_warm_up = Progress(step=1, steps=1, epoch=0, epochs=optimisation.number_of_epochs)
    student.train()
    times: list[float] = []
    losses: dict[str, Tensor] = {}
    pulls = GradientRatios({}, 0.0)
    begin = perf_counter()
    for step, batch in zip(range(STEPS), experiment.loader(), strict=False):
        prepared = student.prepare(*batch)
        output, terms = step_losses(student, prepared, past_warm_up, experiment.distillation)
        losses = output.losses | terms
        if terms and step == 0:  # which is not timed
            pulls = measure_gradient_ratios(terms, output)
        optimizer.zero_grad()
        total_loss(losses).backward()
        optimizer.step()
        if average is not None:
            average.update_parameters(student)
        wait_for(student.device)
        times.append(perf_counter() - begin)
        begin = perf_counter()
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    return MeasuredSteps(median(times[1:] or times), _peak_memory(student), values, pulls.terms, pulls.together)


def _peak_memory(student: Detector) -> int:
    device = student.device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # which Linux counts in kilobytes


def _image_seconds(experiment: Experiment) -> float:
    if experiment.evaluation is None:
        return 0.0
    experiment.student.eval()
    times = []
    for index in range(min(IMAGES, len(experiment.evaluation))):
        begin = perf_counter()
        image, _ = experiment.evaluation[index]
        experiment.student.predict([image])
        times.append(perf_counter() - begin)
    return median(times) if times else 0.0


def _cache_bytes(experiment: Experiment) -> int:
    """Size of the teacher cache: its maps of every view of every image."""
    distillation = experiment.distillation
    if distillation is None or distillation.cache is None:
        return 0
    views, limit = require_views(experiment.augmentation), distillation.cache.limit
    teacher, parts = distillation.teacher, cached_parts(distillation.method)
    assert isinstance(teacher, MapsNetwork)  # others are refused before
    size = cache_size(experiment.student, teacher, parts, experiment.datasets, views).bytes
    return min(size, limit if limit is not None else size)


def _disk_bytes(experiment: Experiment, lines: int) -> int:
    """Size of the student's weights, a checkpoint, logs and detections."""
    optimisation, trained = experiment.optimisation, _method(experiment)
    student = sum(weight.numel() for weight in experiment.student.parameters())
    method = 0 if trained is None else sum(weight.numel() for weight in trained.parameters())
    detections = 0 if experiment.evaluation is None else len(experiment.evaluation) * 100 * 6 * FLOAT_BYTES
    moments = 2 if optimisation.optimizer == "adamw" else 1  # numbers that the optimiser keeps per weight
    weights = FLOAT_BYTES * (student + (1 + moments) * (student + method))
    if optimisation.ema is not None:
        weights += FLOAT_BYTES * student
    if experiment.selection.keep == "best":
        weights += FLOAT_BYTES * student + detections
    return weights + detections + 2 * lines * LOG_BYTES
