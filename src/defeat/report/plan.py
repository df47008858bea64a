"""What a run of distillation would do: data, detectors, what meets what, and what it costs; without training."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from defeat.data import DetectionDataset
from defeat.data.problems import Problems
from defeat.data.unlabelled import UnlabelledImages
from defeat.detector import Detector, build
from defeat.distillation import Method
from defeat.distillation.align import LevelPair
from defeat.distillation.class_map import ClassMap, listed
from defeat.distillation.imitation import MapImitation
from defeat.engine.assembly import Parts, assemble, with_frozen_teacher
from defeat.engine.balance import balanced, method_weights
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.estimate import UNLABELLED, RunCost, estimate_parts
from defeat.engine.guards import STRONG
from defeat.engine.settings import DistillSettings
from defeat.evaluation.profile import count_flops, profile_model
from defeat.files import write_into
from defeat.report.tables import UNKNOWN, decimal, duration

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
    gflops: float


@dataclass(frozen=True)
class PlannedLevel(LevelPair):
    """Levels that meet; a convolution of `kernel` x `kernel` cells adapts the student's channels."""

    kernel: int


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
        teacher: the large detector.
        student: the small one.
        teacher_ap50: AP50 of the teacher on a sample of the training images; None where it was not measured.
        levels: which levels meet, and what adapts the student's channels.
        classes: for each class of the student the teacher's classes that meet it, by name.
        chosen: values of the settings that were left to the data, by name.
        chosen_text: the same as a line for people.
        method: name of the method.
        weights: weights of its terms that are above zero, by option.
        losses: all losses in a step with the first weights, weighted.
        pulls: gradient of each term at the student's neck over that of the detector's own losses.
        together: the same of all terms together.
        inherited: what the student begins with of the teacher's weights, in sentences.
        necks: what the student costs with its neck, and with one of half the width.
        notes: what the pair leaves out or changes, and what to look at.
        step_seconds: predicted time of a training step.
        epoch_seconds: of an epoch, without evaluation.
        run_seconds: of the whole run with its evaluations.
        steps: optimiser steps of the run.
        memory_bytes: most memory at any time, of the GPU or else of the process.
        disk_bytes: what the run directory will hold.
    """

    data: list[PlannedData]
    teacher: PlannedDetector
    student: PlannedDetector
    teacher_ap50: float | None
    levels: list[PlannedLevel]
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
        """The same as plain dicts, for JSON."""
        return asdict(self)


def plan(**options: Any) -> Plan:
    """Say what `distill` would do and cost; the options are the fields of `DistillSettings`.

    Raises:
        InputError: what cannot work, with the way out.
    """
    return make_plan(DistillSettings(**options))


def make_plan(settings: DistillSettings, console: Console | None = None) -> Plan:
    """Assemble a run of distillation, measure a few steps, and write `plan.json` into its folder.

    Args:
        settings: what `defeat distill` would be given.
        console: where to say what is being done.

    Raises:
        InputError: what cannot work, with the way out.
    """
    console = console or Console(stderr=True)
    directory = RunDirectory(settings.out)
    directory.require_free(settings)
    parts = assemble(settings, console, UNLABELLED)
    chosen = parts.choices.applied(settings)
    assert isinstance(chosen, DistillSettings)
    settings = chosen
    settings, ready = balanced(settings, with_frozen_teacher(parts, settings), console, write=False)
    cost = estimate_parts(settings, ready)
    made = _planned(settings, replace(ready, teacher=parts.teacher), cost)
    write_into(directory.folder, FILE, (json.dumps(made.to_dict(), indent=2) + "\n").encode())
    return made


def _planned(settings: DistillSettings, parts: Parts, cost: RunCost) -> Plan:
    assert parts.teacher is not None
    assert parts.method is not None
    data = [_data(parts.training), _data(parts.evaluation), *_unlabelled(settings, parts)]
    return Plan(
        data=data,
        teacher=_detector(parts.teacher, parts.evaluation),
        student=_detector(parts.student, parts.evaluation),
        teacher_ap50=parts.teacher_ap50,
        levels=_levels(parts.method),
        classes=_classes(parts.method.classes, parts.teacher.info.classes),
        chosen=parts.choices.to_dict(),
        chosen_text=parts.choices.describe(),
        method=settings.method,
        weights=method_weights(settings),
        losses=cost.measured.losses,
        pulls=cost.measured.pulls,
        together=cost.measured.together,
        inherited=[] if parts.inherited is None else parts.inherited.describe(),
        necks=_neck_costs(parts.student, parts.evaluation),
        notes=[*parts.method.classes.describe(), *parts.method.notes, *parts.doubts, *_warnings(data, cost)],
        step_seconds=cost.step_seconds,
        epoch_seconds=cost.epoch_steps * cost.step_seconds,
        run_seconds=cost.seconds,
        steps=cost.steps,
        memory_bytes=cost.measured.memory_bytes,
        disk_bytes=cost.disk_bytes,
    )


def _warnings(data: Sequence[PlannedData], cost: RunCost) -> list[str]:
    training, evaluation = data[:2]
    found = []
    silent = [name for name, pull in cost.measured.pulls.items() if pull == 0]
    if silent:
        found.append(f"The term {silent[0]} gave the student no gradient in the measured steps.")
    if cost.measured.together > STRONG:
        found.append(
            f"At first the terms pull {cost.measured.together:.1f} times as hard on the student's neck as the "
            "detector's own losses; if AP falls behind the student alone, try --balance 1."
        )
    if training.split == evaluation.split:
        found.append("The run is evaluated on the images that it trains on: its AP says little.")
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


def _unlabelled(settings: DistillSettings, parts: Parts) -> list[PlannedData]:
    """What is known of the images without annotations, of which the teacher saw the first."""
    if parts.unlabelled is None or settings.unlabelled is None:
        return []
    problems = Problems(settings.on_bad_data, decode=False)
    seen, total = _data(parts.unlabelled), len(UnlabelledImages(settings.unlabelled, problems))
    return [replace(seen, split=f"unlabelled (the teacher looked at {seen.images} of {total})", images=total)]


def _detector(detector: Detector, dataset: DetectionDataset) -> PlannedDetector:
    info = detector.info
    image = dataset[0][0].to(detector.device)
    return PlannedDetector(
        family=info.family,
        backbone_name=detector.spec.backbone,
        classes=len(info.classes),
        size=info.size,
        neck=info.neck,
        backbone=info.backbone,
        mean=info.mean,
        std=info.std,
        parameters=sum(weight.numel() for weight in detector.parameters()),
        gflops=count_flops(detector, image) / 1e9,
    )


def _neck_costs(student: Detector, dataset: DetectionDataset) -> list[NeckCost]:
    """Measure the student as it is and with a neck of half the width, whose weights play no part here."""
    channels = student.spec.neck_channels
    if channels < 2:
        return []
    with torch.random.fork_rng(devices=[]):
        narrower = build(replace(student.spec, neck_channels=channels // 2), "none").to(student.device)
    image = dataset[0][0]
    size = (int(image.shape[-2]), int(image.shape[-1]))
    costs = []
    for detector in (student, narrower):
        measured = profile_model(detector, size, image=image, threads=torch.get_num_threads(), repeats=NECK_REPEATS)
        width = detector.spec.neck_channels
        costs.append(NeckCost(width, measured.parameters, measured.gflops, measured.latency_ms))
    return costs


def _neck_words(costs: Sequence[NeckCost]) -> str:
    words = "{0.channels} channels {1:.2f} M parameters, {0.gflops:.1f} GFLOPs, {0.latency_ms:.0f} ms per image"
    return "; ".join(words.format(cost, cost.parameters / 1e6) for cost in costs)


def _levels(method: Method) -> list[PlannedLevel]:
    parts = [part for part in method.modules() if isinstance(part, MapImitation)]
    return [
        PlannedLevel(**asdict(one), kernel=part.adaptation.kernel) for part in parts for one in part.levels.values()
    ]


def _classes(classes: ClassMap, names: Sequence[str]) -> dict[str, list[str]]:
    """The teacher's own names for each class of the student."""
    return {
        name: [names[place] for place in classes.pairs.get(label, ())] for label, name in enumerate(classes.student)
    }


