"""Inheritance at the start of a run: done once, and recorded in the run directory for resumed runs."""

import json
from pathlib import Path

from rich.console import Console

from defeat.assembly.settings import DistillSettings
from defeat.assembly.students import starts_from_run
from defeat.detector import BoxNetwork, Detector, TeacherNetwork, first_of
from defeat.distillation import ClassMap
from defeat.distillation.inheritance import Inheritance, inherit
from defeat.engine.checkpoint import RunDirectory
from defeat.errors import InputError

FILE = "inherited.json"


def inherit_from(
    teacher: TeacherNetwork, student: Detector, classes: ClassMap, settings: DistillSettings, console: Console
) -> Inheritance:
    """Copy weights of the teacher into the student; a run that resumes from a checkpoint has them already.

    Args:
        teacher: a trained detector, or several, of which the first is inherited from.
        student: the detector to change.
        classes: maps the classes of that teacher to the student's.
        settings: settings of the run.
        console: where to print what was inherited.

    Raises:
        InputError: the pair can't do what `settings.inherit` asks for.
    """
    if settings.resume and RunDirectory(settings.out).checkpoint.is_file():
        return _read(Path(settings.out) / FILE)
    source = settings.weights if starts_from_run(settings) else settings.student_from
    if settings.inherit == "auto" and source is not None:
        return Inheritance(reason=f"the student starts with the weights of {source}")
    first = first_of(teacher)
    missing = "only gives boxes" if isinstance(teacher, BoxNetwork) else "is not a detector of this library"
    if isinstance(first, Detector):
        inherited = inherit(student, first, classes, settings.inherit)
    elif settings.inherit in ("none", "auto"):
        inherited = Inheritance(reason=f"the teacher {missing}")
    else:
        raise InputError(f"--inherit {settings.inherit} is not possible: the teacher {missing}.")
    for sentence in inherited.describe():
        console.print(sentence, highlight=False, markup=False)
    return inherited


def _read(path: Path) -> Inheritance:
    """What was inherited when the run began; nothing where it is not recorded."""
    try:
        content = json.loads(path.read_text())
        return Inheritance(**content | {"parts": tuple(content["parts"])})
    except (OSError, ValueError, TypeError, KeyError):
        return Inheritance()
