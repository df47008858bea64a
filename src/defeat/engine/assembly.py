"""Makes the parts of a run from its settings: data, student, teacher, method."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console

from defeat.data import DetectionDataset, open_dataset, split_names
from defeat.detector import Detector, DetectorSpec, build, load
from defeat.detector.devices import moved
from defeat.detector.frozen import frozen
from defeat.detector.weights import misfits
from defeat.distillation import Method, build_method, renamed_classes
from defeat.distillation.inheritance import Inheritance
from defeat.engine.devices import training_device
from defeat.engine.fitting import Choices, choose
from defeat.engine.guards import require_able_teacher
from defeat.engine.inheriting import inherit_from
from defeat.engine.loggers import require_loggers
from defeat.engine.settings import DistillSettings, TrainSettings
from defeat.engine.teacher_quality import teacher_doubts
from defeat.engine.unlabelled import detect_unlabelled
from defeat.errors import InputError

TEACHER_SAMPLE = 48  # images on which the teacher must show that it detects something


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
        training: split to train on.
        evaluation: split to evaluate on.
        student: the detector to train.
        teacher: a trained detector, None to train the student alone.
        method: turns both detectors' outputs into losses, None likewise.
        unlabelled: images that are mixed into the batches without annotations, None where there are none.
        teacher_ap50: of the teacher on a sample of the training images, 0..100; None where it was not measured.
        inherited: what the student took over from the teacher at the start; None without a teacher.
        doubts: why little can be expected of the teacher, in sentences.
        choices: values of the settings that were left to the data; what comes after needs the settings with them.
    """

    training: DetectionDataset
    evaluation: DetectionDataset
    student: Detector
    teacher: Detector | None = None
    method: Method | None = None
    unlabelled: DetectionDataset | None = None
    teacher_ap50: float | None = None
    inherited: Inheritance | None = None
    doubts: tuple[str, ...] = ()
    choices: Choices = field(default_factory=Choices)


def assemble(settings: TrainSettings, console: Console, unlabelled: int | None = None) -> Parts:
    """Make everything that a run needs; what a teacher detects in images without annotations is kept in its folder.

    Args:
        settings: `DistillSettings` for a student with a teacher, else `TrainSettings`.
        console: where to say what was found in the data and left out of the method.
        unlabelled: look at so many images without annotations only, and write nothing; None for all.

    Raises:
        InputError: something about the settings, the data or the pair is not valid.
    """
    check_devices(settings)
    require_loggers(settings)
    policy = settings.on_bad_data
    training = open_dataset(settings.data, settings.split, settings.classes, policy, console)
    split = evaluation_split(settings)
    settings.require_no_choice_on(split)
    evaluation = open_dataset(settings.data, split, training.classes, policy, console)
    for dataset in (training, evaluation):
        if (problems := dataset.report()) is not None:
            console.print(f"{dataset.split}: {problems}", style="yellow", highlight=False, markup=False)
    teacher = load(settings.teacher, settings.teacher_weights) if isinstance(settings, DistillSettings) else None
    choices = choose(settings, training, teacher)
    settings = choices.applied(settings)
    student = build_student(settings, training.classes)
    if not isinstance(settings, DistillSettings) or teacher is None:
        return Parts(training, evaluation, student, choices=choices)
    method = pair(student, teacher, settings, console)
    inherited = inherit_from(teacher, student, method.classes, settings, console)
    accuracy = None
    if not settings.allow_weak_teacher:
        with moved(teacher, training_device(settings)):
            accuracy = require_able_teacher(teacher, method.classes, training.spread(TEACHER_SAMPLE))
    doubts = tuple(teacher_doubts(settings.teacher, teacher, student, settings.epochs, accuracy))
    for doubt in doubts:
        console.print(doubt, style="yellow", highlight=False, markup=False)
    others = None
    if settings.unlabelled_per_batch:
        others = detect_unlabelled(settings, teacher, method.classes, console, unlabelled)
    return Parts(training, evaluation, student, teacher, method, others, accuracy, inherited, doubts, choices)


