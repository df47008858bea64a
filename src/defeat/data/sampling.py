"""Assign images to the batches of an epoch; a function of seed and epoch only."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import Sampler

from defeat.errors import InputError

Item = TypeVar("Item")


def seeded_generator(*key: int | str) -> torch.Generator:
    """Create a generator seeded by a hash of `key`: independent for different keys, equal on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    # 63 bits fit into a signed integer.
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class AspectRatioBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of images that are all landscape or all portrait, to reduce padding.

    Yields lists of `(index, epoch)`: persistent worker processes learn the epoch only from the index. All batches have
    `batch_size` images: the last batch of a group is filled with images of the same group, then of the other group,
    without duplicates within a batch. Only a data set smaller than a batch gives a smaller batch.

    Args:
        sizes: height and width of each image.
        batch_size: images per batch on each rank.
        seed: seed of the order of every epoch.
        rank: index of this process.
        world_size: number of processes that share the epoch; all get the same number of batches.
        others: height and width of images that are mixed in; their indices continue after those of `sizes`.
        others_per_batch: number of them per batch, in addition to the `batch_size` images; of the same orientation if
            there are any. Every epoch uses a new order.

    Attributes:
        epoch: epoch of the next iteration.
        start_batch: number of batches to skip in the current epoch, to continue an interrupted one. Setting another
            epoch resets it to 0; an iteration does not, because a DataLoader with workers starts iterating twice.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        others: Sequence[tuple[int, int]] = (),
        others_per_batch: int = 0,
    ) -> None:
        check_shares(batch_size, rank, world_size)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start_batch = 0
        landscape, portrait = _by_orientation(sizes)
        self._portrait = set(portrait)
        self._others = [[len(sizes) + index for index in group] for group in _by_orientation(others)]
        self._others_per_batch = others_per_batch if others else 0
        # A data set that fits in one batch is not split.
        groups = [landscape, portrait] if len(sizes) > batch_size else [landscape + portrait]
        self._groups = [group for group in groups if group]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        if epoch != self.epoch:
            self.start_batch = 0
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches of a whole epoch per rank, equal on all ranks."""
        total = sum(-(-len(group) // self.batch_size) for group in self._groups)
        return -(-total // self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Not a generator, so that epoch and start_batch are read now and not at the first batch.
        batches = self._epoch_batches()
        count = len(self) * self.world_size
        # Ranks without a batch at the end of the epoch get one from its beginning.
        padded = self._add_others([batches[index % len(batches)] for index in range(count)])
        batches_of_rank = padded[self.rank :: self.world_size][self.start_batch :]
        return iter([[(index, self.epoch) for index in batch] for batch in batches_of_rank])

    def _add_others(self, batches: list[list[int]]) -> list[list[int]]:
        """Add the other images to the batches."""
        if not self._others_per_batch:
            return batches
        generator = seeded_generator("others", self.seed, self.epoch)
        queues = [_shuffle(group, generator) for group in self._others]
        starts = [0, 0]
        mixed = []
        for batch in batches:
            orientation = int(batch[0] in self._portrait)
            orientation = orientation if queues[orientation] else 1 - orientation
            queue, start = queues[orientation], starts[orientation]
            stop = start + min(self._others_per_batch, len(queue))
            mixed.append(batch + [queue[index % len(queue)] for index in range(start, stop)])
            starts[orientation] = stop
        return mixed

    def _epoch_batches(self) -> list[list[int]]:
        generator = seeded_generator("order", self.seed, self.epoch)
        shuffled = [_shuffle(group, generator) for group in self._groups]
        batches = []
        for group in shuffled:
            others = [index for other in shuffled if other is not group for index in other]
            for start in range(0, len(group), self.batch_size):
                # Fill a short last batch from the beginning of the group, then with the other group.
                batch = dict.fromkeys(group[start : start + self.batch_size])
                if len(batch) < self.batch_size:
                    batch |= dict.fromkeys(group + others)
                batches.append(list(batch)[: self.batch_size])
        return _shuffle(batches, generator)


def _by_orientation(sizes: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Indices of the landscape (or square) and of the portrait images."""
    landscape = [index for index, (height, width) in enumerate(sizes) if width >= height]
    return landscape, [index for index, (height, width) in enumerate(sizes) if width < height]


def check_shares(batch_size: int, rank: int, world_size: int) -> None:
    """Raise InputError for an invalid batch size or rank."""
    if batch_size < 1:
        raise InputError(f"The batch size must be at least 1, not {batch_size}.")
    if not 0 <= rank < world_size:
        raise InputError(f"The rank must be in 0..{world_size - 1}, not {rank}.")


def _shuffle(items: list[Item], generator: torch.Generator) -> list[Item]:
    return [items[index] for index in torch.randperm(len(items), generator=generator).tolist()]
