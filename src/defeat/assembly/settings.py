"""The settings of a run, in words: those of each part, in one flat dataclass for each command."""

import re
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from defeat.data.augmentations import endless_parts, training_augmentation
from defeat.data.settings import DataSettings
from defeat.data.transforms import Augmentation
from defeat.detector.settings import DetectorSettings
from defeat.engine.devices import DeviceSettings
from defeat.engine.experiment import CacheFolder
from defeat.engine.loggers import LoggingSettings
from defeat.engine.optimisation import OptimisationSettings
from defeat.engine.selection import SelectionSettings
from defeat.errors import InputError
from defeat.settings import Checked, Role, at_least, names_of, option, setting, settings_part, usual_value

DistillPrecision = Literal["run", "bf16"]
Inherit = Literal["none", "neck", "neck+head", "auto"]


@settings_part
class RunSettings(Checked):
    """Run."""

    out: str = setting(role=Role.CELL)
    """Run directory to write; it must not hold another run."""
    resume: bool = setting(default=False, role=Role.CELL)
    """Continue the run in `out` from its last checkpoint."""
    expected: dict[str, Any] = setting(factory=dict, role=Role.CELL, hidden=True)
    """The figure that a recipe expects: metric, value, tolerance, source."""


@settings_part
class DistillationSettings(Checked):
    """Distillation."""

    teacher: str = setting(role=Role.SOURCE)
    """Run directory of the teacher, or a torchvision model such as torchvision:fasterrcnn_resnet50_fpn_v2."""
    teacher_weights: str | None = setting(default=None)
    """With a torchvision teacher, a file with its state dict, instead of the published weights."""
    teacher_taps: str | None = setting(default=None)
    """YAML file that says where a network of your own has its maps, see `defeat taps`; --teacher is then
    package.module:factory or file.py:factory, and that code is run."""
    distill_precision: DistillPrecision = setting(default="run")
    """In what the teacher's maps and the adaptation layers are computed: run, as the run says, or bf16, which rounds
    them, and takes half the time or less where the CPU has instructions for it."""
    method: str = setting(default="defeat", role=Role.CELL)
    """Distillation method."""
    method_options: dict[str, Any] = setting(factory=dict, role=Role.CELL, hidden=True)
    """Settings of the method that differ from its defaults."""
    inherit: Inherit = setting(default="auto", usual="none")
    """Which of the teacher's weights the student begins with, as far as they fit: none, neck, neck+head, or auto
    (both where the two are of one family with equal necks and anchors)."""
    balance: float | None = setting(default=None)
    """Before training, multiply the method's weights by the one factor that makes the gradient of all its terms, at
    the student's neck, so many times that of the detector's own losses; config.yaml gets the weights."""
    class_map: str | dict[str, str | None] | None = setting(default=None)
    """YAML file with a line `teacher's class: student's class` for each class that the two call by different names;
    ~ instead of a name for a class of the teacher that is none of the student's."""
    unlabelled: str | None = setting(default=None, role=Role.SOURCE)
    """Folder of images without annotations to learn from as well; the teacher detects their objects before training."""
    unlabelled_ratio: float = setting(default=1.0)
    """Images without annotations in a batch, for each annotated one."""
    pseudo_labels: float | None = setting(default=None)
    """Score, 0..1, from which on the detector learns a detection of the teacher as if it was annotated; without it,
    images without annotations serve the method alone."""
    cache_teacher: str | None = setting(default=None, role=Role.OUTPUT)
    """Folder in which to keep the teacher's maps of each image, so that they are computed once; runs with the same
    teacher and size can share it."""
    cache_limit: str | None = setting(default=None, role=Role.OUTPUT)
    """Space that the kept maps may take, such as 20GB; by default as much as the disk has."""
    allow_weak_teacher: bool = setting(default=False)
    """Go on although the teacher detects next to nothing on the data."""

    def check(self) -> None:
        """Refuse values that can't work; the content of `class_map` takes the place of its path."""
        if self.balance is not None and not 0 < self.balance < float("inf"):
            raise InputError(f"--balance must be above 0, not {self.balance}; without it the weights stay as they are.")
        at_least("unlabelled_ratio", self.unlabelled_ratio, 0, 100)
        if self.pseudo_labels is not None and not 0 < self.pseudo_labels <= 1:
            raise InputError(f"--pseudo-labels must be a score above 0, at most 1, not {self.pseudo_labels}.")
        if self.unlabelled is None and self.pseudo_labels is not None:
            raise InputError("--pseudo-labels needs images without annotations: name their folder with --unlabelled.")
        if isinstance(self.class_map, str):
            object.__setattr__(self, "class_map", read_class_map(self.class_map))
        if self.cache_limit is not None and self.cache_teacher is None:
            raise InputError("--cache-limit needs a folder to limit: give --cache-teacher.")
        _ = self.cache

    @property
    def cache(self) -> CacheFolder | None:
        """Where the teacher's maps are kept; None where they are not."""
        limit = None if self.cache_limit is None else bytes_of(self.cache_limit, "cache_limit")
        return None if self.cache_teacher is None else CacheFolder(Path(self.cache_teacher), limit)

    @property
    def class_names(self) -> dict[str, str | None]:
        """The student's name of each class that the teacher calls otherwise."""
        assert not isinstance(self.class_map, str)
        return self.class_map or {}


