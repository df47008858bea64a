"""The settings of a run: those of all parts, in one flat dataclass per command."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from defeat.data.augmentations import continuous_parts, training_augmentation
from defeat.data.settings import DataSettings
from defeat.data.transforms import Augmentation
from defeat.detector.settings import DetectorSettings
from defeat.engine.devices import DeviceSettings
from defeat.engine.experiment import CacheFolder
from defeat.engine.loggers import LoggingSettings
from defeat.engine.optimisation import COSINES, OptimisationSettings
from defeat.engine.selection import SelectionSettings
from defeat.errors import InputError
from defeat.settings import Checked, Role, at_least, names_of, option, setting, settings_part

DistillPrecision = Literal["run", "bf16"]
Inherit = Literal["none", "neck", "neck+head", "auto"]
BOX_FILES = ("boxes", "onnx")  # `--teacher boxes:FILE`, `--teacher onnx:FILE`


@settings_part
class RunSettings(Checked):
    """Run."""

    out: str = setting(role=Role.CELL)
    """Run directory to write; it must not contain another run."""
    resume: bool = setting(default=False, role=Role.CELL)
    """Continue the run in `out` from its last checkpoint; with other --epochs only if its steps so far would have had
    the same learning rate."""
    expected: dict[str, Any] = setting(factory=dict, role=Role.CELL, hidden=True)
    """The figure that a recipe should reach: metric, value, tolerance, source."""


@settings_part
class DistillationSettings(Checked):
    """Distillation."""

    teacher: str = setting(role=Role.SOURCE)
    """Run directory of the teacher, a torchvision model such as torchvision:fasterrcnn_resnet50_fpn_v2, a detector of
    transformers (a folder written by save_pretrained, or hf:ORG/NAME), a YOLOv9 checkpoint of LibreYOLO (`defeat
    import` makes a run directory of other tools' checkpoints); or a teacher that only gives boxes, for --unlabelled:
    boxes:FILE, a results file of COCO; onnx:FILE, a detector in ONNX; or FILE.py:FACTORY, a function that returns an
    object with `classes` and `predict`. Several teachers, separated by commas, teach at once; each teaches the classes
    that it knows."""
    teacher_shares: list[float] | None = setting(default=None)
    """With several teachers, the share of each in the distillation losses, such as 2 1; by default equal."""
    then: list[str] = setting(factory=list)
    """Teachers of later stages, such as one that is larger than --teacher: when a stage ends, the student goes on with
    the next teacher. --epochs is the length of the first stage."""
    then_epochs: list[int] = setting(factory=list)
    """Epochs of each stage of --then; by default as many as --epochs."""
    then_methods: list[str] = setting(factory=list)
    """Method of each stage of --then; by default --method with its options. Another method has its default options."""
    teacher_weights: str | None = setting(default=None)
    """With a torchvision teacher, a file with its state dict, instead of the published weights."""
    teacher_taps: str | None = setting(default=None)
    """YAML file that names the layers of your own network whose outputs are its feature maps, see `defeat taps`;
    --teacher is then package.module:factory or file.py:factory, and that code is run."""
    teacher_description: str | None = setting(default=None, role=Role.SOURCE)
    """What belongs to a teacher that only gives boxes: with boxes:FILE a COCO file with the images and categories of
    its ids; with onnx:FILE a YAML file with classes, preparation of images and layout of the outputs, see
    docs/training.md."""
    distill_precision: DistillPrecision = setting(default="run")
    """Precision of the teacher's maps and the adaptation layers: run, as --precision, or bf16, which takes half the
    time or less on a CPU that supports it."""
    method: str = setting(default="defeat", role=Role.CELL)
    """Distillation method."""
    method_options: dict[str, Any] = setting(factory=dict, role=Role.CELL, hidden=True)
    """Settings of the method that differ from its defaults."""
    inherit: Inherit = setting(default="auto", usual="none")
    """Teacher weights that the student starts from, as far as shapes are equal: none, neck, neck+head, or auto (both
    where family, neck and anchors are equal)."""
    balance: float | None = setting(default=None)
    """Before training, scale the method's weights by one factor so that the gradient of all its terms, at the student's
    neck, is this many times that of the detector's own losses; config.yaml gets the weights."""
    class_map: str | dict[str, str | None] | None = setting(default=None)
    """YAML file with a line `teacher's class: student's class` for each class whose names differ; ~ for a class of the
    teacher that the student does not have."""
    unlabelled: str | None = setting(default=None, role=Role.SOURCE)
    """Folder of images without annotations to train on as well; the teacher detects their objects before training."""
    unlabelled_ratio: float = setting(default=1.0)
    """Images without annotations per annotated image in a batch."""
    pseudo_labels: float | None = setting(default=None)
    """Lowest score, 0..1, of a detection of the teacher that becomes a pseudo-label for the detector's own losses;
    without it, images without annotations are used by the method only."""
    cache_teacher: str | None = setting(default=None, role=Role.OUTPUT)
    """Folder for a cache of the teacher's maps, so that they are computed once per image; runs with the same teacher
    and size can share it."""
    cache_limit: str | None = setting(default=None, role=Role.OUTPUT)
    """Largest size of the cache, such as 20GB; by default as much as the disk has."""
    allow_weak_teacher: bool = setting(default=False)
    """Train although the teacher detects next to nothing on the data."""

    def check(self) -> None:
        """Refuse values that can't work; replace the path of `class_map` by its content."""
        if self.balance is not None and not 0 < self.balance < float("inf"):
            raise InputError(f"--balance must be above 0, not {self.balance}; without it the weights stay as they are.")
        if self.teacher_description is not None and not self.teacher.startswith(("boxes:", "onnx:")):
            raise InputError("--teacher-description belongs to --teacher boxes:FILE or onnx:FILE.")
        self._check_teachers()
        self._check_stages()
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
    def teachers(self) -> list[str]:
        """The teachers of `teacher`, one or several; a path with a comma is one."""
        if Path(self.teacher).exists():
            return [self.teacher]
        return [name.strip() for name in self.teacher.split(",")]

    def _check_teachers(self) -> None:
        """Refuse what several teachers can't have, and shares of a single one."""
        count = len(self.teachers)
        if count == 1 and self.teacher_shares is not None:
            raise InputError("--teacher-shares belongs to several teachers: --teacher A,B.")
        if count == 1:
            return
        if not all(self.teachers):
            raise InputError(f"--teacher {self.teacher}: give names of teachers separated by commas.")
        if self.teacher_shares is not None and len(self.teacher_shares) != count:
            raise InputError(f"--teacher-shares needs a number for each of the {count} teachers.")
        for share in self.teacher_shares or ():
            if not 0 < share < float("inf"):
                raise InputError(f"--teacher-shares must be above 0 and finite, not {share}.")
        for name in ("teacher_weights", "teacher_taps", "teacher_description", "balance", "cache_teacher"):
            if getattr(self, name) is not None:
                raise InputError(f"{option(name)} belongs to a single teacher, and --teacher names {count}.")

    def _check_stages(self) -> None:
        """Refuse lists for other numbers of stages, and what stages can't have."""
        for name in ("then_epochs", "then_methods"):
            values = getattr(self, name)
            if values and len(values) != len(self.then):
                raise InputError(f"{option(name)} needs a value for each of the {len(self.then)} teachers of --then.")
        for epochs in self.then_epochs:
            at_least("then_epochs", epochs, 1)
        if self.then and self.balance is not None:
            raise InputError("--balance and --then can't be combined: give the weights of the method.")

    @property
    def cache(self) -> CacheFolder | None:
        """Cache of the teacher's maps; None without."""
        limit = None if self.cache_limit is None else bytes_of(self.cache_limit, "cache_limit")
        return None if self.cache_teacher is None else CacheFolder(Path(self.cache_teacher), limit)

    @property
    def class_names(self) -> dict[str, str | None]:
        """The student's names by the teacher's, where they differ."""
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

    command: ClassVar[str] = "train"

    @property
    def distillation(self) -> "DistillSettings | None":
        """These settings, if they are those of a distillation."""
        return None

    def check(self) -> None:
        """Refuse settings of different parts that don't fit each other."""
        if self.patience is not None:
            if self.schedule in COSINES:
                raise InputError(
                    f"--patience and --schedule {self.schedule} can't be combined, because a cosine ends at a fixed "
                    "epoch: leave out one of them."
                )
            self.require_no_milestones("--patience")
        if self.eval_split is not None:
            self.require_no_choice_on(self.eval_split)

    @property
    def augmentation(self) -> Augmentation:
        """Random augmentation of training images."""
        return training_augmentation(self.augment, flip=self.flip, size=self.size)

    def to_dict(self) -> dict[str, Any]:
        """All settings but `resume`, to repeat the run."""
        settings = asdict(self)
        del settings["resume"]
        return settings


@settings_part
class DistillSettings(DistillationSettings, TrainSettings):
    """Train a student with distillation from a teacher."""

    command: ClassVar[str] = "distill"

    @property
    def distillation(self) -> "DistillSettings":
        """These settings."""
        return self

    def check(self) -> None:
        """Refuse settings of different parts that don't fit each other."""
        if self.then and self.processes > 1:
            raise InputError(
                "--then trains on one device: train the stages one after the other, each with --weights and the run "
                "directory of the one before."
            )
        if self.cache_teacher is not None and self.augmentation.views is None:
            raise InputError(
                f"--cache-teacher can't keep the maps of --augment {self.augment}, which never shows an image the same "
                f"way twice ({', '.join(continuous_parts(self.augment))}): give --augment flip, or no --cache-teacher."
            )

    @property
    def unlabelled_per_batch(self) -> int:
        """Images without annotations per batch."""
        return round(self.unlabelled_ratio * self.batch_size) if self.unlabelled is not None else 0


# Settings that a resumed run may change.
FREE_IN_RESUMED = frozenset([*names_of(DistillSettings, Role.OUTPUT), "out", "resume"])


def settings_class(command: str) -> type[TrainSettings]:
    """The settings of a command: `distill`, or any other that trains."""
    return DistillSettings if command == "distill" else TrainSettings


def gives_boxes(teacher: str, taps: str | None) -> bool:
    """Whether `--teacher` names a teacher that only gives boxes.

    Args:
        teacher: the value of `--teacher`.
        taps: that of `--teacher-taps`.
    """
    return teacher.startswith(tuple(f"{name}:" for name in BOX_FILES)) or (taps is None and ".py:" in teacher)


def read_class_map(text: str) -> dict[str, str | None]:
    """Read the student's names of a teacher's classes.

    Args:
        text: path of a YAML file, or its content in braces.

    Raises:
        InputError: the file can't be read or is not a map of names.
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
    """Convert a size such as 20GB, 1.5 TB or 4096 to bytes; units are powers of 1000.

    Raises:
        InputError: it is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    if not match:
        raise InputError(f"{option(name)} {text}: give a size such as 500MB or 20GB.")
    size = float(match[1]) * 1000 ** " kmgt".index(match[2] or " ")
    if size >= 1e18:  # larger than any disk; a text of many digits becomes infinity
        raise InputError(f"{option(name)} must be less than a million TB.")
    return int(size)
