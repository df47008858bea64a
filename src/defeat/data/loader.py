"""Batches for training and evaluation: `(images, targets)`, lists of the same length, images of different sizes.

Order and augmentations depend only on seed and epoch, not on workers or global generators. Global generators are not
modified.
"""

import gc
import signal
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from defeat.data.batching import ErrorsAsItems, Images, PackedBatch, Targets, pack
from defeat.data.dataset import DetectionDataset
from defeat.data.sampling import AspectRatioBatchSampler, check_shares, seeded_generator
from defeat.data.transforms import Augmentation, HorizontalFlip
from defeat.errors import InputError
from defeat.types import Target

FLIP = HorizontalFlip(0.5)


class DetectionLoader(DataLoader[tuple[Images, Targets]]):
    """A DataLoader that unpacks packed batches; an InputError of a worker is raised unchanged."""

    def __iter__(self) -> Iterator[tuple[Images, Targets]]:  # type: ignore[override]
        """Iterate over the batches of an epoch."""
        # Not a generator itself, so that the epoch starts with this call and not with its first batch.
        return _unpacked(super().__iter__())


class TrainingView(Dataset[tuple[Tensor, Target]]):
    """An augmented data set, indexed by `(index, epoch)`; seed, epoch and index determine the random numbers."""

    def __init__(self, dataset: Dataset[tuple[Tensor, Target]], augmentation: Augmentation, seed: int) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Target]:
        """Get an augmented image and its target."""
        index, epoch = key
        image, target = self.dataset[index]
        return self.augmentation(image, target, seeded_generator("augmentation", self.seed, epoch, index))


def training_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    seed: int,
    workers: int,
    augmentation: Augmentation = FLIP,
    rank: int = 0,
    world_size: int = 1,
    unlabelled: DetectionDataset | None = None,
    unlabelled_per_batch: int = 0,
) -> DetectionLoader:
    """Build shuffled training batches of similar aspect ratio; call `loader.batch_sampler.set_epoch` before each epoch.

    Args:
        dataset: training data.
        batch_size: images per batch on each rank.
        seed: seed of order and augmentations.
        workers: processes that decode images; 0 for the current process.
        augmentation: random change of images and targets.
        rank: index of this training process.
        world_size: number of training processes that share the epoch.
        unlabelled: unannotated images that are mixed in.
        unlabelled_per_batch: unannotated images per batch, in addition to the `batch_size` images.
    """
    sampler = AspectRatioBatchSampler(
        dataset.sizes,
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        others=unlabelled.sizes if unlabelled is not None else (),
        others_per_batch=unlabelled_per_batch,
    )
    images: Dataset[tuple[Tensor, Target]] = dataset if unlabelled is None else ConcatDataset([dataset, unlabelled])
    view = TrainingView(images, augmentation, seed)
    return DetectionLoader(
        ErrorsAsItems(view),  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=pack,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=begin_worker,
        generator=seeded_generator("workers", seed),
    )


def evaluation_loader(
    dataset: DetectionDataset, *, batch_size: int, workers: int, rank: int = 0, world_size: int = 1
) -> DetectionLoader:
    """Build evaluation batches: in order, every image exactly once over all ranks.

    Rank r gets the images r, r + world_size, ...; ranks may differ by one image, and the last batch may be smaller.

    Args:
        dataset: evaluation data.
        batch_size: images per batch on each rank.
        workers: processes that decode images; 0 for the current process.
        rank: index of this process.
        world_size: number of processes that share the data set.
    """
    check_shares(batch_size, rank, world_size)
    return DetectionLoader(
        ErrorsAsItems(dataset),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=range(rank, len(dataset), world_size),
        num_workers=workers,
        collate_fn=pack,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=begin_worker,
        generator=seeded_generator("workers", 0),
    )


def begin_worker(_: int) -> None:
    """Prepare a process that loads images.

    It ignores Ctrl-C and SIGTERM, which reach all processes of a run, because the step is completed and saved first; it
    ends with the process that started it. Garbage collection leaves alone what a forked process shares with the run:
    looking at an object would copy its memory.
    """
    gc.freeze()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _unpacked(batches: Iterator[PackedBatch | InputError]) -> Iterator[tuple[Images, Targets]]:
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield batch.unpack()
