"""The gain of each distilled run over its baseline, for runs that differ in nothing but the distillation.

Each may have the learning rate schedule that suits it, see `automatic_cosine`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from defeat.assembly.earlier import earlier_defaults
from defeat.assembly.settings import TrainSettings
from defeat.engine.optimisation import automatic_cosine
from defeat.evaluation.bootstrap import SAMPLES, Interval, interval_over_images
from defeat.report.gains import Bootstrap, interval_text
from defeat.report.runs import RunSummary
from defeat.settings import Role, option

BASELINE = "baseline"  # role of a run without a teacher that a distilled run is compared with
NOISE = 1.0  # AP points; repeating a training with another seed changes its AP by half a point to a point
COMPARED = {
    "family": "detector",
    "backbone": "backbone",
    "data_fingerprint": "data",
    "split": "split",
    "epochs": "epochs",
    "steps": "steps",
    "seed": "seed",
    "size": "image size",
    "parameters": "number of weights",
}
# Settings that two compared runs must share, in addition to the recorded values above.
SETTINGS = {
    field.name
    for field in fields(TrainSettings)
    if field.metadata["compared"] and field.metadata["role"] not in (Role.OUTPUT, Role.CELL)
}


@dataclass(frozen=True)
class Verdict:
    """A distilled run compared with its baseline, the same student trained without a teacher.

    Attributes:
        distilled: the distilled run.
        baseline: the baseline; None when no comparable run was given.
        teacher: the teacher's run; None when it was not given or was evaluated on other data.
        gain: AP points gained (negative: lost); None when the runs can't be compared.
        gap_closed: share of the teacher-student gap, in percent; None without a gain or with a gap below one point.
        over_images: 95 % interval of the gain over test images; None when a run stored no detections.
        sentence: the result in words.
        caution: the uncertainty of the gain in words; empty without a gain.
    """

    distilled: RunSummary
    baseline: RunSummary | None
    teacher: RunSummary | None
    gain: float | None
    gap_closed: float | None
    sentence: str
    caution: str = ""
    over_images: Interval | None = None


def roles(runs: Sequence[RunSummary]) -> list[str]:
    """Role of each run: `teacher`, `baseline` or `distilled (METHOD)`; `detector` where no run is distilled.

    A run without a method whose student learned pseudo-labels is `distilled (pseudo-labels)`.

    A run is a teacher when its weights taught one of the distilled runs, even if its folder has moved.
    """
    distilled = [run for run in runs if run.command == "distill"]
    names = []
    for run in runs:
        if run.command == "distill":
            names.append(f"distilled ({_method(run)})")
        elif any(_taught(run, student) for student in distilled):
            names.append("teacher")
        else:
            names.append(BASELINE if distilled else "detector")
    return names


def _method(run: RunSummary) -> str:
    if run.method == "none" and run.settings.get("pseudo_labels") is not None:
        return "pseudo-labels"
    return run.method or "unknown method"


def differences(run: RunSummary, other: RunSummary) -> list[str]:
    """What makes two runs incomparable, in words: values that differ, and values that were not recorded."""
    sentences = []
    for attribute, word in COMPARED.items():
        if attribute == "steps" and run.settings.get("patience") and other.settings.get("patience"):
            continue  # --patience ends each run at its own step; the settings are compared below
        values = getattr(run, attribute), getattr(other, attribute)
        if any(value in (None, "") for value in values):
            sentences.append(f"{word} (not recorded)")
        elif values[0] != values[1]:
            sentences.append(f"{word} ({values[0]} and {values[1]})")
    if run.settings and other.settings:
        earlier = earlier_defaults()
        for name in sorted(SETTINGS & (run.settings.keys() | other.settings.keys())):
            first, second = (settings.get(name, earlier.get(name)) for settings in (run.settings, other.settings))
            if first != second and not (name == "schedule" and _suits(run) and _suits(other)):
                sentences.append(f"{option(name)} ({first} and {second})")
    return sentences


def _suits(run: RunSummary) -> bool:
    """Whether a run has the learning rate schedule that `--schedule auto` chooses for it."""
    return run.settings.get("schedule") == automatic_cosine(run.steps or 0, run.command == "distill")


def verdicts(runs: Sequence[RunSummary]) -> list[Verdict]:
    """Compare each distilled run with its baseline, in the order given."""
    baselines = [run for run, role in zip(runs, roles(runs), strict=True) if role == BASELINE]
    return [_judge(run, baselines, teacher_of(run, runs)) for run in runs if run.command == "distill"]


def teacher_of(run: RunSummary, runs: Sequence[RunSummary]) -> RunSummary | None:
    """The teacher's run of a distilled one, if it is among `runs`."""
    return next((other for other in runs if other is not run and _taught(other, run)), None)


