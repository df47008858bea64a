"""Values of the settings that are `auto`: they follow from the data, the teacher and the devices.

They are chosen before anything is built, and `config.yaml` holds them, so that a repeated or resumed run measures
nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from defeat.assembly.earlier import recorded_settings
from defeat.assembly.settings import TrainSettings
from defeat.data import DetectionDataset
from defeat.detector import Detector, TeacherNetwork, family_options, first_of, make_options
from defeat.detector.options import automatic, summaries, with_teacher_values, with_usual_values
from defeat.detector.statistics import object_statistics
from defeat.distillation import is_method, method_defaults
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.optimisation import chosen_schedule
from defeat.settings import AUTO

NECKS = {512: 256, 256: 128, 0: 64}  # lowest short side in pixels: channels
REFERENCE_IMAGES = 8  # images per step for the learning rates below
SGD_RATE, ADAMW_RATE = 0.01, 2e-4
QUANTISED_SHARE = 0.1  # of the learning rate, for a trained student that only has to adapt to rounding
EVALUATIONS_PER_IMAGE = 4  # an evaluated image takes about half the time of a trained one: an eighth of the training
LEAST_EVALUATIONS = 4  # of a run, for its learning curve
EPOCHS, MOST_EPOCHS = 12, 100
LEAST_STEPS = 300  # of a run, see docs/training.md, "Automatic settings"
PATIENT_FACTOR = 5  # of the epochs of a run that ends by itself (`--patience`)
NUMBERS = ("epochs", "neck_channels", "lr", "eval_every")
NAMES = {"schedule": "step", "optimizer": "sgd"}  # values of runs begun by versions in which they were not `auto`

Settings = TypeVar("Settings", bound=TrainSettings)


@dataclass(frozen=True)
class Choices:
    """Values for the settings that are `auto`.

    Attributes:
        family: of the detector.
        options: settings of the family, by name.
        numbers: settings of the run, by name.
        method_options: all options of the method, by name; None to leave them as they are.
        announced: whether to print them.
    """

    family: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    method_options: dict[str, Any] | None = None
    announced: bool = True

    def applied(self, settings: Settings) -> Settings:
        """Settings with these values in place of `auto`."""
        given = {name: value for name, value in settings.detector_options.items() if value != AUTO}
        options: dict[str, Any] = {"detector_options": given | self.options}
        if self.method_options is not None:
            options["method_options"] = self.method_options
        changed: Settings = replace(settings, **self.numbers, **options)
        return changed

    def without(self, *names: str) -> "Choices":
        """These choices without those for some settings of the run, which stay `auto`."""
        return replace(self, numbers={name: value for name, value in self.numbers.items() if name not in names})

    def to_dict(self) -> dict[str, Any]:
        """All values by name, for JSON."""
        return self.options | self.numbers

    def describe(self) -> str:
        """One line of text; empty where nothing was chosen."""
        if not self.to_dict() or not self.announced:
            return ""
        parts = [", ".join(summaries(family_options(self.family), self.options))] if self.options else []
        texts = {
            "epochs": "{} epoch" + "s" * (self.numbers.get("epochs") != 1),
            "neck_channels": "neck {} channels",
            "optimizer": "optimizer {}",
            "lr": "lr {:g}",
            "schedule": "schedule {}",
            "eval_every": "evaluated every {} epochs",
        }
        shown = {name: value for name, value in self.numbers.items() if (name, value) != ("eval_every", 1)}
        parts.append(", ".join(texts[name].format(value) for name, value in shown.items()))
        return "; ".join(part for part in parts if part)


def choose(
    settings: TrainSettings,
    training: DetectionDataset,
    teacher: TeacherNetwork | None = None,
    evaluated_images: int = 0,
) -> Choices:
    """Choose values for all settings that are `auto`; a resumed run keeps the values that it was begun with.

    Args:
        settings: settings of the run.
        training: training split; no image is decoded.
        teacher: None without distillation.
        evaluated_images: images of the evaluation split.

    Raises:
        InputError: an option of the detector is unknown or not valid, or the resumed run can't be read.
    """
    directory = RunDirectory(settings.out)
    if settings.resume and directory.config.exists():
        return as_begun(settings, directory.read_config())
    options = make_options(settings.detector, settings.detector_options)
    names = automatic(options)
    first = first_of(teacher)
    if isinstance(first, Detector) and first.spec.family == settings.detector:
        of_teacher = with_usual_values(make_options(first.spec.family, first.spec.options))
        same_size = (first.info.size, first.info.max_size) == (settings.size, settings.long_side)
        options = with_teacher_values(options, of_teacher, same_size)
    numbers: dict[str, Any] = {}
    epoch_steps = settings.epoch_steps(math.ceil(len(training) / (settings.batch_size * settings.processes)))
    if settings.epochs == AUTO:
        numbers["epochs"] = number_of_epochs(settings, epoch_steps)
        settings = replace(settings, epochs=numbers["epochs"])
    if settings.neck_channels == AUTO and has_pyramid(settings.detector):
        numbers["neck_channels"] = neck_channels(settings, teacher)
    if automatic(options):
        width = int(replace(settings, **numbers).number("neck_channels"))
        options = options.fitted(object_statistics(training, settings.size, settings.long_side), width)
    optimizer: str = settings.optimizer
    if optimizer == AUTO:
        optimizer = numbers["optimizer"] = published_optimizer(settings.detector)
    if settings.lr == AUTO:
        rate = learning_rate(settings.batch_size * settings.accumulate * settings.processes, optimizer)
        numbers["lr"] = rate if settings.quantise == "none" else float(f"{QUANTISED_SHARE * rate:.4g}")
    if settings.schedule == AUTO:
        steps = settings.steps(epoch_steps)
        taught = settings.distillation is not None
        numbers["schedule"] = chosen_schedule(settings, steps, settings.patience is not None, taught)
    if settings.eval_every == AUTO:
        numbers["eval_every"] = evaluation_interval(settings, len(training), evaluated_images)
    chosen = {name: getattr(options, name) for name in names}
    return Choices(settings.detector, chosen, numbers, method_options_of(settings))


def as_begun(settings: TrainSettings, begun: Mapping[str, Any]) -> Choices:
    """Values with which a resumed run was begun, for the settings that are `auto`.

    Args:
        settings: settings of the resumed run.
        begun: content of its `config.yaml`, or settings of a comparison; a missing setting had its usual value.
    """
    recorded = begun.get("detector_options")
    recorded = recorded if isinstance(recorded, dict) else {}
    names = automatic(make_options(settings.detector, settings.detector_options))
    numbers: dict[str, Any] = {name: begun.get(name) for name in _open(settings) if name in NUMBERS}
    numbers = {name: value for name, value in numbers.items() if value != AUTO}  # each cell of a comparison chooses
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            numbers[name] = settings.number(name)
    for name, earlier in NAMES.items():
        if getattr(settings, name) == AUTO:
            numbers[name] = begun.get(name, earlier)
    if getattr(settings, "inherit", None) == AUTO:
        numbers["inherit"] = begun.get("inherit", "none")
    chosen = {name: recorded[name] for name in names if name in recorded}
    method_options = method_options_of(settings, recorded_settings(begun).get("method_options"))
    return Choices(settings.detector, chosen, numbers, method_options, announced=False)


def method_options_of(settings: TrainSettings, begun: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """All options of the method: `config.yaml` names them, because later versions may have other defaults.

    Args:
        settings: settings of the run.
        begun: options with which the resumed run was begun.

    Returns:
        Options by name; None without a method, or with one that is an object.
    """
    named = settings.distillation
    if named is None or not is_method(named.method):
        return None
    if named.balance is not None:
        begun = None  # its weights were balanced; balance.json has them
    return {**method_defaults(named.method), **(begun or {}), **named.method_options}


def is_chosen(settings: TrainSettings) -> bool:
    """Whether no setting is `auto`."""
    return not _open(settings) and not automatic(make_options(settings.detector, settings.detector_options))


def _open(settings: TrainSettings) -> list[str]:
    """Names of the settings of the run that are `auto`; a detector without a pyramid has no width to choose."""
    fixed = () if has_pyramid(settings.detector) else ("neck_channels",)
    return [name for name in (*NUMBERS, *NAMES) if name not in fixed and getattr(settings, name) == AUTO]


def has_pyramid(family: str) -> bool:
    """Whether detectors of a family have a feature pyramid, whose width can be chosen."""
    return bool(getattr(family_options(family), "pyramid", True))


def neck_channels(settings: TrainSettings, teacher: TeacherNetwork | None = None) -> int:
    """Channels of the neck: the teacher's where levels have a common stride, so that its weights fit; else by size."""
    if teacher is not None:
        widths = set(teacher.info.neck.values())
        common_strides = set(family_options(settings.detector).strides) & set(teacher.info.neck)
        if len(widths) == 1 and (common_strides or teacher.info.family == settings.detector):
            return widths.pop()
    return next(channels for size, channels in NECKS.items() if settings.size >= size)


