"""What a detector's sizes follow from: the objects of a training split, in pixels of the resized images.

Letters of shapes: G objects, M images, L levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defeat.data import DetectionDataset
from defeat.detector.base import resized_size

RATIOS = (0.5, 1.0, 2.0)  # of an anchor's height to its width, in all families
MOST_OBJECTS = 5000  # that are looked at, evenly spread over the split
DIVISOR = 32  # sides of a padded image are multiples of it
RECALLED = (0.5, 0.6)  # IoU from which on an object counts as reached by an anchor
STEPS = 4  # candidates for the sides of anchors, between one side and its double


@dataclass(frozen=True)
class ObjectStatistics:
    """Objects of a training split as a detector sees them; difficult and crowd boxes are left out.

    Attributes:
        size: short side of an image after resizing, in pixels.
        boxes: (G, 4) float32 x1 y1 x2 y2, pixels of the resized image.
        image_sizes: (G, 2) float32 height and width of the resized image that each object lies in.
        per_image: (M,) float32, number of objects of each image.
    """

    size: int
    boxes: Tensor
    image_sizes: Tensor
    per_image: Tensor

    def objects_in_an_image(self, share: float) -> float:
        """How many objects an image has at most, in that share (0..1) of those that have any; 0 without objects."""
        some = self.per_image[self.per_image > 0]
        return float(some.quantile(share)) if len(some) else 0.0


def object_statistics(dataset: DetectionDataset, size: int, max_size: int) -> ObjectStatistics:
    """Read the annotations of a split, without decoding an image.

    Args:
        dataset: the split.
        size: short side of an image after resizing, in pixels.
        max_size: upper limit of the long side, in pixels.
    """
    counts = torch.tensor([sample.last - sample.first for sample in dataset.samples])
    image = torch.repeat_interleave(torch.arange(len(dataset)), counts)  # (G,)
    kept = ~(dataset.table.difficult | dataset.table.crowd)
    image, boxes = image[kept], dataset.table.boxes[kept]
    original = torch.tensor(dataset.sizes, dtype=torch.float32)  # (M, 2)
    resized = torch.tensor([resized_size(*one, size, max_size) for one in dataset.sizes], dtype=torch.float32)
    per_image = torch.bincount(image, minlength=len(dataset)).float()
    chosen = torch.arange(len(image))[:: -(-len(image) // MOST_OBJECTS) or 1]
    image, boxes = image[chosen], boxes[chosen]
    scale = (resized / original)[image]  # (G, 2), of height and width
    return ObjectStatistics(size, boxes * scale[:, [1, 0, 1, 0]], resized[image], per_image)


def best_overlaps(
    statistics: ObjectStatistics, strides: Sequence[int], sides: Sequence[Sequence[float]], rounded: bool = True
) -> Tensor:
    """IoU of each object with the anchor that overlaps it most: (G,) float32 in 0..1.

    Of anchors of one shape, the one whose centre is nearest has the highest IoU, so only that is looked at.

    Args:
        statistics: the objects.
        strides: distance of the anchors of each of L levels, in pixels.
        sides: sides of the anchors of each of L levels, in pixels; each in all of `RATIOS`.
        rounded: whether corners lie on whole pixels, as torchvision's.
    """
    boxes = statistics.boxes
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = -(-statistics.image_sizes.flip(1) // DIVISOR) * DIVISOR  # (G, 2) width and height with padding
    best = boxes.new_zeros(len(boxes))
    for stride, level in zip(strides, sides, strict=True):
        nearest = torch.minimum((centres / stride).round().clamp(min=0), torch.ceil(cells / stride) - 1) * stride
        for side in level:
            for ratio in RATIOS:
                half = boxes.new_tensor([side / ratio**0.5 / 2, side * ratio**0.5 / 2])
                half = half.round() if rounded else half
                anchors = torch.cat([nearest - half, nearest + half], dim=1)  # (G, 4)
                best = torch.maximum(best, paired_iou(boxes, anchors))
    return best


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes with others of the same number, pair by pair: (G,)."""
    upper, lower = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    shared = (lower - upper).clamp(min=0).prod(dim=1)
    areas = [(one[:, 2:] - one[:, :2]).prod(dim=1) for one in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-6)


def fit_sides(
    statistics: ObjectStatistics, strides: Sequence[int], octaves: Sequence[float] = (1.0,)
) -> tuple[int, ...]:
    """Sides of anchors, doubling from level to level as strides do, that reach most objects.

    All levels share a head, which sees an object at one scale relative to the stride: so only the first side is free.
    Of all candidates, the anchors are taken that overlap the largest share of the objects by an IoU of 0.5 and of 0.6
    (the mean of both); among equals, those with the highest mean IoU.

    Args:
        statistics: the objects; without any, the sides are those of 800 pixels (8 or 4 strides), scaled to the size.
        strides: of the levels, each twice the one before.
        octaves: factors of the sides within a level.

    Returns:
        One side for each level, in whole pixels.
    """
    count = len(strides)
    if not len(statistics.boxes):
        return _doubling(max(4, round(32 * statistics.size / 800)), count)
    firsts = dict.fromkeys(round(strides[0] * 2 ** (step / STEPS)) for step in range(-STEPS, 5 * STEPS + 1))
    scores: dict[int, tuple[float, float]] = {}
    for first in firsts:
        sides = [[side * octave for octave in octaves] for side in _doubling(first, count)]
        overlaps = best_overlaps(statistics, strides, sides)
        recalls = [float((overlaps >= least).float().mean()) for least in RECALLED]
        scores[first] = (sum(recalls) / len(recalls), float(overlaps.mean()))
    return _doubling(max(scores, key=scores.__getitem__), count)


def _doubling(first: int, count: int) -> tuple[int, ...]:
    return tuple(first * 2**level for level in range(count))
