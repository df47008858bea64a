"""Builds the method for a student and its teacher, or its teachers."""

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console

from defeat.assembly.objects import MethodFactory
from defeat.assembly.settings import DistillSettings
from defeat.detector import Detector, TeacherEnsemble, TeacherNetwork
from defeat.detector.teacher import can_predict
from defeat.distillation import Method, build_method, renamed_classes
from defeat.distillation.joint import Joint
from defeat.errors import InputError, first_line
from defeat.types import DetectorInfo


def pair(
    student: Detector,
    teacher: TeacherNetwork,
    settings: DistillSettings,
    console: Console,
    given: Method | MethodFactory | None = None,
) -> Method:
    """Build the method for a pair; its initial weights depend on the seed, and the global random state does not change.

    Args:
        student: the detector to train.
        teacher: a trained detector.
        settings: name and options of the method, and the class map.
        console: where to print what the pair leaves out.
        given: a method, or a callable that builds one, instead of a name.

    Raises:
        InputError: the pair lacks what the method needs, or a given method is for another pair.
    """
    known = renamed_classes(teacher.info, student.info.classes, settings.class_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if isinstance(teacher, TeacherEnsemble):
            method: Method = _joint(student, teacher, known, settings, given)
        else:
            method = _single(student, known, settings, given)
    if "detections" in method.needs and not can_predict(teacher):
        raise InputError(
            "The method reads boxes that the teacher detects in each step, and this teacher can't detect any."
        )
    method.adapt_in(lower_precision(settings))
    for note in [*method.classes.describe(), *method.notes]:
        console.print(note, style="yellow", highlight=False)
    return method


def _single(
    student: Detector, teacher: DetectorInfo, settings: DistillSettings, given: Method | MethodFactory | None
) -> Method:
    """The method for a single teacher, with its classes renamed to the student's names."""
    if given is None:
        return build_method(settings.method, student.info, teacher, settings.method_options)
    method = _given(given, student.info, teacher, settings.method_options)
    if not isinstance(method, Method):
        raise InputError(
            f"method must be a name, a Method, or a callable that builds one, not a {type(method).__name__}."
        )
    if (method.student, method.teacher) != (student.info, teacher):
        raise InputError("method was built for other detectors: build it with `student.info` and `teacher.info`.")
    return method


def _given(
    given: Method | MethodFactory, student: DetectorInfo, teacher: DetectorInfo, options: Mapping[str, Any]
) -> Method:
    """The user's method, or what the user's callable builds with the options."""
    if isinstance(given, Method):
        if options:
            raise InputError(
                "method_options are for a method that is named or built here; this Method has its options."
            )
        return given
    try:
        return given(student, teacher, **options)
    except TypeError as error:
        if not options:
            raise
        raise InputError(f"method can't be built with these method_options ({first_line(error)}).") from error


def _joint(
    student: Detector,
    teacher: TeacherEnsemble,
    known: DetectorInfo,
    settings: DistillSettings,
    given: Method | MethodFactory | None,
) -> Joint:
    """The method for several teachers: one for each."""
    if isinstance(given, Method):
        raise InputError("Several teachers need a method each: give method as a name, or as a callable that builds it.")
    parts = []
    for member in teacher.members:
        names = {name: ours for name, ours in settings.class_names.items() if name in member.info.classes}
        info = renamed_classes(member.info, student.info.classes, names)
        parts.append(_single(student, info, settings, given))
    return Joint(student.info, known, parts, settings.teacher_shares)


def lower_precision(settings: DistillSettings) -> torch.dtype | None:
    """Precision of distillation, where it differs from that of the run."""
    return torch.bfloat16 if settings.distill_precision == "bf16" else None
