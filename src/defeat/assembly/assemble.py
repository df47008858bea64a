"""Builds an experiment from settings: data, student, teacher, method."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.console import Console

from defeat.assembly.automatic import Choices, choose, optimizer_advice
from defeat.assembly.box_teachers import (
    as_network,
    for_box_teacher,
    kind_of,
    learns_boxes,
    named_box_teacher,
    stored_sample,
)
from defeat.assembly.earlier import recorded_settings
from defeat.assembly.foreign import tapped_teacher
from defeat.assembly.inheriting import inherit_from
from defeat.assembly.objects import Objects
from defeat.assembly.pairing import lower_precision, pair
from defeat.assembly.settings import FREE_IN_RESUMED, DistillSettings, TrainSettings
from defeat.assembly.students import build_student, with_given_architecture
from defeat.assembly.teacher_quality import teacher_doubts
from defeat.assembly.unlabelled import detect_unlabelled
from defeat.data import DetectionDataset
from defeat.data.dataset import shared_images
from defeat.data.source import EVALUATION_SPLITS, DataSource
from defeat.detector import BoxNetwork, Detector, TeacherEnsemble, TeacherNetwork, load_detector
from defeat.detector.devices import moved
from defeat.detector.frozen import frozen
from defeat.detector.teacher import gives_detections
from defeat.distillation import Method
from defeat.distillation.class_map import listed
from defeat.distillation.inheritance import Inheritance
from defeat.distillation.joint import Joint
from defeat.engine.devices import require_devices, training_device
from defeat.engine.experiment import Distillation, Experiment, Record
from defeat.engine.guards import fingerprint, require_accurate_teacher
from defeat.engine.loggers import require_loggers
from defeat.errors import InputError

TEACHER_SAMPLE = 48  # training images on which the teacher is checked


@dataclass(frozen=True)
class Lessons:
    """What is known about teacher and student before the first step.

    Attributes:
        kind: what the teacher is, in words.
        inherited: weights that the student inherited from the teacher.
        teacher_ap50: AP50 of the teacher on a sample of the training images, 0..100; None where it was not measured.
        doubts: reasons to expect little from the teacher, in sentences.
        notes: what a teacher that only gives boxes changes or leaves out, in sentences.
    """

    kind: str
    inherited: Inheritance
    teacher_ap50: float | None = None
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Assembly:
    """An experiment with the settings from which it was built.

    Attributes:
        settings: settings with values in place of `auto`.
        experiment: built from them; its teacher is not frozen yet.
        choices: the values chosen for `auto`.
        lessons: facts about teacher and student; None without a teacher.
        training_images_evaluated: number of evaluation images that are training images; None without evaluation.
    """

    settings: TrainSettings
    experiment: Experiment
    choices: Choices = field(default_factory=Choices)
    lessons: Lessons | None = None
    training_images_evaluated: int | None = None


def assemble(
    settings: TrainSettings, console: Console, unlabelled: int | None = None, given: Objects | None = None
) -> Assembly:
    """Build everything that a run needs.

    The teacher's detections in images without annotations are written into the run directory.

    Args:
        settings: `DistillSettings` for distillation, else `TrainSettings`.
        console: where to print notes about the data and the pair.
        unlabelled: number of images without annotations to run the teacher on, without writing; None for all.
        given: objects that replace settings.

    Raises:
        InputError: the settings, the data or the pair is not valid.
    """
    given = given or Objects()
    if given.student is not None and settings.student_from is not None:
        raise InputError("student_from names the architecture of a student that is built: leave it out, or student.")
    settings = with_given_architecture(given.described(settings))
    named = settings.distillation
    if named is not None and named.balance is not None and given.method is not None:
        raise InputError("balance sets the weights of a method that is given by its name, not of an object.")
    check_devices(settings)
    require_loggers(settings)
    training, evaluation = _splits(settings, console, given)
    shared = None if evaluation is None else shared_images(training, evaluation)
    for warning in [] if evaluation is None else evaluation_warnings(evaluation, shared or 0):
        console.print(warning, style="yellow", highlight=False, markup=False)
    teacher = None if given.teacher is None else as_network(given.teacher)
    box_notes: tuple[str, ...] = ()
    if named is not None:
        teacher = load_teacher(named, console) if teacher is None else teacher
        if isinstance(teacher, BoxNetwork) and not learns_boxes(named, teacher, given.method):
            settings, box_notes = for_box_teacher(named, given.method)
    choices = choose(settings, training, teacher, 0 if evaluation is None else len(evaluation))
    settings = choices.applied(settings)
    student = _student(settings, training, given)
    for note in [*student.notes, *optimizer_advice(settings), *box_notes]:
        console.print(note, style="yellow", highlight=False, markup=False)
    distillation, lessons = None, None
    named = settings.distillation
    if named is not None and teacher is not None:
        method = pair(student, teacher, named, console, given.method)
        distillation, lessons = _distillation(named, student, teacher, method, training, console, unlabelled)
        lessons = replace(lessons, notes=box_notes)
    experiment = Experiment(
        student=student,
        training=training,
        evaluation=evaluation,
        optimisation=settings,
        selection=settings,
        logging=settings,
        devices=settings,
        augmentation=settings.augmentation,
        workers=settings.workers,
        distillation=distillation,
        record=record_of(settings),
    )
    return Assembly(settings, experiment, choices, lessons, shared)


def record_of(settings: TrainSettings) -> Record:
    """The record of a run with these settings for its run directory."""
    return Record(settings.command, settings.to_dict(), FREE_IN_RESUMED, recorded_settings, settings.resume)


def load_teacher(settings: DistillSettings, console: Console | None = None) -> TeacherNetwork:
    """Load the teacher that the settings name.

    Args:
        settings: settings of the run.
        console: where to print notes about its files; None for nowhere.

    Raises:
        InputError: it can't be loaded.
    """
    if len(settings.teachers) > 1:
        alone = [replace(settings, teacher=name, teacher_shares=None) for name in settings.teachers]
        members: Any = [load_teacher(each, console) for each in alone]
        return TeacherEnsemble(members)
    boxes = named_box_teacher(settings, console or Console(quiet=True))
    if boxes is not None:
        return boxes
    if settings.teacher_taps is not None:
        return tapped_teacher(settings.teacher, settings.teacher_taps)
    return load_detector(settings.teacher, settings.teacher_weights)


def _splits(
    settings: TrainSettings, console: Console, given: Objects
) -> tuple[DetectionDataset, DetectionDataset | None]:
    known = None if given.student is None else given.student.info.classes
    classes = known if settings.classes is None else settings.classes
    source = settings.source
    training = given.training(classes, settings)
    if training is None:
        training = source.open(settings.split, classes, console)
    evaluation = given.evaluation(training.classes, settings)
    if evaluation is None and given.data is None:
        split = evaluation_split(settings, source)
        settings.require_no_choice_on(split)
        evaluation = source.open(split, training.classes, console)
    for dataset in (training, evaluation):
        if dataset is not None and (problems := dataset.report()) is not None:
            console.print(f"{dataset.split}: {problems}", style="yellow", highlight=False, markup=False)
    return training, evaluation


def evaluation_warnings(evaluation: DetectionDataset, shared: int) -> list[str]:
    """What makes the AP of an evaluation split say nothing, in sentences.

    Args:
        evaluation: the split.
        shared: number of its images that are training images.
    """
    warnings = []
    if not len(evaluation.table.labels):
        warnings.append(
            f"No image of the split {evaluation.split!r} contains an object: its AP will be n/a. Name another split "
            "with --eval-split, or hold out a share of the training images with --hold-out 0.2."
        )
    if shared:
        warnings.append(
            f"{shared} of the {len(evaluation)} images of {evaluation.split!r} are training images, so that its AP is "
            "too high for new images. Hold out a share with --hold-out 0.2, or name another split with --eval-split."
        )
    return warnings


def _student(settings: TrainSettings, training: DetectionDataset, given: Objects) -> Detector:
    if given.student is None:
        return build_student(settings, training.classes)
    known = tuple(given.student.info.classes)
    if known != training.classes:
        raise InputError(f"The student knows the classes {listed(known)}, and the data has {listed(training.classes)}.")
    torch.manual_seed(settings.seed)
    return given.student.train()


def _distillation(
    settings: DistillSettings,
    student: Detector,
    teacher: TeacherNetwork,
    method: Method,
    training: DetectionDataset,
    console: Console,
    unlabelled: int | None,
) -> tuple[Distillation, Lessons]:
    members = teacher.members if isinstance(teacher, TeacherEnsemble) else [teacher]
    methods = method.methods if isinstance(method, Joint) else [method]
    inherited = inherit_from(teacher, student, methods[0].classes, settings, console)
    accuracy, unchecked = None, "" if gives_detections(teacher) else "gives no detections"
    if not settings.allow_weak_teacher:
        sample, stored = stored_sample(teacher, training, TEACHER_SAMPLE, settings.unlabelled)
        with moved(teacher, training_device(settings)):
            for each, of_each in zip(members, methods, strict=True):
                accuracy = require_accurate_teacher(each, of_each.classes, sample, stored=stored)
            if len(members) > 1:
                accuracy = require_accurate_teacher(teacher, method.classes, sample)
        unchecked = unchecked if sample else "has no detections of the training images"
    if unchecked:
        note = f"The teacher {unchecked}: whether it detects anything on the data was not checked."
        console.print(note, style="yellow", highlight=False)
    doubts = tuple(
        doubt
        for name, each in zip(settings.teachers, members, strict=False)
        for doubt in teacher_doubts(name, each, student, settings.number_of_epochs, accuracy)
    )
    for doubt in doubts:
        console.print(doubt, style="yellow", highlight=False, markup=False)
    others = None
    if settings.unlabelled_per_batch:
        others = detect_unlabelled(settings, teacher, method.classes, console, unlabelled)
    distillation = Distillation(
        teacher=teacher,
        method=method,
        fingerprint=fingerprint(teacher),
        unlabelled=others,
        unlabelled_per_batch=settings.unlabelled_per_batch,
        cache=settings.cache,
        dtype=lower_precision(settings),
    )
    return distillation, Lessons(kind_of(teacher), inherited, accuracy, doubts)


def check_devices(settings: TrainSettings) -> None:
    """Refuse devices that don't exist or that the normalisation can't use, before anything is read or written.

    Raises:
        InputError: naming the option.
    """
    require_devices(settings)
    if settings.on_cpu and settings.norm == "syncbn" and settings.devices not in (1, "auto"):
        raise InputError("--norm syncbn needs GPUs when there are several devices; give bn, bn_eval, frozen or gn.")


def with_frozen_teacher(experiment: Experiment) -> Experiment:
    """The experiment with a frozen copy of the teacher, in the precision of the settings."""
    distillation = experiment.distillation
    if distillation is None:
        return experiment
    teacher = frozen(distillation.teacher, distillation.dtype)
    return replace(experiment, distillation=replace(distillation, teacher=teacher))


def evaluation_split(settings: TrainSettings, source: DataSource) -> str:
    """The evaluation split: as set, else `val` if it exists, else `test`.

    Args:
        settings: the settings.
        source: their data set.

    Raises:
        InputError: neither exists.
    """
    if settings.eval_split is not None:
        return settings.eval_split
    names = source.split_names()
    name = next((name for name in EVALUATION_SPLITS if name in names and name != settings.split), None)
    if name is None:
        raise InputError(
            f"{settings.data} has only {', '.join(names)}, and no split to evaluate on. Hold out a share of it with "
            "--hold-out 0.2, or name a split with --eval-split."
        )
    return name
