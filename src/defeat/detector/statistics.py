"""Statistics of the objects of a training split in resized images, from which anchors and other sizes are derived.

Letters of shapes: G objects, M images, L levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defeat.data import DetectionDataset
from defeat.detector.preparation import resized_size

RATIOS = (0.5, 1.0, 2.0)  # height over width of anchors, in all families
MAX_OBJECTS = 5000  # evenly spaced over the split
DIVISOR = 32  # sides of a padded image are multiples of it
RECALL_IOUS = (0.5, 0.6)  # IoU thresholds of the anchor recall
STEPS = 4  # candidates for the sides of anchors, between one side and its double


@dataclass(frozen=True)
class ObjectStatistics:
    """Objects of a training split after resizing, without difficult and crowd boxes.

    Attributes:
        size: short side of an image after resizing, in pixels.
        boxes: (G, 4) float32 x1 y1 x2 y2, pixels of the resized image.
        image_sizes: (G, 2) float32 height and width of the resized image of each object.
        per_image: (M,) float32, number of objects per image.
    """

    size: int
    boxes: Tensor
    image_sizes: Tensor
    per_image: Tensor

    def objects_per_image(self, quantile: float) -> float:
        """Quantile (0..1) of the number of objects per image, among images with objects; 0 without objects."""
        counts = self.per_image[self.per_image > 0]
        return float(counts.quantile(quantile)) if len(counts) else 0.0


def object_statistics(dataset: DetectionDataset, size: int, max_size: int) -> ObjectStatistics:
    """Compute the statistics of a split, without decoding an image.

    Args:
        dataset: the split.
        size: short side of an image after resizing, in pixels.
        max_size: upper limit of the long side in pixels.
    """
    counts = torch.tensor([sample.last - sample.first for sample in dataset.samples])
    image = torch.repeat_interleave(torch.arange(len(dataset)), counts)  # (G,)
    trainable = ~(dataset.table.difficult | dataset.table.crowd)
    image, boxes = image[trainable], dataset.table.boxes[trainable]
    original = torch.tensor(dataset.sizes, dtype=torch.float32)  # (M, 2)
    resized_sizes = [resized_size(height, width, size, max_size) for height, width in dataset.sizes]
    resized = torch.tensor(resized_sizes, dtype=torch.float32)  # (M, 2)
    per_image = torch.bincount(image, minlength=len(dataset)).float()
    sampled = torch.arange(len(image))[:: -(-len(image) // MAX_OBJECTS) or 1]
    image, boxes = image[sampled], boxes[sampled]
    scale = (resized / original)[image]  # (G, 2), of height and width
    return ObjectStatistics(size, boxes * scale[:, [1, 0, 1, 0]], resized[image], per_image)


def best_overlaps(
    statistics: ObjectStatistics, strides: Sequence[int], sides: Sequence[Sequence[float]], rounded: bool = True
) -> Tensor:
    """Highest IoU of each object with an anchor: (G,) float32 in 0..1.

    Among anchors of one shape, the nearest one has the highest IoU, so only that one is computed.

    Args:
        statistics: the objects.
        strides: strides of the L levels in pixels.
        sides: sides of the anchors of each level in pixels; each side is used with all `RATIOS`.
        rounded: whether corners are rounded to whole pixels, as in torchvision.
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
    """IoU of corresponding boxes of two tensors (G, 4): (G,)."""
    upper, lower = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    shared = (lower - upper).clamp(min=0).prod(dim=1)
    areas = [(corners[:, 2:] - corners[:, :2]).prod(dim=1) for corners in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-20)


def fit_sides(
    statistics: ObjectStatistics, strides: Sequence[int], octaves: Sequence[float] = (1.0,)
) -> tuple[int, ...]:
    """Sides of anchors with the highest recall; they double from level to level, like the strides.

    All levels share a head, so the ratio of side and stride is equal on all levels and only the first side is free. The
    candidate with the highest recall is chosen (mean of those at an IoU of 0.5 and of 0.6); among equal ones, that with
    the highest mean IoU.

    Args:
        statistics: the objects; without objects, the sides are those for 800 pixels, scaled to the size.
        strides: strides of the levels, each twice the previous one.
        octaves: factors of the sides within a level.

    Returns:
        One side per level in whole pixels.
    """
    count = len(strides)
    if not len(statistics.boxes):
        return _doubling(max(4, round(32 * statistics.size / 800)), count)
    candidates = dict.fromkeys(round(strides[0] * 2 ** (step / STEPS)) for step in range(-STEPS, 5 * STEPS + 1))
    scores: dict[int, tuple[float, float]] = {}
    for first in candidates:
        sides = [[side * octave for octave in octaves] for side in _doubling(first, count)]
        overlaps = best_overlaps(statistics, strides, sides)
        recalls = [float((overlaps >= least).float().mean()) for least in RECALL_IOUS]
        scores[first] = (sum(recalls) / len(recalls), float(overlaps.mean()))
    return _doubling(max(scores, key=scores.__getitem__), count)


def _doubling(first: int, count: int) -> tuple[int, ...]:
    return tuple(first * 2**level for level in range(count))
