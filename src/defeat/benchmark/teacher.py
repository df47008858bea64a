"""The teacher of a comparison: evaluated once, on the split on which all cells are evaluated."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from defeat.assembly.assemble import evaluation_split, load_teacher
from defeat.assembly.settings import DistillSettings
from defeat.benchmark.matrix import Matrix
from defeat.detector.teacher import PredictingTeacher, can_predict
from defeat.distillation import ClassMap, renamed_classes
from defeat.engine.devices import training_device
from defeat.engine.guards import fingerprint
from defeat.errors import InputError
from defeat.evaluation.detections import save_detections
from defeat.evaluation.evaluator import Evaluator
from defeat.evaluation.splits import detect_split
from defeat.files import write_atomically
from defeat.report.runs import RunSummary, read_run

TEACHER, TEACHER_DETECTIONS = "teacher.json", "teacher.safetensors"


def evaluate_teacher(matrix: Matrix, console: Console) -> None:
    """Evaluate the teacher and write `teacher.json`, unless the folder has it; a teacher that can't predict has no AP.

    Raises:
        InputError: the folder was started with a teacher that has other weights.
    """
    path = matrix.folder / TEACHER
    settings = DistillSettings(**matrix.settings, out=str(matrix.folder))
    teacher = load_teacher(settings)
    weights = fingerprint(teacher)
    if path.is_file():
        if read_teacher(matrix.folder).get("fingerprint") not in (None, weights):
            raise InputError(
                f"{matrix.folder} was started with another teacher: the weights of {settings.teacher} have changed. "
                "Give another --out."
            )
        return
    split = evaluation_split(settings, settings.source)
    metrics: dict[str, Any] = {"metrics": {}}
    teacher = teacher.to(training_device(settings))
    if can_predict(teacher) and teacher.info.classes:
        evaluator = _detect(teacher, settings, split, console)
        save_detections(matrix.folder / TEACHER_DETECTIONS, evaluator)
        metrics = evaluator.compute().to_dict()
    else:
        note = "The teacher gives no detections of known classes: its AP and the gap closed are unknown."
        console.print(note, style="yellow", highlight=False)
    origin = {"teacher": settings.teacher, "fingerprint": weights, "split": split}
    write_atomically(path, (json.dumps(metrics | origin, indent=2) + "\n").encode())


def _detect(teacher: PredictingTeacher, settings: DistillSettings, split: str, console: Console) -> Evaluator:
    names = tuple(settings.classes or settings.source.class_names(settings.split))
    classes = ClassMap(names, renamed_classes(teacher.info, names, settings.class_names).classes)
    return detect_split(teacher, settings.source, split, settings.batch_size, settings.workers, console, classes)


def read_teacher(folder: Path) -> dict[str, Any]:
    """Read the teacher's metrics and fingerprint from the folder of a comparison.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / TEACHER
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        if isinstance(content["metrics"], dict):
            return content
    except OSError as error:
        raise InputError(f"{path} is missing: repeat `defeat bench` with that folder, which writes it.") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} is damaged; delete it and repeat `defeat bench` with that folder.")


def require_one_teacher(fingerprints: Mapping[str, str | None]) -> None:
    """Refuse folders whose students had teachers with different weights; folders without a fingerprint are skipped.

    Raises:
        InputError: naming two such folders.
    """
    known = {folder: weights for folder, weights in fingerprints.items() if weights}
    first = next(iter(known), "")
    for folder, weights in known.items():
        if weights != known[first]:
            raise InputError(
                f"{first} and {folder} belong to teachers with different weights, so their gains can't be compared."
            )


def teacher_run(matrix: Matrix) -> RunSummary | None:
    """The teacher's run; None for a teacher that is not a run directory, or where the directory is missing."""
    try:
        return read_run(matrix.settings["teacher"])
    except InputError:
        return None
