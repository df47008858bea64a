"""The images and boxes of a split as a few arrays.

Python objects would be copied by every worker process: counting the references to an object writes into its memory. The
arrays are tensors, so that worker processes share them however they are started.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a split, without its pixels.

    Attributes:
        path: path of the image.
        name: path relative to the data set, the same on every machine.
        image_id: unique number in the split.
        size: height and width that the boxes refer to.
        prefer_upright: whether to apply the EXIF orientation if stored and upright size are equal.
        first: index of its first box among all boxes of the split.
        last: index after its last box.
    """

    path: str
    name: str
    image_id: int
    size: tuple[int, int]
    prefer_upright: bool
    first: int
    last: int


@dataclass(frozen=True)
class BoxTable:
    """All boxes of a split, in the order of the images.

    Attributes:
        boxes: (G, 4) float32 x1 y1 x2 y2 in pixels.
        labels: (G,) int64 in 0..K-1.
        difficult: (G,) bool.
        crowd: (G,) bool.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    crowd: Tensor


@dataclass(frozen=True, eq=False)
class Strings(Sequence[str]):
    """Texts that begin alike.

    Attributes:
        beginning: the part that all have in common; it may be shorter than it could be.
        data: (bytes,) uint8, the remaining parts in UTF-8, one after the other.
        ends: (N + 1,) int64, index in `data` before the first and after each of them.
    """

    beginning: str
    data: Tensor
    ends: Tensor

    @classmethod
    def of(cls, texts: Sequence[str], beginning: str | None = None) -> "Strings":
        """Store texts; their common beginning is looked for, or else added to each."""
        start = 0
        if beginning is None:
            beginning = _common_beginning(min(texts), max(texts)) if texts else ""  # of these two, and so of all
            start = len(beginning)
        encoded = [text[start:].encode("utf-8", "surrogatepass") for text in texts]
        ends = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)), out=ends[1:])
        return cls(beginning, _bytes(b"".join(encoded)), torch.from_numpy(ends))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        index = range(len(self))[index]
        ends: npt.NDArray[np.int64] = self.ends.numpy()
        text = self.data.numpy()[ends[index] : ends[index + 1]].tobytes()
        return self.beginning + text.decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        data, ends = self.data.numpy().data, self.ends.numpy()
        for start in range(0, len(self), _CHUNK):
            limits = ends[start : start + _CHUNK + 1].tolist()
            for first, last in pairwise(limits):
                yield self.beginning + str(data[first:last], "utf-8", "surrogatepass")

    def take(self, indices: Sequence[int]) -> "Strings":
        """Some of the texts, in the given order."""
        data, ends = self.data.numpy().data, self.ends.numpy()
        chosen = np.asarray(indices, dtype=np.int64)
        firsts, lasts = ends[:-1][chosen], ends[1:][chosen]
        parts = (data[first:last] for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True))
        return Strings(
            self.beginning, _bytes(b"".join(parts)), torch.from_numpy(np.cumsum([0, *(lasts - firsts).tolist()]))
        )


@dataclass(frozen=True, eq=False)
class SampleTable(Sequence[Sample]):
    """The images of a split, without their pixels; a `Sample` is made when it is asked for.

    Attributes:
        paths: paths of the images.
        names: see `Sample`.
        image_ids: (N,) int64.
        sizes: (N, 2) int64, height and width.
        prefer_upright: (N,) bool.
        rows: (N, 2) int64, first box and index after the last.
    """

    paths: Strings
    names: Strings
    image_ids: Tensor
    sizes: Tensor
    prefer_upright: Tensor
    rows: Tensor

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> "SampleTable":
        """Store samples."""
        listed = list(samples)
        return cls(
            paths=Strings.of([sample.path for sample in listed]),
            names=Strings.of([sample.name for sample in listed]),
            image_ids=torch.tensor([sample.image_id for sample in listed], dtype=torch.int64),
            sizes=torch.tensor([sample.size for sample in listed], dtype=torch.int64).reshape(-1, 2),
            prefer_upright=torch.tensor([sample.prefer_upright for sample in listed], dtype=torch.bool),
            rows=torch.tensor([(sample.first, sample.last) for sample in listed], dtype=torch.int64).reshape(-1, 2),
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        height, width = self.sizes[index].tolist()
        first, last = self.rows[index].tolist()
        image_id, upright = int(self.image_ids[index]), bool(self.prefer_upright[index])
        return Sample(self.paths[index], self.names[index], image_id, (height, width), upright, first, last)

    def __iter__(self) -> Iterator[Sample]:
        paths, names = iter(self.paths), iter(self.names)
        for start in range(0, len(self), _CHUNK):
            part = slice(start, start + _CHUNK)
            numbers = zip(
                self.image_ids[part].tolist(),
                map(tuple, self.sizes[part].tolist()),
                self.prefer_upright[part].tolist(),
                self.rows[part].tolist(),
                strict=True,
            )
            for image_id, size, upright, (first, last) in numbers:
                yield Sample(next(paths), next(names), image_id, size, upright, first, last)

    def box_counts(self) -> Tensor:
        """(N,) int64, number of boxes of each image."""
        return self.rows[:, 1] - self.rows[:, 0]

    def take(self, indices: Sequence[int]) -> "SampleTable":
        """Some of the images, in the given order; their boxes are numbered anew, in the order of these images."""
        chosen = torch.tensor(indices, dtype=torch.int64)
        lasts = self.box_counts()[chosen].cumsum(0)
        return SampleTable(
            paths=self.paths.take(indices),
            names=self.names.take(indices),
            image_ids=self.image_ids[chosen],
            sizes=self.sizes[chosen],
            prefer_upright=self.prefer_upright[chosen],
            rows=torch.stack([lasts - self.box_counts()[chosen], lasts], dim=1),
        )


_CHUNK = 1 << 14  # samples that are Python objects at once


def _common_beginning(first: str, second: str) -> str:
    different = (index for index, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return first[: next(different, min(len(first), len(second)))]


def _bytes(content: bytes) -> Tensor:
    """(bytes,) uint8; a copy, because a tensor must be writable."""
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())
