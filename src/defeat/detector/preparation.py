"""Preparation of batches, shared by detectors and tapped teachers: input size, resizing, padding and normalisation."""

from collections.abc import Sequence
from dataclasses import replace
from math import exp, log
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from defeat.types import Batch, DetectorInfo

EQUAL_SCALE = 1e-2  # a batch whose scale differs from 1 by less than this is not resized
ROUNDED_PIXELS = 2  # an aspect ratio that differs by less is the same, but for rounding


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
    if info.square:
        side = max(info.size_divisor, round(info.size * scale / info.size_divisor) * info.size_divisor)
        return side, side
    return resized_size(height, width, round(info.size * scale), info.max_size * min(1.0, scale))


def rounded_up(side: int, divisor: int) -> int:
    """The smallest multiple of `divisor` that is not less than `side`."""
    return -(-side // divisor) * divisor


def resized_image(image: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """Resize an image (3, H, W), uint8 in 0..255 or float32 in 0..1, to a height and width; float32 in 0..1."""
    if antialias:
        image = transforms.resize(image, list(size), antialias=True)
    resized: Tensor = transforms.to_dtype(image, torch.float32, scale=True)
    if not antialias:
        resized = F.interpolate(resized[None], size=size, mode="bilinear", align_corners=False)[0]
    return resized


def resized_batch(info: DetectorInfo, batch: Batch) -> Batch:
    """Resize a student's batch to the input size of a teacher, and pad it to multiples of `info.size_divisor`.

    The scale is the ratio of the short sides. If one of the two stretches images and the other keeps their aspect
    ratio, height and width have a ratio each, the mean over the images: all images are resized alike, because the
    teacher must see the student's pixels. A batch of about the same size, or any batch if `info.size` is 0, is returned
    unchanged.
    """
    if not info.size:
        return batch
    scale, stretch = _scale_and_stretch(info, batch)
    if abs(scale - 1) < EQUAL_SCALE and stretch == 1:
        return batch
    ratios = (scale, scale * stretch)
    height, width = (round(side * ratio) for side, ratio in zip(batch.images.shape[-2:], ratios, strict=True))
    images = F.interpolate(batch.images, size=(height, width), mode="bilinear", antialias=min(ratios) < 1)
    sizes = [(max(1, round(height * ratios[0])), max(1, round(width * ratios[1]))) for height, width in batch.sizes]
    targets = [target.resized(size) for target, size in zip(batch.targets, sizes, strict=False)]
    resized = replace(batch, images=images, sizes=sizes, targets=targets, scale=scale, stretch=stretch)
    return padded_batch(resized, info.size_divisor)


def _scale_and_stretch(info: DetectorInfo, batch: Batch) -> tuple[float, float]:
    """`Batch.scale` and `Batch.stretch` with which a student's batch has the input size of a teacher."""
    scales = [target.scale for target in batch.targets] or [1.0] * len(batch.sizes)
    own = [input_size(info, *size, scale) for size, scale in zip(batch.original_sizes, scales, strict=True)]
    ratios = [(new[0] / old[0], new[1] / old[1]) for new, old in zip(own, batch.sizes, strict=True)]
    rounding = ROUNDED_PIXELS / min(min(size) for size in batch.sizes)
    if all(abs(width / height - 1) <= rounding for height, width in ratios):
        return ratios[0][0], 1.0
    scale, width_scale = (exp(fmean(map(log, sides))) for sides in zip(*ratios, strict=True))
    return scale, width_scale / scale


def padded_batch(batch: Batch, divisor: int) -> Batch:
    """Pad height and width of a batch to multiples of `divisor`."""
    bottom, right = (-side % divisor for side in batch.images.shape[-2:])
    return replace(batch, images=F.pad(batch.images, (0, right, 0, bottom))) if bottom or right else batch


def normalised(images: Tensor, info: DetectorInfo) -> Tensor:
    """Subtract the mean and divide by the standard deviation. (B, 3, H, W)."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (info.mean, info.std))
    return (images - mean) / std


def padding_colour(info: DetectorInfo, padding: float | None) -> tuple[float, float, float]:
    """Padding in R, G and B after the normalisation, for a value in 0..1 before it; zero for None, the mean."""
    if padding is None:
        return 0.0, 0.0, 0.0
    red, green, blue = ((padding - mean) / std for mean, std in zip(info.mean, info.std, strict=True))
    return red, green, blue


def fill_padding(
    images: Tensor, sizes: Sequence[tuple[int, int]], colour: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> None:
    """Set the padding of (B, 3, H, W) normalised images to a colour, in place."""
    value = images.new_tensor(colour)[:, None, None]
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, height:] = value
        image[:, :, width:] = value
