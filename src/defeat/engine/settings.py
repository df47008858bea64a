"""The settings of a run: each is described here once, for Python, the command line and recipes alike."""

import re
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from defeat.data import OnBadData
from defeat.data.augmentations import endless_parts, training_augmentation
from defeat.data.transforms import Augmentation
from defeat.detector.description import LARGEST_SIDE
from defeat.detector.options import AUTO
from defeat.errors import InputError

MOST_WORKERS = 256  # each is a process with memory of its own
MOST_NODES = 10_000
Norm = Literal["bn", "syncbn", "bn_eval", "frozen", "gn"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
DistillPrecision = Literal["run", "bf16"]
Inherit = Literal["none", "neck", "neck+head", "auto"]
LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]
MILESTONES = (8 / 12, 11 / 12)
LEAST_SGD_LR = 0.01  # AdamW diverges with what SGD needs


def fitted(usual: float) -> Any:
    """A setting that follows from data, teacher or devices by default; `usual` is its value before that was so."""
    return field(default=AUTO, metadata={"usual": usual})


@dataclass(kw_only=True)
class TrainSettings:
    """Train a detector.

    Attributes:
        data: folder of a VOC, COCO or YOLO data set (several VOC years separated by commas), or `demo`: drawn
            scenes (`demo:SEED` for others, `demo:SEED:TRAIN` for another number of training scenes).
        out: run directory to write; it must not hold another run.
        detector: family of the detector: faster_rcnn or retinanet.
        backbone: name of the backbone: resnet18 to resnet152, or any convolutional network of timm.
        split: split to train on.
        eval_split: split to evaluate on; by default val if there is one, else test.
        classes: names of the classes to learn, in order; by default all that the data has.
        on_bad_data: where files of the data are broken or missing: stop, and list them; or skip the images that they
            are about, and count them, after decoding all images once.
        epochs: passes over the training split.
        max_steps: stop after so many optimiser steps, however many epochs that is.
        batch_size: images a step on each device.
        size: short side of an image after resizing, in pixels.
        max_size: upper limit of the long side, in pixels; by default 5/3 of the short side.
        optimizer: sgd or adamw.
        lr: learning rate after warm-up; auto for 0.01 (sgd, in proportion to the images per step) or 0.0002 (adamw, in
            proportion to their square root) with 8 images per step on all devices together.
        backbone_lr_factor: learning rate of the backbone's body, as a part of that of everything else, above 0, at most
            1.
        momentum: momentum of SGD, 0..1; AdamW has its usual 0.9 and 0.999.
        weight_decay: weight decay; 0.0001 is usual for SGD, 0.0001 to 0.05 for AdamW.
        norm_decay: whether weight decay of SGD also applies to normalisation layers and biases; that of AdamW never
            does.
        schedule: how the learning rate falls after warm-up: step, by --lr-milestones, or cosine, to zero at the end.
        lr_milestones: with --schedule step, parts of the run, 0..1, after each of which the learning rate falls to a
            tenth.
        warmup_steps: steps over which the learning rate rises; by default a twentieth of the run, 500 at most.
        ema: evaluate and save an exponential moving average of the student's weights, of which a step leaves this part,
            such as 0.9998 (less in the first steps); 0 for none.
        grad_clip: upper limit of the norm of all gradients together; 0 for none.
        augment: how training images are changed at random: none, flip, standard, strong, or names of parts with commas
            between them (flip, photometric, photometric_distort, iou_crop, zoom_out, scale_jitter, large_scale_jitter,
            multi_scale); -NAME behind a level leaves that part out.
        flip: probability of mirroring a training image, 0..1; without effect where `augment` has no flip.
        norm: normalisation of the backbone: bn, syncbn, bn_eval (pretrained statistics, trained weights), frozen (as
            pretrained) or gn.
        neck_channels: channels of the feature pyramid; auto for as many as the teacher has, or without a teacher 256
            from --size 512 on, 128 from 256 on and 64 below.
        frozen_stages: stages of the backbone that are not trained: 0 none, 1 the stem, up to 5 all.
        weights: first weights of the backbone: auto (an installed package, else a download), none, or a file; or a run
            directory, with whose trained detector this one begins.
        seed: seed of everything that is random.
        eval_every: evaluate every so many epochs, and after the last one; 0 for after the last one only.
        keep: which student to report and save: that of the last evaluation, or the best, by AP over all of them; best
            needs a split to evaluate on that is not test.
        patience: instead of by --lr-milestones, the learning rate falls to a tenth when AP has not improved by 0.1
            points in so many evaluations, and the run ends when it has not after the second fall either; needs a
            split to evaluate on that is not test.
        log_every: write losses every so many steps.
        logger: where to write losses and figures beside metrics.jsonl: tensorboard, csv, wandb or mlflow, or a list of
            them such as [tensorboard,csv].
        checkpoint_every: write a checkpoint every so many steps, beside those before and after each evaluation and at
            the end of each epoch; 0 for these alone.
        devices: how many devices on each node, or auto for all.
        nodes: how many nodes.
        accelerator: auto, cpu or gpu.
        precision: 32-true, 16-mixed or bf16-mixed.
        workers: processes that load images, for each device.
        resume: continue the run in `out` from its last checkpoint.
        detector_options: settings of the family that differ from its defaults; those that are auto follow from size and
            objects of the training split.
        expected: the figure that a recipe expects: metric, value, tolerance, source.
    """

    data: str
    out: str
    detector: str = "faster_rcnn"
    backbone: str = "resnet50"
    split: str = "train"
    eval_split: str | None = None
    classes: list[str] | None = None
    on_bad_data: OnBadData = "stop"
    epochs: int = 12
    max_steps: int | None = None
    batch_size: int = 8
    size: int = 800
    max_size: int | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float | Literal["auto"] = fitted(0.01)
    backbone_lr_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_decay: bool = True
    schedule: Literal["step", "cosine"] = "step"
    lr_milestones: list[float] = field(default_factory=lambda: list(MILESTONES))
    warmup_steps: int | None = None
    ema: float | None = None
    grad_clip: float = 35.0
    augment: str = "flip"
    flip: float = 0.5
    norm: Norm = "bn"
    neck_channels: int | Literal["auto"] = fitted(256)
    frozen_stages: int = 0
    weights: str = "auto"
    seed: int = 0
    eval_every: int = 1
    keep: Literal["best", "last"] = "last"
    patience: int | None = None
    log_every: int = 10
    logger: LoggerName | list[LoggerName] = "tensorboard"
    checkpoint_every: int = 1000
    devices: int | Literal["auto"] = 1
    nodes: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Precision = "32-true"
    workers: int = 2
    resume: bool = False
    detector_options: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that can't work.

        Raises:
            InputError: naming the first such value and its range.
        """
        for name, value in vars(self).items():
            if value == "":
                raise InputError(f"{option(name)} is empty.")
        for name in ("epochs", "batch_size", "log_every"):
            at_least(name, getattr(self, name), 1)
        at_least("nodes", self.nodes, 1, MOST_NODES)
        at_least("neck_channels", self.number("neck_channels"), 1, 8192)
        for name in ("size", "max_size"):
            at_least(name, getattr(self, name), 32, LARGEST_SIDE)
        for name in ("weight_decay", "grad_clip", "frozen_stages", "eval_every", "checkpoint_every", "warmup_steps"):
            at_least(name, getattr(self, name), 0)
        at_least("seed", self.seed, 0, 2**63 - 1)
        at_least("workers", self.workers, 0, MOST_WORKERS)
        at_least("max_steps", self.max_steps, 1)
        for name in ("momentum", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{option(name)} must be between 0 and 1, not {getattr(self, name)}.")
        _ = self.augmentation
        self._check_optimisation()
        self._check_selection()

    def _check_optimisation(self) -> None:
        if not all(0 <= part <= 1 for part in self.lr_milestones):
            raise InputError(f"--lr-milestones must be between 0 and 1, not {self.lr_milestones}.")
        if not 0 < self.number("lr") < float("inf"):
            raise InputError(f"--lr must be above 0, not {self.lr}.")
        if self.optimizer == "adamw" and self.lr != AUTO and self.number("lr") >= LEAST_SGD_LR:
            raise InputError(
                f"--lr {self.lr} is for SGD, AdamW would diverge with it: give about --lr 0.0001 for 8 images a step."
            )
        if not 0 < self.backbone_lr_factor <= 1:
            raise InputError(
                f"--backbone-lr-factor must be above 0, at most 1, not {self.backbone_lr_factor}; --frozen-stages 5 "
                "keeps the whole body as it is."
            )
        if self.ema is not None and not 0 <= self.ema < 1:
            raise InputError(f"--ema must be 0 or more and below 1, such as 0.9998, not {self.ema}.")
        self.ema = self.ema or None
        if self.lr_milestones and tuple(self.lr_milestones) != MILESTONES:
            for flag, given in (("--schedule cosine", self.schedule == "cosine"), ("--patience", self.patience)):
                if given:
                    raise InputError(
                        f"--lr-milestones have no use with {flag}, which lowers the learning rate itself: leave them "
                        "out, or give --lr-milestones=[] where a recipe has them."
                    )

    def _check_selection(self) -> None:
        at_least("patience", self.patience, 1)
        if self.patience is not None and self.schedule == "cosine":
            raise InputError(
                "--patience has no use with --schedule cosine, whose learning rate falls by itself: leave out one "
                "of them."
            )
        for flag, given in (("--keep best", self.keep == "best"), ("--patience", self.patience is not None)):
            if given and self.eval_every == 0:
                raise InputError(f"{flag} needs evaluations during the training: give --eval-every 1, or more.")
        if self.eval_split is not None:
            self.require_no_choice_on(self.eval_split)

    def require_no_choice_on(self, split: str) -> None:
        """Refuse to choose weights, or the length of the training, on a split that is named `test`.

        Raises:
            InputError: naming the option.
        """
        flag = "--keep best" if self.keep == "best" else "--patience"
        if split == "test" and (self.keep == "best" or self.patience is not None):
            raise InputError(
                f"{flag} on a split named test would choose by the images that judge the result, which flatters every "
                "figure: give another --eval-split, such as val, and measure afterwards with `defeat evaluate RUN "
                "--split test`."
            )

    @property
    def loggers(self) -> list[LoggerName]:
        """Names in `logger`, each once."""
        return [self.logger] if isinstance(self.logger, str) else list(dict.fromkeys(self.logger))

    @property
    def augmentation(self) -> Augmentation:
        """How training images are changed at random."""
        return training_augmentation(self.augment, flip=self.flip, size=self.size)

    def number(self, name: str) -> float:
        """The value of a setting; its usual number where it is `auto`."""
        value: Any = getattr(self, name)
        if value == AUTO:
            value = next(one for one in fields(self) if one.name == name).metadata["usual"]
        number: float = value
        return number

    @property
    def long_side(self) -> int:
        """Upper limit of an image's long side, in pixels."""
        return self.max_size or round(self.size * 5 / 3)

    def to_dict(self) -> dict[str, Any]:
        """All settings but `resume`: what repeats the run."""
        settings = asdict(self)
        del settings["resume"]
        return settings


