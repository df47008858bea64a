"""Teachers that only give boxes: from settings or Python objects, and what a run can learn from them."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor

from defeat.assembly.foreign import own_object
from defeat.assembly.objects import MethodFactory
from defeat.assembly.settings import BOX_FILES, DistillSettings, gives_boxes
from defeat.data import DetectionDataset
from defeat.data.formats.coco import categories_of
from defeat.data.results import Description, read_results
from defeat.data.unlabelled import image_paths
from defeat.detector import (
    BoxNetwork,
    BoxTeacher,
    Detector,
    PredictedBoxes,
    StoredBoxes,
    TappedTeacher,
    TeacherEnsemble,
    TeacherNetwork,
)
from defeat.detector.exported import described_file, is_exported
from defeat.detector.onnx_boxes import OnnxTeacher, read_onnx_description
from defeat.detector.teacher import Teacher, can_predict, has_stored
from defeat.distillation import Method, find_method
from defeat.errors import InputError
from defeat.types import Detections, Target

PSEUDO_LABELS = 0.5  # lowest score of a pseudo-label where none is set
NO_METHOD = "none"

Sample = list[tuple[Tensor, Target]]


def named_box_teacher(settings: DistillSettings, console: Console) -> BoxNetwork | None:
    """The teacher of `--teacher boxes:FILE`, `onnx:FILE` or `FILE.py:FACTORY`; None where the settings name another.

    Raises:
        InputError: a file can't be read or is not valid.
    """
    if not gives_boxes(settings.teacher, settings.teacher_taps):
        return None
    prefix, _, path = settings.teacher.partition(":")
    if prefix not in BOX_FILES:
        return _own_teacher(settings.teacher)
    if prefix == "onnx":
        if settings.teacher_description is None:
            exported = described_file(path) if is_exported(path) and Path(path).is_file() else None
            if exported is not None:
                return PredictedBoxes(exported)
            raise InputError(
                f"--teacher {settings.teacher} needs --teacher-description, a YAML file with its classes, the "
                "preparation of images and the layout of its outputs."
            )
        return PredictedBoxes(OnnxTeacher(path, read_onnx_description(settings.teacher_description)))
    results = read_results(path, settings.teacher_description, _categories(settings))
    for note in results.notes:
        console.print(note, style="yellow", highlight=False, markup=False)
    return StoredBoxes(results)


def _own_teacher(name: str) -> BoxNetwork:
    teacher = own_object(name)
    if not isinstance(teacher, BoxTeacher):
        raise InputError(
            f"--teacher {name} returns a {type(teacher).__name__}: name the feature maps of a network with "
            "--teacher-taps, or return an object with `classes` and `predict`, which only gives boxes."
        )
    return PredictedBoxes(teacher)


def _categories(settings: DistillSettings) -> Description | None:
    """Categories of the training data by id, if it is COCO."""
    if settings.teacher_description is not None or not Path(settings.data).exists():
        return None
    described = categories_of(Path(settings.data), settings.split)
    return None if described is None else Description(described[0], categories=described[1])


def as_network(teacher: object) -> TeacherNetwork:
    """A teacher given in Python.

    Raises:
        InputError: it is none.
    """
    if isinstance(teacher, Detector | TappedTeacher | TeacherEnsemble | BoxNetwork):
        return teacher
    if isinstance(teacher, list) and teacher:
        networks: Any = [as_network(member) for member in teacher]
        return TeacherEnsemble(networks) if len(networks) > 1 else networks[0]
    if isinstance(teacher, Teacher) and isinstance(teacher, torch.nn.Module):  # of the user
        return cast(TeacherNetwork, teacher)
    if isinstance(teacher, BoxTeacher):
        return PredictedBoxes(teacher)
    if callable(teacher) and not isinstance(teacher, torch.nn.Module | type):
        raise InputError("A function has no class names: give teacher=defeat.BoxFunction(function, classes=[...]).")
    raise InputError(
        f"teacher is a {type(teacher).__name__}: give a path, a Detector, a network as a TappedTeacher, or a "
        "BoxTeacher, an object with `classes` and `predict`."
    )


def kind_of(teacher: TeacherNetwork) -> str:
    """What a teacher is, in words."""
    if isinstance(teacher, BoxNetwork):
        return f"boxes only: {teacher.kind}"
    if isinstance(teacher, TeacherEnsemble):
        return f"{len(teacher.members)} teachers"
    return "detector" if isinstance(teacher, Detector) else "feature maps of a network"


def learns_boxes(settings: DistillSettings, teacher: BoxNetwork, given: Method | MethodFactory | None = None) -> bool:
    """Whether the method learns from the boxes of a teacher on the images of each step.

    Args:
        settings: settings of the run.
        teacher: gives boxes only.
        given: the method, if it is an object.
    """
    method: Any = find_method(settings.method) if given is None else given
    return bool(getattr(method, "reads_boxes_only", False)) and can_predict(teacher)


def for_box_teacher(
    settings: DistillSettings, given: Method | MethodFactory | None = None
) -> tuple[DistillSettings, tuple[str, ...]]:
    """Settings of a run whose teacher only gives boxes, and what was changed or left out, in sentences.

    Args:
        settings: settings of the run.
        given: the method, if it is an object.

    Raises:
        InputError: nothing would be learned from the teacher, or the settings need its feature maps.
    """
    if given is not None and getattr(given, "reads", None) != ():
        raise InputError("The teacher only gives boxes, which no method reads: leave out the method.")
    if settings.cache_teacher is not None:
        raise InputError("--cache-teacher keeps feature maps, and this teacher only gives boxes: leave it out.")
    if not settings.unlabelled_per_batch:
        asked = "" if settings.method in (NO_METHOD, DistillSettings.method) else f", not of --method {settings.method}"
        raise InputError(
            "The teacher only gives boxes, which are learned as pseudo-labels of images without annotations"
            f"{asked}: name a folder of such images with --unlabelled."
        )
    notes = []
    if settings.method != NO_METHOD and given is None:
        notes.append(
            f"The teacher only gives boxes: the method {settings.method}, which reads more than boxes, is left out. "
            "The student learns the boxes as pseudo-labels."
        )
        settings = replace(settings, method=NO_METHOD, method_options={})
    if settings.pseudo_labels is None:
        notes.append(f"--pseudo-labels is not given: boxes with a score of {PSEUDO_LABELS:g} or more are learned.")
        settings = replace(settings, pseudo_labels=PSEUDO_LABELS)
    return settings, tuple(notes)


def stored_sample(
    teacher: TeacherNetwork, training: DetectionDataset, count: int, unlabelled: str | None
) -> tuple[Sample, list[Detections] | None]:
    """A sample of the training images to check a teacher on, with its detections if it has them already.

    Args:
        teacher: the teacher; one with stored detections is checked on images that it has seen.
        training: the training images.
        count: number of images, if there are as many.
        unlabelled: folder of images without annotations. A training image that has the name of one of them is left
            out, because the detections are those of the other.
    """
    if not has_stored(teacher):
        return training.evenly_spaced(count), None
    names, sizes = list(training.samples.names), training.sizes
    others = [] if unlabelled is None else [path.relative_to(unlabelled).as_posix() for path in image_paths(unlabelled)]
    seen = [index for index, is_seen in enumerate(teacher.has_seen(names, sizes, others)) if is_seen]
    count = min(count, len(seen))
    chosen = [seen[number * len(seen) // count] for number in range(count)]
    stored = teacher.stored([names[index] for index in chosen], [sizes[index] for index in chosen])
    return [training[index] for index in chosen], [detections for detections in stored if detections is not None]
