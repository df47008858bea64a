"""Prints a plan as people read it."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from defeat.assembly.plan import NeckCost, Plan, PlannedDetector
from defeat.distillation.align import LevelPair
from defeat.distillation.class_map import listed
from defeat.report.tables import UNKNOWN, decimal, duration


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


def _how(level: LevelPair) -> str:
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


def _neck_words(costs: Sequence[NeckCost]) -> str:
    words = "{0.channels} channels {1:.2f} M parameters, {0.gflops:.1f} GFLOPs, {0.latency_ms:.0f} ms per image"
    return "; ".join(words.format(cost, cost.parameters / 1e6) for cost in costs)
