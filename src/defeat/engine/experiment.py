"""The objects of a training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from defeat.data import DetectionDataset
from defeat.data.loader import DetectionLoader, training_loader
from defeat.data.transforms import Augmentation, HorizontalFlip
from defeat.detector import Detector, TeacherNetwork
from defeat.distillation import Method
from defeat.engine.devices import DeviceSettings
from defeat.engine.loggers import LoggingSettings
from defeat.engine.optimisation import OptimisationSettings
from defeat.engine.selection import SelectionSettings


@dataclass(frozen=True)
class CacheFolder:
    """Folder of the cache of a teacher's feature maps.

    Attributes:
        folder: the folder; runs with the same teacher and size can share it.
        limit: maximum size in bytes; None for no limit.
    """

    folder: Path
    limit: int | None = None


@dataclass(frozen=True)
class Distillation:
    """Teacher, method and data of a distillation.

    Attributes:
        teacher: a trained detector, in eval mode and without gradients.
        method: computes losses from the outputs of both detectors.
        fingerprint: hash of the teacher's weights as loaded.
        unlabelled: images without annotations that are added to the batches; None for none.
        unlabelled_per_batch: number of them in each batch.
        cache: cache of the teacher's feature maps; None to compute them in each epoch.
        dtype: precision of the teacher and the adaptation layers; None for the precision of the run.
    """

    teacher: TeacherNetwork
    method: Method
    fingerprint: str = ""
    unlabelled: DetectionDataset | None = None
    unlabelled_per_batch: int = 0
    cache: CacheFolder | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Record:
    """The settings that are written to the run directory, as plain values.

    Attributes:
        command: `train` or `distill`.
        values: all settings, the content of `config.yaml`.
        free: names of settings that a resumed run may change.
        recorded: completes the settings of a run that was started by an earlier version.
        resume: whether the run is resumed from its last checkpoint.
    """

    command: str = "train"
    values: Mapping[str, Any] = field(default_factory=dict)
    free: frozenset[str] = frozenset()
    recorded: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    resume: bool = False


@dataclass(frozen=True)
class Experiment:
    """All objects of a training.

    Attributes:
        student: the detector to train.
        training: the training images.
        evaluation: the evaluation images; None to train without evaluation.
        optimisation: steps, optimiser and learning rate.
        selection: when to evaluate, and which student to keep.
        logging: logs and checkpoints.
        devices: devices and precision.
        augmentation: augmentation of the training images.
        workers: processes per device that load images.
        distillation: teacher and method; None to train without a teacher.
        record: the settings that are written to the run directory.
    """

    student: Detector
    training: DetectionDataset
    evaluation: DetectionDataset | None = None
    optimisation: OptimisationSettings = field(default_factory=OptimisationSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    devices: DeviceSettings = field(default_factory=DeviceSettings)
    augmentation: Augmentation = field(default_factory=HorizontalFlip)
    workers: int = 0
    distillation: Distillation | None = None
    record: Record = field(default_factory=Record)

    @property
    def datasets(self) -> list[DetectionDataset]:
        """All training images."""
        unlabelled = None if self.distillation is None else self.distillation.unlabelled
        return [self.training] if unlabelled is None else [self.training, unlabelled]

    def loader(self, workers: int = 0, rank: int = 0, world_size: int = 1) -> DetectionLoader:
        """The training batches of one process."""
        distillation = self.distillation
        return training_loader(
            self.training,
            batch_size=self.optimisation.batch_size,
            seed=self.optimisation.seed,
            workers=workers,
            augmentation=self.augmentation,
            rank=rank,
            world_size=world_size,
            unlabelled=None if distillation is None else distillation.unlabelled,
            unlabelled_per_batch=0 if distillation is None else distillation.unlabelled_per_batch,
        )
