"""The training and evaluation images of a run."""

from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from defeat.data import DetectionDataset
from defeat.data.loader import DetectionLoader, evaluation_loader, training_loader
from defeat.engine.settings import DistillSettings, TrainSettings
from defeat.types import Target

Images = tuple[list[Tensor], list[Target]]


class DetectionDataModule(LightningDataModule):
    """Gives each process its part of the two splits.

    Args:
        training: split to train on.
        evaluation: split to evaluate on.
        settings: the run's settings.
        unlabelled: images without annotations that are mixed into the batches.
    """

    def __init__(
        self,
        training: DetectionDataset,
        evaluation: DetectionDataset,
        settings: TrainSettings,
        unlabelled: DetectionDataset | None = None,
    ) -> None:
        super().__init__()
        self.training, self.evaluation, self.settings, self.unlabelled = training, evaluation, settings, unlabelled

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal training images and annotations."""
        others = [] if self.unlabelled is None else [self.unlabelled.fingerprint()[:16]]
        return "-".join([self.training.fingerprint()[:16], *others])

    def train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        """Shuffled batches; a resumed run starts at the very batch where it stopped."""
        loader = self._training_loader()
        assert self.trainer is not None
        # Lightning makes the first iterator before it tells anyone the epoch, so that is told here.
        loop: Any = self.trainer.fit_loop
        sampler: Any = loader.batch_sampler
        epoch, batch = divmod(loop.epoch_loop.batch_progress.total.processed, max(1, len(loader)))
        sampler.set_epoch(epoch)
        sampler.start_batch = batch
        return loader

    def steps(self) -> int:
        """Optimiser steps of the whole run.

        Lightning's own estimate would make the training loader, and with it the first epoch's order, before it knows
        where a resumed run stopped.
        """
        return run_steps(self.settings, self.epoch_steps())

    def epoch_steps(self) -> int:
        """Optimiser steps of an epoch."""
        return len(self._training_loader())

    def _training_loader(self) -> DataLoader:  # type: ignore[type-arg]
        assert self.trainer is not None
        return run_loader(
            self.settings,
            self.training,
            self.unlabelled,
            workers=self.settings.workers,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    def val_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        """Every image once, over all processes."""
        assert self.trainer is not None
        return evaluation_loader(
            self.evaluation,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    def transfer_batch_to_device(self, batch: Images, device: torch.device, dataloader_idx: int) -> Images:
        """Leave the images where they are: a detector's `prepare` moves them."""
        return batch


def run_steps(settings: TrainSettings, epoch_steps: int) -> int:
    """Optimiser steps of a whole run, given those of an epoch."""
    steps = settings.epochs * epoch_steps
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def run_loader(
    settings: TrainSettings,
    training: DetectionDataset,
    unlabelled: DetectionDataset | None,
    *,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DetectionLoader:
    """The training batches of a run, for one of its processes."""
    return training_loader(
        training,
        batch_size=settings.batch_size,
        seed=settings.seed,
        workers=workers,
        augmentation=settings.augmentation,
        rank=rank,
        world_size=world_size,
        unlabelled=unlabelled,
        unlabelled_per_batch=settings.unlabelled_per_batch if isinstance(settings, DistillSettings) else 0,
    )
