"""The start of a run whose student inherits: done once, and kept in the run's folder for those who resume it."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from defeat.assembly.settings import DistillSettings
from defeat.detector import Detector, TeacherNetwork
from defeat.distillation import ClassMap
from defeat.distillation.inheritance import Inheritance, inherit
from defeat.engine.checkpoint import RunDirectory, is_writer
from defeat.errors import InputError
from defeat.files import write_into

FILE = "inherited.json"


def inherit_from(
    teacher: TeacherNetwork, student: Detector, classes: ClassMap, settings: DistillSettings, console: Console
) -> Inheritance:
    """Let a student begin with weights of its teacher; one that goes on from a checkpoint has them already.

    Args:
        teacher: a trained detector.
        student: the detector that is changed.
        classes: maps the student's classes to the teacher's.
        settings: of the run.
        console: where to say what was taken.

    Raises:
        InputError: the settings ask for what the pair can't do.
    """
    if settings.resume and RunDirectory(settings.out).checkpoint.is_file():
        return _read(Path(settings.out) / FILE)
    if isinstance(teacher, Detector):
        inherited = inherit(student, teacher, classes, settings.inherit)
    elif settings.inherit in ("none", "auto"):
        inherited = Inheritance(reason="the teacher is a network of another kind")
    else:
        raise InputError(f"--inherit {settings.inherit} can't be done: the teacher is a network of another kind.")
    for sentence in inherited.describe():
        console.print(sentence, highlight=False, markup=False)
    return inherited


def keep(inherited: Inheritance | None, folder: Path) -> None:
    """Write what was inherited into the folder of a run that begins."""
    if inherited is not None and is_writer():
        write_into(folder, FILE, (json.dumps(asdict(inherited), indent=2) + "\n").encode())


def _read(path: Path) -> Inheritance:
    """What was inherited when the run began; nothing for a run of a time when there was no such thing."""
    try:
        content = json.loads(path.read_text())
        return Inheritance(**content | {"parts": tuple(content["parts"])})
    except (OSError, ValueError, TypeError, KeyError):
        return Inheritance()