def _taught(teacher: RunSummary, run: RunSummary) -> bool:
    """Whether `teacher` taught `run`: by the fingerprint of its weights, or by its folder where none is recorded."""
    if teacher.fingerprint and run.teacher_fingerprint:
        return teacher.fingerprint == run.teacher_fingerprint
    return bool(run.teacher) and Path(run.teacher or "").resolve() == teacher.folder.resolve()


def _judge(run: RunSummary, baselines: Sequence[RunSummary], teacher: RunSummary | None) -> Verdict:
    if not baselines:
        sentence = (
            f"{run.name}: no gain can be given without a baseline, the same student trained without a teacher; give "
            "both to `defeat compare`."
        )
        return Verdict(run, None, teacher, None, None, sentence)
    baseline = min(baselines, key=lambda candidate: len(differences(run, candidate)))
    different = differences(run, baseline)
    if different:
        sentence = f"{run.name} and {baseline.name} cannot be compared, they differ in: {', '.join(different)}."
        return Verdict(run, None, teacher, None, None, sentence)
    distilled_ap, baseline_ap = run.metrics.get("AP"), baseline.metrics.get("AP")
    if distilled_ap is None or baseline_ap is None:
        sentence = f"{run.name} and {baseline.name} cannot be compared: the AP of one of them is not known."
        return Verdict(run, baseline, teacher, None, None, sentence)
    gain = distilled_ap - baseline_ap
    sentence = (
        f"{run.name}: {_change(gain)} AP points relative to the baseline ({baseline_ap:.1f} to {distilled_ap:.1f})"
    )
    teacher = teacher if teacher is not None and _same_test(run, teacher) else None
    gap = teacher_gap(baseline_ap, None if teacher is None else teacher.metrics.get("AP"))
    gap_closed = 100 * gain / gap if gap is not None and gain > 0 else None
    if gap_closed is not None and teacher is not None:
        sentence += f", {gap_closed:.0f} % of the gap to its teacher ({teacher.metrics['AP']:.1f})"
    samples = Bootstrap(run, SAMPLES).gain([(baseline, run)])
    over_images = None if samples is None else interval_over_images(np.nanmean(samples, axis=1))
    caution = _schedules(run, baseline) + _caution(gain, over_images, run.images)
    if over_images is not None and over_images.contains_zero:
        sentence += ": not significant"
    return Verdict(run, baseline, teacher, gain, gap_closed, sentence + ".", caution, over_images)


def _change(gain: float) -> str:
    return f"{gain:+.1f}" if abs(gain) >= 0.05 else "0.0"


def _same_test(run: RunSummary, teacher: RunSummary) -> bool:
    return bool(run.data_fingerprint) and (run.data_fingerprint, run.split) == (teacher.data_fingerprint, teacher.split)


def teacher_gap(baseline_ap: float, teacher_ap: float | None) -> float | None:
    """AP points between baseline and teacher; None when unknown or less than the noise of one training."""
    gap = None if teacher_ap is None else teacher_ap - baseline_ap
    return gap if gap is not None and gap >= NOISE else None


def _schedules(run: RunSummary, baseline: RunSummary) -> str:
    """The learning rate schedules of two runs, where they differ."""
    first, second = (summary.settings.get("schedule") for summary in (run, baseline))
    if first == second:
        return ""
    return (
        f"Learning rate schedules: {first}, and {second} for the baseline; each has the one with which such runs are "
        "better. "
    )


def _caution(gain: float, over_images: Interval | None, images: int | None) -> str:
    text = ""
    if over_images is not None:
        text = f"95 % interval over the {images} test images: {interval_text(over_images)} AP. "
        if over_images.contains_zero:
            text += "It contains zero: other test images could show no change. "
    if abs(gain) < NOISE:
        return text + "One seed each: differences of this size can be noise. Repeat both runs with more seeds."
    return text + (
        "One seed each: differences of about half a point to a point can be noise, and larger ones on a small split; "
        "repeat both runs with more seeds."
    )
