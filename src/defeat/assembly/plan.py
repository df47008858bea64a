"""What a distillation run would do and cost, without training."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from rich.console import Console

from defeat.assembly.assemble import Assembly, assemble, with_frozen_teacher
from defeat.assembly.automatic import has_pyramid, optimizer_advice
from defeat.assembly.balance import balanced, weights_above_zero
from defeat.assembly.estimate import UNLABELLED, RunCost, estimate_experiment
from defeat.assembly.objects import Objects
from defeat.assembly.settings import DistillSettings, TrainSettings
from defeat.assembly.stages import describe
from defeat.assembly.teacher_quality import evaluated_ap50
from defeat.data import DetectionDataset
from defeat.data.problems import Problems
from defeat.data.unlabelled import UnlabelledImages
from defeat.detector import Detector, TeacherNetwork, build
from defeat.distillation.align import LevelPair
from defeat.distillation.class_map import ClassMap, listed
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.experiment import Experiment
from defeat.engine.guards import STRONG
from defeat.errors import InputError
from defeat.evaluation.profile import count_flops, profile_model
from defeat.files import write_into

FILE = "plan.json"
NECK_REPEATS = 5  # timed predictions for each width of the neck


@dataclass(frozen=True)
class PlannedData:
    """A split. Sizes are the median height and width in pixels; `empty` counts images without a box."""

    split: str
    images: int
    boxes: int
    empty: int
    size: tuple[int, int]
    per_class: dict[str, int]
    problems: list[str]


@dataclass(frozen=True)
class PlannedDetector:
    """A detector. `size` is the short side that it resizes to; `neck` and `backbone` are channels by stride."""

    family: str
    backbone_name: str
    classes: int
    size: int
    neck: dict[int, int]
    backbone: dict[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    parameters: int
    gflops: float | None


@dataclass(frozen=True)
class NeckCost:
    """What the student costs with a neck of so many channels; `latency_ms` is per image, on the run's device."""

    channels: int
    parameters: int
    gflops: float
    latency_ms: float