def check_devices(settings: TrainSettings) -> None:
    """Refuse devices that are not there, before anything is read or written.

    Raises:
        InputError: naming the option.
    """
    found = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    on_cpu = settings.accelerator == "cpu" or (settings.accelerator == "auto" and found == 0)
    if settings.accelerator == "gpu" and found == 0:
        raise InputError("--accelerator gpu: no GPU was found; give --accelerator cpu, or auto.")
    if settings.devices != "auto" and settings.devices < 1:
        raise InputError(f"--devices must be 1 or more, or auto, not {settings.devices}.")
    if not on_cpu and settings.devices != "auto" and settings.devices > found:
        raise InputError(f"--devices {settings.devices}: only {found} found; a larger --batch-size keeps the batch.")
    most = max(16, os.cpu_count() or 1)
    if on_cpu and settings.devices != "auto" and settings.devices > most:
        raise InputError(
            f"--devices {settings.devices}: each would be a process on this processor; give {most} or less."
        )
    if on_cpu and settings.norm == "syncbn" and settings.devices not in (1, "auto"):
        raise InputError("--norm syncbn needs GPUs when there are several devices; give bn, bn_eval, frozen or gn.")
    if on_cpu and settings.precision == "16-mixed":
        raise InputError("--precision 16-mixed needs a GPU; give 32-true or bf16-mixed.")


def with_frozen_teacher(parts: Parts, settings: TrainSettings) -> Parts:
    """The same parts with a copy of the teacher that does nothing but give its maps, in the precision asked for."""
    if parts.teacher is None or not isinstance(settings, DistillSettings):
        return parts
    return replace(parts, teacher=frozen(parts.teacher, lower_precision(settings)))


def lower_precision(settings: DistillSettings) -> torch.dtype | None:
    """What the settings ask for where distillation shall not compute as the rest of the run does."""
    return torch.bfloat16 if settings.distill_precision == "bf16" else None


def evaluation_split(settings: TrainSettings) -> str:
    """The split to evaluate on: as asked, else `val` if there is one, else `test`.

    Raises:
        InputError: there is neither.
    """
    if settings.eval_split is not None:
        return settings.eval_split
    names = split_names(settings.data)
    for name in ("val", "test"):
        if name in names and name != settings.split:
            return name
    found = f"only {', '.join(names)}" if names else "no split at all"
    raise InputError(f"{settings.data} has {found}: name a split to evaluate on with --eval-split.")


def build_student(settings: TrainSettings, classes: tuple[str, ...]) -> Detector:
    """Build the detector that the settings describe; the same seed gives the same first weights."""
    torch.manual_seed(settings.seed)
    spec = DetectorSpec(
        family=settings.detector,
        backbone=settings.backbone,
        classes=classes,
        size=settings.size,
        max_size=settings.long_side,
        norm=settings.norm,
        neck_channels=int(settings.number("neck_channels")),
        frozen_stages=settings.frozen_stages,
        options=settings.detector_options,
    )
    if not (Path(settings.weights) / "model.json").is_file():
        return build(spec, settings.weights)
    student, trained = build(spec, "none"), load(settings.weights)
    if wrong := misfits(student.state_dict(), trained.state_dict()):
        raise InputError(
            f"--weights {settings.weights}: its detector is another than the one to train; {len(wrong)} tensors are "
            f"missing, unknown or of another shape, e.g. {wrong[0]}."
        )
    student.load_state_dict(trained.state_dict())
    return student


def pair(student: Detector, teacher: Detector, settings: DistillSettings, console: Console) -> Method:
    """Build the method for the two; its first weights depend on the seed, and draw from no other random numbers."""
    known = renamed_classes(teacher.info, student.info.classes, settings.class_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        method = build_method(settings.method, student.info, known, settings.method_options)
    method.adapt_in(lower_precision(settings))
    for note in [*method.classes.describe(), *method.notes]:
        console.print(note, style="yellow", highlight=False)
    return method
