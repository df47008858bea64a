"""What a training is made of: objects, whatever words they were made from."""

from collections.abc import Mapping
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
    """Where a teacher's maps are kept.

    Attributes:
        folder: which runs with the same teacher and size can share.
        limit: bytes that the maps may take; None for as much as the disk has.
    """

    folder: Path
    limit: int | None = None


@dataclass(frozen=True)
class Distillation:
    """A teacher, and what a student learns from it.

    Attributes:
        teacher: a trained detector, in eval mode and without gradients.
        method: turns the outputs of both detectors into losses.
        fingerprint: of the teacher's weights as they were loaded.
        unlabelled: images that are mixed into the batches without annotations; None for none.
        unlabelled_per_batch: how many of them go into each batch.
        cache: where the teacher's maps are kept; None to compute them in each epoch.
        dtype: in what the maps are computed; None for the precision of the run.
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
    """What a run directory says about the run, in plain values.

    Attributes:
        command: `train` or `distill`.
        values: all settings; `config.yaml` holds them.
        free: names of those that a resumed run may change.
        earlier: values of settings that a file does not name, because they came later.
        resume: whether the run goes on from its last checkpoint.
    """

    command: str = "train"
    values: Mapping[str, Any] = field(default_factory=dict)
    free: frozenset[str] = frozenset()
    earlier: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False


@dataclass(frozen=True)
class Experiment:
    """A training.

    Attributes:
        student: the detector to train.
        training: images to train on.
        evaluation: images to evaluate on; None to train without evaluation.
        optimisation: steps, and how they are taken.
        selection: evaluations, and what they decide.
        logging: what is written on the way.
        devices: where it computes.
        augmentation: how training images are changed at random.
        workers: processes that load images, for each device.
        distillation: teacher and method; None to train the student without.
        record: what is written about it.
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
        """All images that it trains on."""
        unlabelled = None if self.distillation is None else self.distillation.unlabelled
        return [self.training] if unlabelled is None else [self.training, unlabelled]

    def loader(self, workers: int = 0, rank: int = 0, world_size: int = 1) -> DetectionLoader:
        """The training batches of one of its processes."""
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
