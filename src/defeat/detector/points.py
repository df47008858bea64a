"""What anchor-free one-stage heads share: padded targets, and labels of points.

Letters of shapes: B images, N points of all levels, K classes, G objects (the largest number in an image of the batch).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defeat.detector.statistics import ObjectStatistics
from defeat.types import Batch, Target

FULL_SIZE = 800  # input size in pixels for which the published numbers of candidates are meant
SQUARE = 8.0  # side in strides of the `squares` of `DensePredictions`, as published for LD


@dataclass(frozen=True)
class PaddedTargets:
    """The objects of a batch as tensors, with rows of zeros after the last object of an image.

    Attributes:
        boxes: (B, G, 4) float32, pixels of the batch.
        labels: (B, G) int64.
        real: (B, G) bool, false for the rows of zeros.
    """

    boxes: Tensor
    labels: Tensor
    real: Tensor

    @classmethod
    def of(cls, targets: Sequence[Target], device: torch.device) -> "PaddedTargets":
        """Pad the targets of a batch."""
        most = max((len(target.boxes) for target in targets), default=0)
        boxes = torch.zeros(len(targets), most, 4, device=device)
        labels = torch.zeros(len(targets), most, dtype=torch.int64, device=device)
        for row, row_labels, target in zip(boxes, labels, targets, strict=True):
            row[: len(target.boxes)] = target.boxes
            row_labels[: len(target.boxes)] = target.labels
        counts = torch.tensor([len(target.boxes) for target in targets], device=device)
        return cls(boxes, labels, torch.arange(most, device=device) < counts[:, None])


@dataclass(frozen=True)
class Assignment:
    """Objects assigned to the points of a batch.

    Attributes:
        targets: the objects.
        matched: (B, N) int64, index of the object of each point, -1 for background.
        annotated: (B,) bool, whether the background of an image is known.
    """

    targets: PaddedTargets
    matched: Tensor
    annotated: Tensor

    def labels(self, classes: int) -> Tensor:
        """Label of each point: (B, N) int64, `classes` for background."""
        labels = self.targets.labels
        with_background = torch.cat((labels, labels.new_full((len(labels), 1), classes)), dim=1)
        return with_background.gather(1, torch.where(self.matched >= 0, self.matched, labels.shape[1]))

    def positives(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Positive points: (P,) image, (P,) point, (P, 4) box and (P,) label of the object."""
        image, point = torch.where(self.matched >= 0)
        index = self.matched[image, point]
        return image, point, self.targets.boxes[image, index], self.targets.labels[image, index]

    def class_weights(self, negative_weight: float) -> Tensor:
        """Weight of each point in a classification loss: (B, N) float32; 0 for unknown background."""
        return torch.where(self.matched >= 0, 1.0, negative_weight * self.annotated[:, None])


def assign_objects(batch: Batch, match: Callable[[PaddedTargets], Tensor]) -> tuple[Assignment, Assignment]:
    """Assign all objects of a batch for methods, and the training targets for the detector's loss.

    Args:
        batch: without targets, all points are background.
        match: (B, N) index of the object of each point, -1 for background.
    """
    device = batch.images.device
    targets = batch.targets or [Target.empty(0, size) for size in batch.sizes]
    annotated = torch.tensor([target.annotated for target in targets], device=device)
    padded = PaddedTargets.of(targets, device)
    everything = Assignment(padded, match(padded), annotated)
    if all(target.annotated for target in targets):
        return everything, everything
    padded = PaddedTargets.of(batch.training_targets, device)
    return everything, Assignment(padded, match(padded), annotated)


def group_count(channels: int) -> int:
    """Groups of a normalised head: 32, as published, or fewer where groups would not be equal or of a single channel.

    The norm of a single channel on a feature map of a single cell, as small images have it, would be zero.
    """
    groups = math.gcd(32, channels)
    return groups // 2 if groups == channels and groups > 1 else groups


def fitted_candidates(statistics: ObjectStatistics) -> int:
    """Candidates per level before non-maximum suppression: in proportion to the short side, more in crowded images."""
    share = min(1.0, statistics.size / FULL_SIZE)
    return min(1000, round(max(1000 * share, 100.0, 8 * statistics.objects_per_image(0.9))))
