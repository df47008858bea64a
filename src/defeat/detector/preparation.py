"""Preparation of batches, shared by detectors and tapped teachers: input size, resizing, padding and normalisation."""

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from defeat.detector.description import default_max_size
from defeat.types import Batch, DetectorInfo

EQUAL_SCALE = 1e-2  # a batch whose scale differs from 1 by less than this is not resized


def resized_size(height: int, width: int, size: int, max_size: float) -> tuple[int, int]:
    """Height and width of an image whose short side becomes `size`, or whose long side `max_size`, if that is less."""
    scale = min(size / min(height, width), max_size / max(height, width))
    return max(1, int(height * scale)), max(1, int(width * scale))


def input_size(info: DetectorInfo, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
    """Height and width of an image after resizing for a detector; unchanged if `info.size` is 0.

    They are equal if the detector stretches images.

    Args:
        info: of the detector.
        height: height of the image in pixels.
        width: width of the image in pixels.
        scale: `Target.scale`.
    """
    if not info.size:
        return height, width
    if info.stretches:
        side = max(1, min(info.max_size, round(info.size * scale)))
        return side, side
    return resized_size(height, width, round(info.size * scale), info.max_size * min(1.0, scale))


def rounded_up(side: int, divisor: int) -> int:
    """The smallest multiple of `divisor` that is not less than `side`."""
    return -(-side // divisor) * divisor


def resized_batch(info: DetectorInfo, batch: Batch) -> Batch:
    """Resize a student's batch to the input size of a teacher, and pad it to multiples of `info.size_divisor`.

    The scale is the ratio of the short sides. A batch of about the same size, or any batch if `info.size` is 0, is
    returned unchanged. Images keep the aspect ratio that they have in the student's batch, also where only one of the
    two detectors stretches images: both look at the same pixels, and a cell of one is above that of the other.
    """
    if not info.size:
        return batch
    image_scale = batch.targets[0].scale if batch.targets else 1.0
    if batch.stretched or info.stretches:
        scale = _unlike_scale(info, batch, image_scale)
    else:
        scale = input_size(info, *batch.original_sizes[0], image_scale)[0] / batch.sizes[0][0]
    if abs(scale - 1) < EQUAL_SCALE:
        return batch
    full = [round(side * scale) for side in batch.images.shape[-2:]]
    images = F.interpolate(batch.images, size=full, mode="bilinear", antialias=scale < 1)
    sizes = [(max(1, round(height * scale)), max(1, round(width * scale))) for height, width in batch.sizes]
    targets = [target.resized(size) for target, size in zip(batch.targets, sizes, strict=False)]
    return padded_batch(replace(batch, images=images, sizes=sizes, targets=targets, scale=scale), info.size_divisor)


def _unlike_scale(info: DetectorInfo, batch: Batch, image_scale: float) -> float:
    """Scale of a batch where the teacher, or the student that prepared it, stretches images."""
    if batch.stretched:  # a square
        return max(1, round(info.size * min(1.0, image_scale))) / batch.sizes[0][0]
    limit = default_max_size(info.size) * min(1.0, image_scale)
    height, _ = resized_size(*batch.original_sizes[0], round(info.size * image_scale), limit)
    return height / batch.sizes[0][0]


def padded_batch(batch: Batch, divisor: int) -> Batch:
    """Pad height and width of a batch to multiples of `divisor`."""
    bottom, right = (-side % divisor for side in batch.images.shape[-2:])
    return replace(batch, images=F.pad(batch.images, (0, right, 0, bottom))) if bottom or right else batch


def normalised(images: Tensor, info: DetectorInfo) -> Tensor:
    """Subtract the mean and divide by the standard deviation. (B, 3, H, W)."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (info.mean, info.std))
    return (images - mean) / std


def zero_padding(images: Tensor, sizes: Sequence[tuple[int, int]]) -> None:
    """Set the padding of (B, 3, H, W) images to zero, in place."""
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
