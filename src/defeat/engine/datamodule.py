"""The training and evaluation images of a run."""

from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from defeat.data.loader import evaluation_loader
from defeat.engine.experiment import Experiment
from defeat.types import Target

Images = tuple[list[Tensor], list[Target]]


class DetectionDataModule(LightningDataModule):
    """Loaders of the training and evaluation images of each process.

    Args:
        experiment: the experiment with these images.
    """

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.experiment = experiment

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all training images and annotations."""
        return "-".join(dataset.fingerprint()[:16] for dataset in self.experiment.datasets)

    def train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        """Shuffled batches; a resumed run continues at the batch where it stopped."""
        loader = self._training_loader()
        assert self.trainer is not None
        # Lightning makes the first iterator before it announces the epoch, so the epoch is set here.
        loop: Any = self.trainer.fit_loop
        sampler: Any = loader.batch_sampler
        epoch, batch = divmod(loop.epoch_loop.batch_progress.total.processed, max(1, len(loader)))
        sampler.set_epoch(epoch)
        sampler.start_batch = batch
        return loader

    def steps(self) -> int:
        """Optimiser steps of the whole run.

        Lightning's own estimate would create the training loader, and with it the first epoch's order, before it knows
        where a resumed run stopped.
        """
        return self.experiment.optimisation.steps(self.epoch_steps())

    def epoch_steps(self) -> int:
        """Optimiser steps per epoch."""
        return self.experiment.optimisation.epoch_steps(self.epoch_batches())

    def epoch_batches(self) -> int:
        """Batches per epoch, in each process."""
        return len(self._training_loader())

    def _training_loader(self) -> DataLoader:  # type: ignore[type-arg]
        assert self.trainer is not None
        return self.experiment.loader(self.experiment.workers, self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:  # type: ignore[type-arg]
        """Every image once, over all processes; empty without evaluation."""
        assert self.trainer is not None
        if self.experiment.evaluation is None:
            return []
        return evaluation_loader(
            self.experiment.evaluation,
            batch_size=self.experiment.optimisation.batch_size,
            workers=self.experiment.workers,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    def transfer_batch_to_device(self, batch: Images, device: torch.device, dataloader_idx: int) -> Images:
        """Do nothing: a detector's `prepare` moves the images."""
        return batch
