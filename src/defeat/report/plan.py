"""Prints a plan."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from defeat.assembly.plan import NeckCost, Plan, PlannedDetector
from defeat.distillation.align import LevelPair
from defeat.distillation.class_map import listed
from defeat.report.tables import UNKNOWN, decimal, duration, print_table


def print_plan(plan: Plan, console: Console) -> None:
    """Print a plan, from the data to the cost."""
    print_table(
        console,
        ("data", "images", "boxes", "images without boxes", "median size"),
        [
            (split.split, *map(str, (split.images, split.boxes, split.empty)), "{1} x {0}".format(*split.size))
            for split in plan.data
        ],
    )
    print_table(
        console,
        ("detector", "short side", "classes", "params (M)", "GFLOPs", "neck: stride x channels"),
        [_detector_row("teacher", plan.teacher), _detector_row("student", plan.student)],
    )
    levels = [
        (
            level.part,
            str(level.stride),
            str(level.teacher_stride),
            f"{level.channels} -> {level.teacher_channels}",
            _adaptation(level),
        )
        for level in plan.levels
    ]
    if levels:
        print_table(console, ("level", "student stride", "teacher stride", "channels", "adaptation"), levels)
    console.print(Text(f"classes: {_class_text(plan.classes)}"))
    ap50 = UNKNOWN if plan.teacher_ap50 is None else f"{plan.teacher_ap50:.1f}"
    if plan.teacher_kind != "detector":
        console.print(Text(f"teacher gives {plan.teacher_kind}"))
    text = f"teacher: AP50 {ap50} on a sample of the training images (higher if it was trained on them)"
    if plan.teacher_evaluated_ap50 is not None:
        text += f", {plan.teacher_evaluated_ap50:.1f} on the images that its own run was evaluated on"
    console.print(text, highlight=False, soft_wrap=True)
    if plan.necks:
        console.print(Text(f"width of the student's neck: {_neck_text(plan.necks)}"))
    for sentence in plan.inherited:
        console.print(Text(sentence))
    if plan.chosen_text:
        console.print(f"chosen for this data: {plan.chosen_text}", highlight=False, soft_wrap=True)
    weights = ", ".join(f"{name} {value:g}" for name, value in plan.weights.items()) or "none"
    console.print(f"method: {plan.method}, weights: {weights}\n", highlight=False)
    gradients = {name: decimal(plan.pulls[name], 2) if name in plan.pulls else "" for name in plan.losses}
    rows = [(name, f"{value:.3f}", gradients[name]) for name, value in plan.losses.items()]
    print_table(console, ("loss in the first step", "value", "gradient (detector = 1)"), rows)
    console.print(
        f"cost on this machine: {1000 * plan.step_seconds:.0f} ms per step, {duration(plan.epoch_seconds)} per epoch, "
        f"{duration(plan.run_seconds)} for all {plan.steps} steps; memory {plan.memory_bytes / 1e9:.1f} GB, "
        f"disk {plan.disk_bytes / 1e6:.0f} MB",
        highlight=False,
        soft_wrap=True,
    )
    for sentence in _problems(plan):
        console.print(Text(sentence, style="yellow"))


def _problems(plan: Plan) -> list[str]:
    return [f"{split.split}: {', '.join(split.problems)}" for split in plan.data if split.problems] + plan.notes


def _detector_row(role: str, detector: PlannedDetector) -> tuple[str, ...]:
    levels = " ".join(f"{stride}x{channels}" for stride, channels in detector.neck.items())
    parameters, gflops = decimal(detector.parameters / 1e6, 2), decimal(detector.gflops)
    name = f"{role}: {', '.join(filter(None, (detector.family, detector.backbone_name)))}"
    size = str(detector.size or ("as the student" if detector.neck else UNKNOWN))
    return (name, size, str(detector.classes), parameters if detector.parameters else UNKNOWN, gflops, levels)


def _adaptation(level: LevelPair) -> str:
    resized = "" if level.stride == level.teacher_stride else ", teacher's feature map resized"
    if level.kernel == 0:
        return f"no layer{resized}"
    return f"{level.kernel} x {level.kernel} convolution{resized}"


def _class_text(classes: dict[str, list[str]]) -> str:
    pairs = [
        name if names == [name] else f"{name} (the teacher's {' + '.join(names)})"
        for name, names in classes.items()
        if names
    ]
    if not pairs:
        return "none is shared; only features are learned"
    return f"{len(pairs)} of {len(classes)} shared: {listed(pairs, 20)}"


def _neck_text(costs: Sequence[NeckCost]) -> str:
    form = "{0.channels} channels {1:.2f} M parameters, {0.gflops:.1f} GFLOPs, {0.latency_ms:.0f} ms per image"
    return "; ".join(form.format(cost, cost.parameters / 1e6) for cost in costs)
