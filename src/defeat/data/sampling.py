"""Which images make up the batches of an epoch: a function of seed and epoch alone."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import Sampler

from defeat.errors import InputError

Item = TypeVar("Item")


def seeded_generator(*key: int | str) -> torch.Generator:
    """A generator seeded by a hash of `key`: unrelated for different keys, the same on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    # 63 bits: what fits a signed integer.
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class AspectRatioBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of images that are all wider than tall, or all taller than wide, so that little of a batch is padding.

    Yields lists of `(index, epoch)`: the epoch travels with the index, because worker processes that persist have no
    other way to learn it. All batches have `batch_size` images: the last one of a group is filled with images of the
    same group, then with others, none twice in a batch. Only a data set smaller than a batch gives a smaller batch.

    Args:
        sizes: height and width of each image.
        batch_size: images of a batch, on each rank.
        seed: what the order of every epoch is drawn from.
        rank: which of the processes this is.
        world_size: how many processes share the epoch; all get the same number of batches.
        others: height and width of images that are mixed in, numbered on behind those of `sizes`.
        others_per_batch: how many of them go into each batch, beside the `batch_size` images; of the same kind, wide or
            tall, where there are any. Each epoch goes through them in an order of its own, as far as it comes.

    Attributes:
        epoch: the epoch that the next iteration is for.
        start_batch: batches of the present epoch that are skipped: where an interrupted epoch goes on. It is 0 again as
            soon as another epoch is set; not before, because a DataLoader with workers begins an iteration twice.
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
        wide, tall = _wide_and_tall(sizes)
        self._tall = set(tall)
        self._others = [[len(sizes) + index for index in kind] for kind in _wide_and_tall(others)]
        self._others_per_batch = others_per_batch if others else 0
        # A data set that fits in one batch is not split any further.
        groups = [wide, tall] if len(sizes) > batch_size else [wide + tall]
        self._groups = [group for group in groups if group]

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is for."""
        if epoch != self.epoch:
            self.start_batch = 0
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, the same on every rank."""
        total = sum(-(-len(group) // self.batch_size) for group in self._groups)
        return -(-total // self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Not a generator: epoch and start count as they are now, not at the first batch.
        batches = self._epoch_batches()
        count = len(self) * self.world_size
        # Ranks left without a batch at the end of the epoch get one from its beginning.
        padded = self._mixed([batches[place % len(batches)] for place in range(count)])
        own = padded[self.rank :: self.world_size][self.start_batch :]
        return iter([[(index, self.epoch) for index in batch] for batch in own])

    def _mixed(self, batches: list[list[int]]) -> list[list[int]]:
        """The batches, each with its share of the other images."""
        if not self._others_per_batch:
            return batches
        generator = seeded_generator("others", self.seed, self.epoch)
        queues = [_shuffle(kind, generator) for kind in self._others]
        begins = [0, 0]
        mixed = []
        for batch in batches:
            kind = int(batch[0] in self._tall)
            kind = kind if queues[kind] else 1 - kind
            queue, begin = queues[kind], begins[kind]
            share = min(self._others_per_batch, len(queue))
            mixed.append(batch + [queue[place % len(queue)] for place in range(begin, begin + share)])
            begins[kind] = begin + share
        return mixed

    def _epoch_batches(self) -> list[list[int]]:
        generator = seeded_generator("order", self.seed, self.epoch)
        shuffled = [_shuffle(group, generator) for group in self._groups]
        batches = []
        for group in shuffled:
            others = [index for other in shuffled if other is not group for index in other]
            for start in range(0, len(group), self.batch_size):
                # From a short last batch on, the group and then the others follow again.
                batch = dict.fromkeys(group[start : start + self.batch_size])
                if len(batch) < self.batch_size:
                    batch |= dict.fromkeys(group + others)
                batches.append(list(batch)[: self.batch_size])
        return _shuffle(batches, generator)


def _wide_and_tall(sizes: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Numbers of the images that are at least as wide as tall, and of the others."""
    wide = [index for index, (height, width) in enumerate(sizes) if width >= height]
    return wide, [index for index, (height, width) in enumerate(sizes) if width < height]


def check_shares(batch_size: int, rank: int, world_size: int) -> None:
    """Raise InputError for a batch size or a rank that cannot be."""
    if batch_size < 1:
        raise InputError(f"The batch size must be at least 1, not {batch_size}.")
    if not 0 <= rank < world_size:
        raise InputError(f"The rank must be in 0..{world_size - 1}, not {rank}.")


def _shuffle(items: list[Item], generator: torch.Generator) -> list[Item]:
    return [items[place] for place in torch.randperm(len(items), generator=generator).tolist()]
