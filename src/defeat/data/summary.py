"""Figures of a data set: images, boxes and their sizes, and images that two splits share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torchvision.transforms.v2.functional import resize, rgb_to_grayscale

from defeat.data.dataset import DetectionDataset

HASH_SIDE = 16  # cells; a hash has the square of that many bits
SIMILAR = 10  # bits in which the hashes of near-duplicates differ at most
QUANTILES = (0.05, 0.5, 0.95)
CHUNK = 1024  # images compared at once

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class SplitSummary:
    """Figures of a split.

    Attributes:
        split: name of the split.
        images: number of images.
        background: number of images without an object.
        boxes: number of boxes.
        per_class: number of boxes of each class.
        box_sides: 5 %, 50 % and 95 % quantile of the boxes' side (root of the area), in pixels; None without boxes.
        image_sizes: least, median and largest (height, width) by area, in pixels.
        notes: repairs and assumptions, a phrase each.
    """

    split: str
    images: int
    background: int
    boxes: int
    per_class: dict[str, int]
    box_sides: tuple[float, ...] | None
    image_sizes: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Duplicate:
    """Two images of different splits that look the same.

    Attributes:
        splits: names of the splits.
        indices: index of the image in each.
        names: names of the images.
        distance: bits in which their hashes differ.
    """

    splits: tuple[str, str]
    indices: tuple[int, int]
    names: tuple[str, str]
    distance: int


def summarise(dataset: DetectionDataset) -> SplitSummary:
    """Summarise a split, without decoding an image."""
    table = dataset.table
    counts = torch.bincount(table.labels, minlength=len(dataset.classes)).tolist()
    width, height = (table.boxes[:, 2:] - table.boxes[:, :2]).unbind(dim=1)
    sides = (width * height).sqrt().double()
    quantiles = sides.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist() if len(sides) else None
    by_area = sorted(dataset.sizes, key=lambda size: size[0] * size[1])
    return SplitSummary(
        split=dataset.split,
        images=len(dataset),
        background=sum(sample.first == sample.last for sample in dataset.samples),
        boxes=len(table.labels),
        per_class=dict(zip(dataset.classes, counts, strict=True)),
        box_sides=None if quantiles is None else tuple(quantiles),
        image_sizes=(by_area[0], by_area[len(by_area) // 2], by_area[-1]),
        notes=tuple(dataset.problems),
    )


def near_duplicates(splits: Mapping[str, DetectionDataset], console: Console | None = None) -> list[Duplicate]:
    """Find images that look the same in two splits: copies, resized, compressed again or slightly changed in colour.

    A difference hash of 256 bits of each image is compared (https://www.hackerfactor.com/blog/?/archives/529).

    Args:
        splits: data sets by the names of their splits.
        console: where to show progress; None for nowhere.

    Returns:
        The pairs, most similar first; of several images of one split that match an image of a later one, the first of
        the most similar.
    """
    hashes = {name: _hashes(dataset, console) for name, dataset in splits.items()}
    names = list(splits)
    pairs = [(first, second) for place, first in enumerate(names) for second in names[place + 1 :]]
    found = []
    for first, second in pairs:
        for index, (nearest, distance) in enumerate(_nearest(hashes[second], hashes[first])):
            if distance <= SIMILAR:
                images = splits[first].samples[nearest].name, splits[second].samples[index].name
                found.append(Duplicate((first, second), (nearest, index), images, distance))
    return sorted(found, key=lambda duplicate: duplicate.distance)


def _hashes(dataset: DetectionDataset, console: Console | None) -> Words:
    """(N, 4) difference hashes."""
    title = f"Comparing the images of {dataset.split}"
    hidden = console is None or not console.is_terminal
    indices = track(range(len(dataset)), title, console=console, transient=True, disable=hidden)
    rows = [_hash(dataset, index) for index in indices]
    return np.stack(rows) if rows else np.zeros((0, HASH_SIDE**2 // 64), dtype=np.uint64)


def _hash(dataset: DetectionDataset, index: int) -> Words:
    image, _ = dataset[index]
    small = resize(rgb_to_grayscale(image).float(), [HASH_SIDE, HASH_SIDE + 1], antialias=True)[0]  # (16, 17)
    brighter = (small[:, 1:] > small[:, :-1]).numpy()
    words: Words = np.packbits(brighter.ravel()).view(np.uint64)
    return words


def _nearest(queries: Words, candidates: Words) -> Sequence[tuple[int, int]]:
    """For each of the queries the index of the nearest candidate and its distance in bits."""
    if not len(candidates):
        return []
    results: list[tuple[int, int]] = []
    for start in range(0, len(queries), CHUNK):
        part = queries[start : start + CHUNK]
        best = np.full(len(part), HASH_SIDE**2 + 1)
        index = np.zeros(len(part), dtype=np.int64)
        for offset in range(0, len(candidates), CHUNK):
            others = candidates[offset : offset + CHUNK]
            distances = np.bitwise_count(part[:, None] ^ others[None]).sum(axis=2, dtype=np.int64)
            nearest = distances.argmin(axis=1)
            distance = distances[np.arange(len(part)), nearest]
            better = distance < best
            best, index = np.where(better, distance, best), np.where(better, nearest + offset, index)
        results += zip(index.tolist(), best.tolist(), strict=True)
    return results