def print_plan(made: Plan, console: Console) -> None:
    """Print a plan as people read it: from the data to the cost."""
    _print_table(
        console,
        ("data", "images", "boxes", "without", "median size"),
        [
            (one.split, *map(str, (one.images, one.boxes, one.empty)), "{1} x {0}".format(*one.size))
            for one in made.data
        ],
    )
    _print_table(
        console,
        ("detector", "short side", "classes", "params (M)", "GFLOPs", "neck: stride x channels"),
        [_detector_row("teacher", made.teacher), _detector_row("student", made.student)],
    )
    adapted = [
        (one.part, str(one.stride), str(one.teacher_stride), f"{one.channels} -> {one.teacher_channels}", _how(one))
        for one in made.levels
    ]
    if adapted:
        _print_table(console, ("levels", "student's stride", "teacher's", "channels", "how"), adapted)
    console.print(Text(f"classes: {_class_words(made.classes)}"))
    ability = UNKNOWN if made.teacher_ap50 is None else f"{made.teacher_ap50:.1f}"
    console.print(
        f"teacher: AP50 {ability} on a sample of the training images (higher where it learned from them)",
        highlight=False,
    )
    if made.necks:
        console.print(Text(f"width of the student's neck: {_neck_words(made.necks)}"))
    for sentence in made.inherited:
        console.print(Text(sentence))
    if made.chosen_text:
        console.print(f"chosen for this data: {made.chosen_text}", highlight=False, soft_wrap=True)
    weights = ", ".join(f"{name} {value:g}" for name, value in made.weights.items()) or "none"
    console.print(f"method: {made.method}, weights: {weights}\n", highlight=False)
    pulls = {name: decimal(made.pulls[name], 2) if name in made.pulls else "" for name in made.losses}
    rows = [(name, f"{value:.3f}", pulls[name]) for name, value in made.losses.items()]
    _print_table(console, ("loss in a first step", "value", "pull (detector = 1)"), rows)
    console.print(
        f"cost here: {1000 * made.step_seconds:.0f} ms a step, {duration(made.epoch_seconds)} an epoch, "
        f"{duration(made.run_seconds)} for all {made.steps} steps; memory {made.memory_bytes / 1e9:.1f} GB, "
        f"disk {made.disk_bytes / 1e6:.0f} MB",
        highlight=False,
        soft_wrap=True,
    )
    for sentence in _problems(made):
        console.print(Text(sentence, style="yellow"))


