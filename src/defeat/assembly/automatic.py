"""What a user leaves to the program: sizes that follow from the data, the teacher and the devices.

A setting that is `auto` becomes a number before anything is built, and the number is what `config.yaml` holds: a repeat
or a resumed run measures nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from defeat.assembly.settings import TrainSettings
from defeat.data import DetectionDataset
from defeat.detector import Detector, TeacherNetwork, family_options, make_options
from defeat.detector.options import automatic, described, settled, taken_over
from defeat.detector.statistics import object_statistics
from defeat.engine.checkpoint import RunDirectory
from defeat.settings import AUTO

NECKS = {512: 256, 256: 128, 0: 64}  # channels by the short side from which on they are taken
REFERENCE_IMAGES = 8  # images per step that the rates below are for
SGD_RATE, ADAMW_RATE = 0.01, 2e-4
NUMBERS = ("neck_channels", "lr")

Settings = TypeVar("Settings", bound=TrainSettings)


@dataclass(frozen=True)
class Choices:
    """Values for the settings that are `auto`.

    Attributes:
        family: of the detector.
        options: settings of the family, by name.
        numbers: settings of the run, by name.
        announced: whether a user has still to be told.
    """

    family: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    announced: bool = True

    def applied(self, settings: Settings) -> Settings:
        """Settings with these values, and without what is `auto` and has none here."""
        given = {name: value for name, value in settings.detector_options.items() if value != AUTO}
        changed: Settings = replace(settings, **self.numbers, detector_options=given | self.options)
        return changed

    def to_dict(self) -> dict[str, Any]:
        """All values by name, for JSON."""
        return self.options | self.numbers

    def describe(self) -> str:
        """A line for the user; empty where nothing was chosen anew."""
        if not self.to_dict() or not self.announced:
            return ""
        parts = [", ".join(described(family_options(self.family), self.options))] if self.options else []
        shown = {"neck_channels": "neck {} channels", "lr": "lr {:g}"}
        parts.append(", ".join(shown[name].format(value) for name, value in self.numbers.items()))
        return "; ".join(part for part in parts if part)


def choose(settings: TrainSettings, training: DetectionDataset, teacher: TeacherNetwork | None = None) -> Choices:
    """Give everything that is `auto` a value; a resumed run gets those that it was begun with.

    Args:
        settings: of the run.
        training: split to train on, of which no image is decoded.
        teacher: of a student, None without.

    Raises:
        InputError: an option of the detector is unknown or not valid, or the run that is resumed can't be read.
    """
    directory = RunDirectory(settings.out)
    if settings.resume and directory.config.exists():
        return as_begun(settings, directory.read_config())
    options = make_options(settings.detector, settings.detector_options)
    names = automatic(options)
    if isinstance(teacher, Detector) and teacher.spec.family == settings.detector:
        theirs = settled(make_options(teacher.spec.family, teacher.spec.options))
        same_size = (teacher.info.size, teacher.info.max_size) == (settings.size, settings.long_side)
        options = taken_over(options, theirs, same_size)
    numbers: dict[str, Any] = {}
    if settings.neck_channels == AUTO:
        numbers["neck_channels"] = neck_channels(settings, teacher)
    if automatic(options):
        width = int(replace(settings, **numbers).number("neck_channels"))
        options = options.fitted(object_statistics(training, settings.size, settings.long_side), width)
    if settings.lr == AUTO:
        numbers["lr"] = learning_rate(settings.batch_size * settings.processes, settings.optimizer)
    return Choices(settings.detector, {name: getattr(options, name) for name in names}, numbers)


def as_begun(settings: TrainSettings, begun: Mapping[str, Any]) -> Choices:
    """The values that settings were begun with, which say `auto` now.

    Args:
        settings: that say so.
        begun: content of the `config.yaml` of the run; what is missing there had its usual value.
    """
    recorded = begun.get("detector_options")
    recorded = recorded if isinstance(recorded, dict) else {}
    names = automatic(make_options(settings.detector, settings.detector_options))
    numbers: dict[str, Any] = {name: begun.get(name) for name in NUMBERS if getattr(settings, name) == AUTO}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            numbers[name] = settings.number(name)
    if getattr(settings, "inherit", None) == AUTO:
        numbers["inherit"] = begun.get("inherit", "none")
    return Choices(
        settings.detector, {name: recorded[name] for name in names if name in recorded}, numbers, announced=False
    )


def is_chosen(settings: TrainSettings) -> bool:
    """Whether nothing is left to the program."""
    numbers = [getattr(settings, name) for name in NUMBERS]
    return AUTO not in numbers and not automatic(make_options(settings.detector, settings.detector_options))


def neck_channels(settings: TrainSettings, teacher: TeacherNetwork | None = None) -> int:
    """Channels of the feature pyramid: the teacher's where levels meet, so that its weights fit; else by the size."""
    if teacher is not None:
        widths = set(teacher.info.neck.values())
        meets = bool(set(family_options(settings.detector).strides) & set(teacher.info.neck))
        if len(widths) == 1 and (meets or teacher.info.family == settings.detector):
            return widths.pop()
    return next(channels for size, channels in NECKS.items() if settings.size >= size)


def learning_rate(images: int, optimizer: str = "sgd") -> float:
    """The learning rate for so many images per step, on all devices together.

    Args:
        images: 1 or more.
        optimizer: `sgd`, whose rate is in proportion to the images, or `adamw`, whose rate follows their square root.
    """
    share = images / REFERENCE_IMAGES
    rate = ADAMW_RATE * math.sqrt(share) if optimizer == "adamw" else SGD_RATE * share
    return float(f"{rate:.4g}")
