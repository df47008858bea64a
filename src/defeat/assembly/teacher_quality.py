"""Whether a teacher is worth distilling, judged by its own training before the student trains."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defeat.detector import Detector, TeacherNetwork
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.optimisation import COSINES
from defeat.errors import InputError

RISING = 1.0  # AP points over the last third of a training that had not converged
LONGER = 2.0  # times the student's epochs that a teacher should have been trained for, unless its AP was flat
LARGER = 1.1  # times the student's parameters that a teacher should have; 1.3 times taught 8 AP on voc15
ABLE = 40.0  # AP50 on images of the training split, many of which the teacher has seen


def teacher_doubts(
    source: str, teacher: TeacherNetwork, student: Detector, epochs: int, ap50: float | None = None
) -> list[str]:
    """Reasons to expect little from a teacher, each with advice.

    Distillation can only transfer the teacher's lead over the baseline. The lead is small where the teacher was trained
    for hardly more epochs than the student, has hardly more parameters, or has a low AP on images that it may have been
    trained on.

    Args:
        source: run directory of the teacher, or the name of a published model.
        teacher: the trained detector.
        student: the detector to train.
        epochs: epochs of the student.
        ap50: AP50 of the teacher on a sample of the training images, 0..100; None where it was not measured.

    Returns:
        Sentences; empty where there is no reason.
    """
    # Under a cosine schedule AP rises until the learning rate is zero, however long the training.
    doubts = _doubts_about_training(_results(source), epochs, _schedule(source) in COSINES)
    teacher_size, student_size = (
        sum(weight.numel() for weight in network.parameters()) for network in (teacher, student)
    )
    if 0 < teacher_size < LARGER * student_size:  # 0: a teacher that only gives boxes
        doubts.append(
            f"The teacher has {teacher_size / 1e6:.1f} M parameters and the student {student_size / 1e6:.1f} M: a "
            "teacher of nearly the student's size leads by little. Take a larger --backbone for the teacher."
        )
    if ap50 is not None and ap50 < ABLE:
        doubts.append(
            f"The teacher reaches AP50 {ap50:.1f} on images of the training split, many of which it may have seen: it "
            "has little to teach. Train it longer, at a larger --size, or check its classes."
        )
    return doubts


def _doubts_about_training(results: Mapping[str, Any], epochs: int, falls_to_zero: bool = False) -> list[str]:
    curve = [point for point in results.get("curve") or () if point.get("AP") is not None]
    ended = results.get("ended") or {}
    trained = ended.get("epoch") or results.get("epochs")
    doubts = []
    rise = None if falls_to_zero else _late_rise(curve)
    if rise is not None and rise[1] - rise[0] >= RISING:
        doubts.append(
            f"The teacher's AP was still rising when its training ended ({rise[0]:.1f} to {rise[1]:.1f} over the last "
            "third): a longer training makes a better teacher. `defeat train --patience 5` trains until AP is flat."
        )
    flat = ended.get("reason") == "patience" or (rise is not None and rise[1] - rise[0] < RISING)
    if trained and not flat and trained < LONGER * epochs:
        doubts.append(
            f"The teacher was trained for {trained:g} epochs and the student will be for {epochs}: its lead over the "
            "baseline may be too small for distillation to help. Train it until its AP is flat "
            "(`defeat train --patience 5`)."
        )
    return doubts


def _late_rise(curve: list[Mapping[str, Any]]) -> tuple[float, float] | None:
    """AP at two thirds of a training and at its end; None where there are too few evaluations."""
    if len(curve) < 4:
        return None
    late = 2 / 3 * curve[-1]["step"]
    before = max((point for point in curve if point["step"] <= late), key=lambda point: point["step"], default=None)
    return None if before is None else (before["AP"], curve[-1]["AP"])


def _schedule(source: str) -> str | None:
    """Learning rate schedule of the teacher; None where it is not known."""
    try:
        return str(RunDirectory(source).read_config().get("schedule"))
    except InputError:
        return None


def evaluated_ap50(source: str) -> float | None:
    """AP50 of a teacher on the images that its own run was evaluated on, 0..100; None where it is not recorded."""
    metrics = _results(source).get("metrics")
    accuracy = metrics.get("AP50") if isinstance(metrics, dict) else None
    return float(accuracy) if isinstance(accuracy, int | float) else None


def _results(source: str) -> dict[str, Any]:
    """Final figures of the teacher's run; empty where there are none."""
    try:
        content = json.loads((Path(source) / "results.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