def optimizer_advice(settings: TrainSettings) -> list[str]:
    """A sentence where the family was published with another optimiser than that of the settings; else empty."""
    published = published_optimizer(settings.detector)
    if settings.optimizer == AUTO or published == settings.optimizer or published == "sgd":
        return []
    return [
        f"{settings.detector} was published with {published}, not {settings.optimizer}: give --optimizer {published}."
    ]


def published_optimizer(family: str) -> str:
    """The optimiser with which detectors of a family were published: `sgd` or `adamw`."""
    return str(getattr(family_options(family), "optimizer", "sgd"))


def number_of_epochs(settings: TrainSettings, epoch_steps: int) -> int:
    """Epochs of a run: enough steps for a new detector on a small data set; a trained one only adapts to rounding.

    Args:
        settings: settings of the run.
        epoch_steps: optimiser steps per epoch, 1 or more.
    """
    if settings.max_steps is not None:
        return math.ceil(settings.max_steps / epoch_steps)
    if settings.quantise != "none":
        return EPOCHS
    epochs = max(EPOCHS, min(MOST_EPOCHS, math.ceil(LEAST_STEPS / epoch_steps)))
    return epochs if settings.patience is None else PATIENT_FACTOR * epochs


def evaluation_interval(settings: TrainSettings, training_images: int, evaluated_images: int) -> int:
    """Epochs between evaluations, with which they take about an eighth of the time at most; 1 where AP decides."""
    if settings.patience is not None:
        return 1
    interval = round(EVALUATIONS_PER_IMAGE * evaluated_images / max(1, training_images))
    return max(1, min(interval, settings.number_of_epochs // LEAST_EVALUATIONS))


def learning_rate(images: int, optimizer: str = "sgd") -> float:
    """Learning rate for a number of images per step, on all devices together.

    Args:
        images: 1 or more.
        optimizer: `sgd`, whose rate is in proportion to the images, or `adamw`, whose rate follows their square root.
    """
    share = images / REFERENCE_IMAGES
    rate = ADAMW_RATE * math.sqrt(share) if optimizer == "adamw" else SGD_RATE * share
    return float(f"{rate:.4g}")