def _problems(made: Plan) -> list[str]:
    return [f"{one.split}: {', '.join(one.problems)}" for one in made.data if one.problems] + made.notes


def _detector_row(role: str, one: PlannedDetector) -> tuple[str, ...]:
    levels = " ".join(f"{stride}x{channels}" for stride, channels in one.neck.items())
    figures = (str(one.size), str(one.classes), decimal(one.parameters / 1e6, 2), decimal(one.gflops))
    return (f"{role}: {one.family}, {one.backbone_name}", *figures, levels)


def _how(level: PlannedLevel) -> str:
    resized = "" if level.stride == level.teacher_stride else ", teacher's map resized"
    return f"{level.kernel} x {level.kernel} convolution{resized}"


def _class_words(classes: dict[str, list[str]]) -> str:
    pairs = [
        name if names == [name] else f"{name} (the teacher's {' + '.join(names)})"
        for name, names in classes.items()
        if names
    ]
    if not pairs:
        return "none is shared; only features are learned"
    return f"{len(pairs)} of {len(classes)} meet: {listed(pairs, 20)}"


def _print_table(console: Console, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, title in enumerate(titles):
        last = place == len(titles) - 1 and title in ("how", "neck: stride x channels")
        table.add_column(title, justify="left" if place == 0 or last else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    console.print()
