"""Did distillation help? Answered only where two runs differ in nothing but the distillation."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from defeat.assembly.settings import TrainSettings, earlier_defaults
from defeat.evaluation.bootstrap import SAMPLES, Interval, interval_over_images
from defeat.report.gains import Bootstrap
from defeat.report.gains import words as words_of
from defeat.report.runs import RunSummary
from defeat.settings import Role, option

NOISE = 1.0  # AP points; repeating one training with other seeds moves its AP by half a point to a point
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
# Settings that two compared runs must share, beside what came of them.
SETTINGS = {
    one.name
    for one in fields(TrainSettings)
    if one.metadata["compared"] and one.metadata["role"] not in (Role.OUTPUT, Role.CELL)
}


@dataclass(frozen=True)
class Verdict:
    """What a distilled run shows when it is held against the same student trained alone.

    Attributes:
        distilled: the distilled run.
        alone: the student alone, None when no comparable run was given.
        teacher: the teacher's run, None when it was not given or was measured on other data.
        gain: AP points won (lost, when negative); None when it cannot be claimed.
        gap_closed: part of the teacher's lead that was won, in percent; None without a gain or a lead of a point.
        over_images: where the gain lies if the test set is drawn anew (95 %); None when a run kept no detections.
        sentence: the answer in words.
        caution: what one seed cannot tell; empty when nothing is claimed.
    """

    distilled: RunSummary
    alone: RunSummary | None
    teacher: RunSummary | None
    gain: float | None
    gap_closed: float | None
    sentence: str
    caution: str = ""
    over_images: Interval | None = None


def roles(runs: Sequence[RunSummary]) -> list[str]:
    """What each run is: `teacher`, `student alone` or `distilled (METHOD)`.

    A run is a teacher when a distilled run among the others had its weights as teacher, wherever it lies now.
    """
    distilled = [run for run in runs if run.command == "distill"]
    found = []
    for run in runs:
        if run.command == "distill":
            found.append(f"distilled ({run.method or 'unknown method'})")
        else:
            found.append("teacher" if any(_taught(run, one) for one in distilled) else "student alone")
    return found


def differences(run: RunSummary, other: RunSummary) -> list[str]:
    """What makes two runs incomparable, in words: values that differ, and values that were not recorded."""
    found = []
    for attribute, word in COMPARED.items():
        if attribute == "steps" and run.settings.get("patience") and other.settings.get("patience"):
            continue  # with --patience each run ends when it has learned enough; the settings are compared below
        mine, theirs = getattr(run, attribute), getattr(other, attribute)
        if mine in (None, "") or theirs in (None, ""):
            found.append(f"{word} (not recorded)")
        elif mine != theirs:
            found.append(f"{word} ({mine} and {theirs})")
    if run.settings and other.settings:
        earlier = earlier_defaults()
        for name in sorted(SETTINGS & (run.settings.keys() | other.settings.keys())):
            mine, theirs = (one.settings.get(name, earlier.get(name)) for one in (run, other))
            if mine != theirs:
                found.append(f"{option(name)} ({mine} and {theirs})")
    return found


def verdicts(runs: Sequence[RunSummary]) -> list[Verdict]:
    """Judge each distilled run, in the order given."""
    by_role = list(zip(runs, roles(runs), strict=True))
    students = [run for run, role in by_role if role == "student alone"]
    return [_judge(run, students, teacher_of(run, runs)) for run in runs if run.command == "distill"]


def teacher_of(run: RunSummary, runs: Sequence[RunSummary]) -> RunSummary | None:
    """The run that taught a distilled one, if it is among the others."""
    return next((other for other in runs if other is not run and _taught(other, run)), None)


def _taught(teacher: RunSummary, run: RunSummary) -> bool:
    """Whether a run is the teacher of a distilled one: by its weights, or by its folder where none are recorded."""
    if teacher.fingerprint and run.teacher_fingerprint:
        return teacher.fingerprint == run.teacher_fingerprint
    return bool(run.teacher) and Path(run.teacher or "").resolve() == teacher.folder.resolve()


def _judge(run: RunSummary, students: Sequence[RunSummary], teacher: RunSummary | None) -> Verdict:
    if not students:
        words = f"{run.name}: whether distillation helped cannot be said without a run of the same student alone."
        return Verdict(run, None, teacher, None, None, words)
    alone = min(students, key=lambda student: len(differences(run, student)))
    different = differences(run, alone)
    if different:
        words = f"{run.name} and {alone.name} cannot be compared, they differ in: {', '.join(different)}."
        return Verdict(run, None, teacher, None, None, words)
    distilled_ap, alone_ap = run.metrics.get("AP"), alone.metrics.get("AP")
    if distilled_ap is None or alone_ap is None:
        words = f"{run.name} and {alone.name} cannot be compared: the AP of one of them is not known."
        return Verdict(run, alone, teacher, None, None, words)
    gain = distilled_ap - alone_ap
    words = (
        f"{run.name}: {_change(gain)} AP points against the same student alone ({alone_ap:.1f} to {distilled_ap:.1f})"
    )
    teacher = teacher if teacher is not None and _same_test(run, teacher) else None
    lead = lead_over(alone_ap, None if teacher is None else teacher.metrics.get("AP"))
    gap_closed = 100 * gain / lead if lead is not None and gain > 0 else None
    if gap_closed is not None and teacher is not None:
        words += f", {gap_closed:.0f} % of the gap to its teacher ({teacher.metrics['AP']:.1f})"
    samples = Bootstrap(run, SAMPLES).gain([(alone, run)])
    over_images = None if samples is None else interval_over_images(np.nanmean(samples, axis=1))
    caution = _caution(gain, over_images, run.images)
    if over_images is not None and over_images.holds_zero:
        words += ": not shown"
    return Verdict(run, alone, teacher, gain, gap_closed, words + ".", caution, over_images)


def _change(gain: float) -> str:
    return f"{gain:+.1f}" if abs(gain) >= 0.05 else "0.0"


def _same_test(run: RunSummary, teacher: RunSummary) -> bool:
    return bool(run.data_fingerprint) and (run.data_fingerprint, run.split) == (teacher.data_fingerprint, teacher.split)


def lead_over(alone_ap: float, teacher_ap: float | None) -> float | None:
    """AP points by which a teacher leads; None when that is less than the noise of one training."""
    lead = None if teacher_ap is None else teacher_ap - alone_ap
    return lead if lead is not None and lead >= NOISE else None


def _caution(gain: float, over_images: Interval | None, images: int | None) -> str:
    text = ""
    if over_images is not None:
        text = f"95 % interval over the {images} test images: {words_of(over_images)} AP. "
        if over_images.holds_zero:
            text += "It holds zero, so other test images could show no change. "
    if abs(gain) < NOISE:
        return text + "One seed each: differences of this size can be noise. Repeat both runs with more seeds."
    return text + (
        "One seed each: differences below about half a point to a point can be noise, and more on a small split; "
        "more seeds make this figure certain."
    )
