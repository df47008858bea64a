"""Augmentations that change image and target together, with random numbers of a given generator."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_area, clip_boxes_to_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from defeat.errors import InputError
from defeat.types import Target

XYXY = tv_tensors.BoundingBoxFormat.XYXY
MEAN_COLOUR = (124, 116, 104)  # of ImageNet, RGB


class Augmentation(Protocol):
    """Random change of an image (3, H, W) and its target; all random numbers come from `generator`."""

    @property
    def views(self) -> int | None:
        """Number of different views of an image, which `Target.view` counts; None for unlimited."""
        ...

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """Augment an image and its target."""
        ...


def flip(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Flip an image (3, H, W) and its boxes horizontally; view 0 becomes view 1 and vice versa."""
    boxes = functional.horizontal_flip_bounding_boxes(target.boxes, format=XYXY, canvas_size=target.size)
    return functional.horizontal_flip_image(image), replace(target, boxes=boxes, view=1 - target.view)


@dataclass(frozen=True)
class HorizontalFlip:
    """Horizontal flip.

    Attributes:
        probability: probability of a flip, 0..1.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise InputError(f"The probability of a flip must be in 0..1, not {self.probability}.")

    @property
    def views(self) -> int:
        """Two; one if no image or every image is flipped."""
        return 2 if 0 < self.probability < 1 else 1

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """Flip an image and its target, or return them unchanged."""
        draw = torch.rand((), generator=generator).item()  # in 0..1, 1 excluded
        return flip(image, target) if draw < self.probability else (image, target)


class Compose:
    """Augmentations in sequence.

    Args:
        parts: augmentations in the order in which they are applied; none leaves images unchanged.
    """

    def __init__(self, parts: Sequence[Augmentation]) -> None:
        self.parts = tuple(parts)

    @property
    def views(self) -> int | None:
        """Product of the views of all parts; None if a part has unlimited views."""
        views = [part.views for part in self.parts]
        return None if None in views else math.prod(count for count in views if count is not None)

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """Apply all parts."""
        for part in self.parts:
            image, target = part(image, target, generator)
        return image, target


class Photometric:
    """Change the colours of an image; boxes are unchanged.

    Args:
        transform: random transform of torchvision that does not move pixels; its input is (3, H, W) uint8.
    """

    views = None

    def __init__(self, transform: v2.Transform) -> None:
        self.transform = transform

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """Change the colours of an image."""
        with _global_draws_from(generator):
            return self.transform(image), target


class IoUCrop:
    """Crop of SSD (Liu et al. 2016, arXiv:1512.02325), torchvision's `RandomIoUCrop`.

    A minimum IoU of crop and box is drawn from 0, 0.1, 0.3, 0.5, 0.7, 0.9 and "no crop". Then crops of 0.3..1 times
    each side with an aspect ratio of 0.5..2 are tried until one contains the centre of a box and has that IoU with such
    a box. Boxes whose centre is outside are dropped, and so are boxes less than a pixel wide or high. An image without
    boxes, or with a side of less than 4 pixels, is unchanged.
    """

    views = None

    def __init__(self) -> None:
        self.transform = v2.RandomIoUCrop()

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """Crop an image and its target."""
        if len(target.labels) == 0 or min(target.size) < 4:  # 0.3 times 3 pixels would be an empty crop
            return image, target
        boxes = tv_tensors.BoundingBoxes(target.boxes, format=XYXY, canvas_size=target.size)
        with _global_draws_from(generator):
            cropped, boxes = self.transform(image, boxes)
        if cropped.shape == image.shape:
            return image, target
        return cropped, _visible(target, boxes.as_subclass(Tensor), _size(cropped))


class ZoomOut:
    """Place the image at a random position of a larger canvas, so that objects become smaller (SSD, arXiv:1512.02325).

    The canvas has the mean colour of ImageNet, which is about zero after normalisation, like padding. If its short side
    would exceed twice the detector's `size`, the image is shrunk first, to bound memory.

    Args:
        size: short side of an image after resizing, in pixels.
        largest: the ratio of the sides of canvas and image is uniform in 1..largest. SSD has 4; with 2 and large scale
            jitter, objects shrink to at least a quarter of their size.
        probability: probability of the change, 0..1.
    """

    views = None

    def __init__(self, size: int, largest: float = 2.0, probability: float = 0.5) -> None:
        self.size, self.largest, self.probability = size, largest, probability

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """Place an image and its target on a canvas, or return them unchanged."""
        draw, growth, *position = torch.rand(4, generator=generator).tolist()
        if draw >= self.probability:
            return image, target
        factor = 1 + (self.largest - 1) * growth
        shrunk = min(1.0, 2 * self.size / (factor * min(target.size)))
        height, width = (max(1, round(side * shrunk)) for side in target.size)
        image = functional.resize_image(image, [height, width], antialias=True)
        margins = [round((factor - 1) * side) for side in (height, width)]
        top, left = (int(share * (margin + 1)) for share, margin in zip(position, margins, strict=True))
        padding = [left, top, margins[1] - left, margins[0] - top]
        canvas = functional.pad_image(image, padding, fill=list(MEAN_COLOUR))
        boxes = target.resized((height, width)).boxes + torch.tensor([left, top, left, top])
        boxes = clip_boxes_to_image(boxes, _size(canvas))  # rounding may move them outside
        return canvas, replace(target, boxes=boxes, size=_size(canvas))


class ScaleJitter:
    """Scale jitter (Ghiasi et al. 2021, arXiv:2012.07177).

    Objects are scaled by a factor that is uniform in smallest..largest; batches do not grow. Above 1, the image is
    cropped at a random position to each side over the factor, and the detector's `prepare` enlarges it to the input
    size. Below 1, `prepare` shrinks the image (`Target.scale`). Boxes are clipped to the crop; those with less than a
    tenth of their area, or less than a pixel in a direction, are dropped.

    Args:
        smallest: lower limit of the factor, above 0.
        largest: upper limit of the factor.
    """

    views = None

    def __init__(self, smallest: float, largest: float) -> None:
        self.smallest, self.largest = smallest, largest

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """Change the scale of an image and its target."""
        draw, *position = torch.rand(3, generator=generator).tolist()
        factor = self.smallest + (self.largest - self.smallest) * draw
        if factor <= 1:
            return image, replace(target, scale=target.scale * factor)
        height, width = (max(1, round(side / factor)) for side in target.size)
        top, left = (
            int(share * (full - side + 1))
            for share, full, side in zip(position, target.size, (height, width), strict=True)
        )
        boxes, size = functional.crop_bounding_boxes(target.boxes, XYXY, top, left, height, width)
        cropped = functional.crop_image(image, top, left, height, width)
        return cropped, _visible(target, boxes, size, share=0.1)


class MultiScale:
    """Multi-scale training: draw the short side after resizing for each image.

    It is a multiple of 32 pixels (below a size of 160 pixels: any integer) in 0.8..1.2 times the detector's `size`. The
    detector's `prepare` resizes by `Target.scale`; image and boxes are unchanged here. A batch can have up to 1.44
    times as many pixels.

    Args:
        size: short side of an image after resizing, in pixels.
    """

    views = None

    def __init__(self, size: int) -> None:
        self.size, step = size, 32 if size >= 160 else 1
        self.sides = range(math.ceil(0.8 * size / step) * step, math.floor(1.2 * size) + 1, step)

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """Set the scale of the target."""
        side = self.sides[int(torch.randint(len(self.sides), (), generator=generator))]
        return image, replace(target, scale=target.scale * side / self.size)


@contextmanager
def _global_draws_from(generator: torch.Generator) -> Iterator[None]:
    """Seed torch's global generator, which torchvision uses, from `generator`; restore it afterwards."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed every GPU
        yield


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _visible(target: Target, boxes: Tensor, size: tuple[int, int], share: float = 0.0) -> Target:
    """Target of a cropped image, without boxes of which too little remains.

    Args:
        target: target of the whole image.
        boxes: (G, 4), clipped to the crop.
        size: height and width of the crop.
        share: minimum remaining fraction of a box's area.
    """
    _, valid = functional.sanitize_bounding_boxes(boxes, XYXY, size, min_size=1.0, min_area=1.0)
    return replace(target, boxes=boxes, size=size).select(valid & (box_area(boxes) >= share * box_area(target.boxes)))