@settings_part
class TrainSettings(  # fields and checks come in the order from the last base to the first
    DeviceSettings,
    LoggingSettings,
    SelectionSettings,
    OptimisationSettings,
    DetectorSettings,
    RunSettings,
    DataSettings,
):
    """Train a detector."""

    def check(self) -> None:
        """Refuse settings of different parts that don't fit each other."""
        if self.patience is not None:
            if self.schedule == "cosine":
                raise InputError(
                    "--patience has no use with --schedule cosine, whose learning rate falls by itself: leave out one "
                    "of them."
                )
            self.require_no_milestones("--patience")
        if self.eval_split is not None:
            self.require_no_choice_on(self.eval_split)

    @property
    def augmentation(self) -> Augmentation:
        """How training images are changed at random."""
        return training_augmentation(self.augment, flip=self.flip, size=self.size)

    def to_dict(self) -> dict[str, Any]:
        """All settings but `resume`: what repeats the run."""
        settings = asdict(self)
        del settings["resume"]
        return settings


@settings_part
class DistillSettings(DistillationSettings, TrainSettings):
    """Train a student with the help of a teacher."""

    def check(self) -> None:
        """Refuse settings of different parts that don't fit each other."""
        if self.cache_teacher is not None and self.augmentation.views is None:
            raise InputError(
                f"--cache-teacher can't keep the maps of --augment {self.augment}, which never shows an image the same "
                f"way twice ({', '.join(endless_parts(self.augment))}): give --augment flip, or no --cache-teacher."
            )

    @property
    def unlabelled_per_batch(self) -> int:
        """Images without annotations that go into each batch."""
        return round(self.unlabelled_ratio * self.batch_size) if self.unlabelled is not None else 0


# What a resumed run may change, and what tells runs of a comparison apart.
FREE_IN_RESUMED = frozenset([*names_of(DistillSettings, Role.OUTPUT), "out", "resume"])


def read_class_map(text: str) -> dict[str, str | None]:
    """Read the names that a student has for a teacher's classes.

    Args:
        text: path of a YAML file, or its content in braces.

    Raises:
        InputError: the file can't be read, or is not a list of names.
    """
    try:
        content = yaml.safe_load(text if text.startswith("{") else Path(text).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--class-map {text} can't be read.") from error
    except (yaml.YAMLError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not all(isinstance(name, str | None) for name in content.values()):
        raise InputError(
            f"--class-map {text}: give lines `teacher's class: student's class`, such as `motorcycle: motorbike`."
        )
    return {str(theirs): ours for theirs, ours in content.items()}


def bytes_of(text: str, name: str) -> int:
    """Turn a size such as 20GB, 1.5 TB or 4096 into bytes; the units are powers of 1000.

    Raises:
        InputError: it is no such size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    if not found:
        raise InputError(f"{option(name)} {text}: give a size such as 500MB or 20GB.")
    size = float(found[1]) * 1000 ** " kmgt".index(found[2] or " ")
    if size >= 1e18:  # no disk is that large; and a text of many digits is infinity
        raise InputError(f"{option(name)} must be less than a million TB.")
    return int(size)


def earlier_defaults() -> dict[str, Any]:
    """Every setting that has a default, with what it amounted to in a run whose file does not name it."""
    values = {one.name: usual_value(one) for one in fields(DistillSettings)}
    return {name: value for name, value in values.items() if value is not MISSING}
