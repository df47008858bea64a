"""Batches for training and evaluation: `(images, targets)`, lists of the same length, images of different sizes.

The order and the augmentations depend on the seed and the epoch alone: not on workers, nor on any global generator,
and no global generator is touched.
"""

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
    """A DataLoader of packed batches, which it unpacks; an InputError of a worker is raised as it is."""

    def __iter__(self) -> Iterator[tuple[Images, Targets]]:  # type: ignore[override]
        """The batches of an epoch."""
        # Not a generator itself: the epoch begins when it is asked for, not at its first batch.
        return _unpacked(super().__iter__())


class TrainingView(Dataset[tuple[Tensor, Target]]):
    """A data set as the training sees it: indexed by `(index, epoch)`, augmented by what these and the seed draw."""

    def __init__(self, dataset: Dataset[tuple[Tensor, Target]], augmentation: Augmentation, seed: int) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Target]:
        """The augmented image and target."""
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
    """Batches for training, shuffled, of similar aspect ratio; call `loader.batch_sampler.set_epoch` before each epoch.

    Args:
        dataset: what to learn from.
        batch_size: images of a batch, on each rank.
        seed: what order and augmentations are drawn from.
        workers: processes that decode images; 0 for this one.
        augmentation: how images are changed at random.
        rank: which of the training processes this is.
        world_size: how many training processes share the epoch.
        unlabelled: images without annotations that are mixed in.
        unlabelled_per_batch: how many of them go into each batch, beside the `batch_size` images.
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
        worker_init_fn=_leave_signals_to_the_run,
        generator=seeded_generator("workers", seed),
    )


def evaluation_loader(
    dataset: DetectionDataset, *, batch_size: int, workers: int, rank: int = 0, world_size: int = 1
) -> DetectionLoader:
    """Batches for evaluation: in order, every image exactly once over all ranks.

    Rank r gets the images r, r + world_size, ...; the ranks may differ by one image, and the last batch may be short.

    Args:
        dataset: what to evaluate on.
        batch_size: images of a batch, on each rank.
        workers: processes that decode images; 0 for this one.
        rank: which of the processes this is.
        world_size: how many processes share the data set.
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
        worker_init_fn=_leave_signals_to_the_run,
        generator=seeded_generator("workers", 0),
    )


def _leave_signals_to_the_run(_: int) -> None:
    """Go on at Ctrl-C or SIGTERM, which reach all processes of a run: the step and its checkpoint are made first.

    A worker ends with the process that started it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _unpacked(batches: Iterator[PackedBatch | InputError]) -> Iterator[tuple[Images, Targets]]:
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield batch.unpack()