@dataclass(frozen=True)
class Plan:
    """Everything that `defeat plan` prints and writes.

    Attributes:
        data: the splits to train and to evaluate on.
        teacher: the large detector; one that only gives boxes has no size and no weights.
        teacher_kind: what the teacher is, in words.
        student: the small one.
        teacher_ap50: AP50 of the teacher on a sample of the training images; None where it was not measured.
        teacher_evaluated_ap50: AP50 of the teacher on the images that its own run was evaluated on; None where unknown.
        levels: pairs of levels, and what adapts the student's channels.
        classes: the teacher's classes that map to each class of the student, by name.
        chosen: values of the settings that were `auto`, by name.
        chosen_text: the same as one line of text.
        method: name of the method.
        weights: weights of its terms that are above zero, by option.
        losses: all losses of a step at initialisation, weighted.
        pulls: ratio of the gradient of each term to that of the detector's own losses, at the student's neck.
        together: the same ratio for the sum of all terms.
        inherited: which of the teacher's weights the student starts from, in sentences.
        necks: cost of the student with its neck, and with one of half the width.
        notes: what the pair leaves out or changes, and warnings.
        step_seconds: predicted time per training step.
        epoch_seconds: predicted time per epoch, without evaluation.
        run_seconds: predicted time of the run, with its evaluations.
        steps: optimiser steps of the run.
        memory_bytes: peak memory, of the GPU or else of the process.
        disk_bytes: size of the run directory.
    """

    data: list[PlannedData]
    teacher: PlannedDetector
    teacher_kind: str
    student: PlannedDetector
    teacher_ap50: float | None
    teacher_evaluated_ap50: float | None
    levels: list[LevelPair]
    classes: dict[str, list[str]]
    chosen: dict[str, Any]
    chosen_text: str
    method: str
    weights: dict[str, float]
    losses: dict[str, float]
    pulls: dict[str, float]
    together: float
    inherited: list[str]
    necks: list[NeckCost]
    notes: list[str]
    step_seconds: float
    epoch_seconds: float
    run_seconds: float
    steps: int
    memory_bytes: int
    disk_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain dicts, for JSON."""
        return asdict(self)


def make_plan(settings: DistillSettings, console: Console | None = None, given: Objects | None = None) -> Plan:
    """Assemble a distillation run, measure a few steps, and write `plan.json` into the run directory.

    Args:
        settings: settings of the run.
        console: where to print progress.
        given: objects that replace settings.

    Raises:
        InputError: the run cannot work.
    """
    console = console or Console(stderr=True)
    directory = RunDirectory(settings.out)
    directory.require_free(settings.resume)
    assembly = assemble(settings, console, UNLABELLED, given)
    experiment = balanced(assembly, with_frozen_teacher(assembly.experiment), console, write=False)
    plan = _planned(assembly, experiment, estimate_experiment(experiment))
    write_into(directory.folder, FILE, (json.dumps(plan.to_dict(), indent=2) + "\n").encode())
    return plan


def _planned(assembly: Assembly, experiment: Experiment, cost: RunCost) -> Plan:
    loaded, distillation = assembly.experiment.distillation, experiment.distillation
    evaluation, lessons, values = experiment.evaluation, assembly.lessons, experiment.record.values
    assert loaded is not None
    assert distillation is not None
    assert evaluation is not None
    assert lessons is not None
    method = distillation.method
    data = [_data(experiment.training), _data(evaluation), *_unlabelled(values, distillation.unlabelled)]
    return Plan(
        data=data,
        teacher=_detector(loaded.teacher.to(experiment.student.device), evaluation),
        teacher_kind=lessons.kind,
        student=_detector(experiment.student, evaluation),
        teacher_ap50=lessons.teacher_ap50,
        teacher_evaluated_ap50=evaluated_ap50(str(values["teacher"])),
        levels=method.levels,
        classes=_classes(method.classes, loaded.teacher.info.classes),
        chosen=assembly.choices.to_dict(),
        chosen_text=assembly.choices.describe(),
        method=values["method"],
        weights=weights_above_zero(method),
        losses=cost.measured.losses,
        pulls=cost.measured.pulls,
        together=cost.measured.together,
        inherited=lessons.inherited.describe(),
        necks=_neck_costs(experiment.student, evaluation),
        notes=[
            *experiment.student.notes,
            *optimizer_advice(assembly.settings),
            *method.classes.describe(),
            *method.notes,
            *lessons.notes,
            *later_stages(assembly.settings),
            *lessons.doubts,
            *_warnings(data, cost),
        ],
        step_seconds=cost.step_seconds,
        epoch_seconds=cost.epoch_steps * cost.step_seconds,
        run_seconds=cost.seconds,
        steps=cost.steps,
        memory_bytes=cost.measured.memory_bytes,
        disk_bytes=cost.disk_bytes,
    )


def later_stages(settings: TrainSettings) -> list[str]:
    """The stages after the one that is planned, in sentences."""
    return [] if settings.distillation is None else describe(settings.distillation)


def _warnings(data: Sequence[PlannedData], cost: RunCost) -> list[str]:
    training, evaluation = data[:2]
    found = []
    silent = [name for name, pull in cost.measured.pulls.items() if pull == 0]
    if silent:
        found.append(f"The term {silent[0]} gave the student no gradient in the measured steps.")
    if cost.measured.together > STRONG:
        found.append(
            f"At first the terms pull {cost.measured.together:.1f} times as hard on the student's neck as the "
            "detector's own losses; if AP falls behind the baseline, try --balance 1."
        )
    if training.split == evaluation.split:
        found.append("The run is evaluated on its own training images, so its AP says little.")
    missing = [name for name, count in training.per_class.items() if count == 0]
    if missing:
        found.append(f"The training split has no box of {listed(missing)}.")
    return found


def _data(dataset: DetectionDataset) -> PlannedData:
    labels = dataset.table.labels
    counts = labels.bincount(minlength=len(dataset.classes)).tolist()
    heights, widths = zip(*dataset.sizes, strict=True)
    return PlannedData(
        split=dataset.split,
        images=len(dataset),
        boxes=len(labels),
        empty=sum(sample.first == sample.last for sample in dataset.samples),
        size=(round(median(heights)), round(median(widths))),
        per_class=dict(zip(dataset.classes, counts, strict=True)),
        problems=dataset.problems,
    )


def _unlabelled(values: Mapping[str, Any], unlabelled: DetectionDataset | None) -> list[PlannedData]:
    """The images without annotations; the teacher has run on the first of them only."""
    if unlabelled is None:
        return []
    problems = Problems(values["on_bad_data"], decode=False, max_pixels=values["max_pixels"])
    seen, total = _data(unlabelled), len(UnlabelledImages(values["unlabelled"], problems))
    return [replace(seen, split=f"unlabelled (the teacher was run on {seen.images} of {total})", images=total)]


def _detector(detector: TeacherNetwork, dataset: DetectionDataset) -> PlannedDetector:
    info = detector.info
    image = dataset[0][0].to(detector.device)
    return PlannedDetector(
        family=info.family,
        backbone_name=detector.spec.backbone if isinstance(detector, Detector) else "",
        classes=len(info.classes),
        size=info.size,
        neck=info.neck,
        backbone=info.backbone,
        mean=info.mean,
        std=info.std,
        parameters=sum(weight.numel() for weight in detector.parameters()),
        gflops=count_flops(detector, image) / 1e9 if isinstance(detector, Detector) else None,
    )


def _neck_costs(student: Detector, dataset: DetectionDataset) -> list[NeckCost]:
    """Measure the student as it is, and with a neck of half the width if its family can be built with one."""
    channels = student.spec.neck_channels
    if channels < 2 or not has_pyramid(student.spec.family):
        return []
    try:
        with torch.random.fork_rng(devices=[]):
            narrower = build(replace(student.spec, neck_channels=channels // 2), "none").to(student.device)
    except InputError:  # of a family that has no such width
        return []
    image = dataset[0][0]
    size = (int(image.shape[-2]), int(image.shape[-1]))
    costs = []
    for detector in (student, narrower):
        measured = profile_model(detector, size, image=image, threads=torch.get_num_threads(), repeats=NECK_REPEATS)
        width = detector.spec.neck_channels
        costs.append(NeckCost(width, measured.parameters, measured.gflops, measured.latency_ms))
    return costs


def _classes(classes: ClassMap, names: Sequence[str]) -> dict[str, list[str]]:
    """The teacher's names of each class of the student."""
    return {
        name: [names[teacher_label] for teacher_label in classes.pairs.get(label, ())]
        for label, name in enumerate(classes.student)
    }