@dataclass(kw_only=True)
class DistillSettings(TrainSettings):
    """Train a student with the help of a teacher.

    Attributes:
        teacher: run directory of the teacher, or a torchvision model such as torchvision:fasterrcnn_resnet50_fpn_v2.
        teacher_weights: with a torchvision teacher, a file with its state dict, instead of the published weights.
        distill_precision: in what the teacher's maps and the adaptation layers are computed: run, as the run says, or
            bf16, which rounds them, and takes half the time or less where the processor has instructions for it.
        method: distillation method.
        inherit: which of the teacher's weights the student begins with, as far as they fit: none, neck, neck+head, or
            auto (both where the two are of one family with equal necks and anchors).
        balance: before training, multiply the method's weights by the one factor that makes the gradient of all its
            terms, at the student's neck, so many times that of the detector's own losses; config.yaml gets the weights.
        class_map: YAML file with a line `teacher's class: student's class` for each class that the two call by
            different names; ~ instead of a name for a class of the teacher that is none of the student's.
        unlabelled: folder of images without annotations to learn from as well; the teacher detects their objects before
            training.
        unlabelled_ratio: images without annotations in a batch, for each annotated one.
        pseudo_labels: score, 0..1, from which on the detector learns a detection of the teacher as if it was annotated;
            without it, images without annotations serve the method alone.
        cache_teacher: folder in which to keep the teacher's maps of each image, so that they are computed once; runs
            with the same teacher and size can share it.
        cache_limit: space that the kept maps may take, such as 20GB; by default as much as the disk has.
        allow_weak_teacher: go on although the teacher detects next to nothing on the data.
        method_options: settings of the method that differ from its defaults.
    """

    teacher: str
    teacher_weights: str | None = None
    distill_precision: DistillPrecision = "run"
    method: str = "defeat"
    inherit: Inherit = field(default="auto", metadata={"usual": "none"})
    balance: float | None = None
    class_map: str | dict[str, str | None] | None = None
    unlabelled: str | None = None
    unlabelled_ratio: float = 1.0
    pseudo_labels: float | None = None
    cache_teacher: str | None = None
    cache_limit: str | None = None
    allow_weak_teacher: bool = False
    method_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that can't work; the content of `class_map` takes the place of its path.

        Raises:
            InputError: naming the first such value and its range.
        """
        super().__post_init__()
        if self.balance is not None and not 0 < self.balance < float("inf"):
            raise InputError(f"--balance must be above 0, not {self.balance}; without it the weights stay as they are.")
        at_least("unlabelled_ratio", self.unlabelled_ratio, 0, 100)
        if self.pseudo_labels is not None and not 0 < self.pseudo_labels <= 1:
            raise InputError(f"--pseudo-labels must be a score above 0, at most 1, not {self.pseudo_labels}.")
        if self.unlabelled is None and self.pseudo_labels is not None:
            raise InputError("--pseudo-labels needs images without annotations: name their folder with --unlabelled.")
        if isinstance(self.class_map, str):
            self.class_map = read_class_map(self.class_map)
        if self.cache_limit is not None and self.cache_teacher is None:
            raise InputError("--cache-limit needs a folder to limit: give --cache-teacher.")
        if self.cache_teacher is not None and self.augmentation.views is None:
            raise InputError(
                f"--cache-teacher can't keep the maps of --augment {self.augment}, which never shows an image the same "
                f"way twice ({', '.join(endless_parts(self.augment))}): give --augment flip, or no --cache-teacher."
            )
        _ = self.cache_bytes

    @property
    def unlabelled_per_batch(self) -> int:
        """Images without annotations that go into each batch."""
        return round(self.unlabelled_ratio * self.batch_size) if self.unlabelled is not None else 0

    @property
    def cache_bytes(self) -> int | None:
        """`cache_limit` in bytes; None for no limit."""
        return None if self.cache_limit is None else bytes_of(self.cache_limit, "cache_limit")

    @property
    def class_names(self) -> dict[str, str | None]:
        """The student's name of each class that the teacher calls otherwise."""
        assert not isinstance(self.class_map, str)
        return self.class_map or {}


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


def option(name: str) -> str:
    """How a setting is written on the command line."""
    return "--" + name.replace("_", "-")


def earlier_defaults() -> dict[str, Any]:
    """Every setting that has a default, with what it amounted to in a run whose file does not name it."""
    known = [one for one in fields(DistillSettings) if one.default is not MISSING]
    return {one.name: one.metadata.get("usual", one.default) for one in known}


def at_least(name: str, value: float | None, least: float, most: float | None = None) -> None:
    """Refuse a setting below or above what can work; None is none.

    Raises:
        InputError: naming it, the limit and the value.
    """
    if value is not None and not least <= value < float("inf"):
        raise InputError(f"{option(name)} must be {least} or more, not {value}.")
    if value is not None and most is not None and value > most:
        raise InputError(f"{option(name)} must be {most} or less, not {value}.")
