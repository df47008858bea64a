"""Augmentations: image and target change together, drawn from a generator that the caller gives."""

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
    """A random change of an image (3, H, W) and its target; all randomness comes from `generator`."""

    @property
    def views(self) -> int | None:
        """How many different images it can make of one, which it numbers in `Target.view`; None for any number."""
        ...

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """The changed image and target."""
        ...


def flip(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Mirror an image (3, H, W) and its boxes from left to right; view 0 becomes view 1, and back."""
    boxes = functional.horizontal_flip_bounding_boxes(target.boxes, format=XYXY, canvas_size=target.size)
    return functional.horizontal_flip_image(image), replace(target, boxes=boxes, view=1 - target.view)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror with a probability.

    Attributes:
        probability: how often an image is mirrored, 0..1.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise InputError(f"The probability of a flip must be in 0..1, not {self.probability}.")

    @property
    def views(self) -> int:
        """Two: the image, and its mirror image; one where no image, or every one, is mirrored."""
        return 2 if 0 < self.probability < 1 else 1

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """The image and target, mirrored or as they are."""
        draw = torch.rand((), generator=generator).item()  # in 0..1, 1 excluded
        return flip(image, target) if draw < self.probability else (image, target)


class Compose:
    """Augmentations one after the other; none for images as they are.

    Args:
        parts: in the order in which they are applied.
    """

    def __init__(self, parts: Sequence[Augmentation]) -> None:
        self.parts = tuple(parts)

    @property
    def views(self) -> int | None:
        """Those of its parts multiplied; None where a part has no end of them."""
        views = [part.views for part in self.parts]
        return None if None in views else math.prod(count for count in views if count is not None)

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """The image and target after all parts."""
        for part in self.parts:
            image, target = part(image, target, generator)
        return image, target


class Photometric:
    """Change the colours of an image; boxes stay as they are.

    Args:
        transform: a random transform of torchvision that moves no pixel; it gets images (3, H, W) uint8.
    """

    views = None

    def __init__(self, transform: v2.Transform) -> None:
        self.transform = transform

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """The changed image, and the target as it is."""
        with _global_draws_from(generator):
            return self.transform(image), target


class IoUCrop:
    """Crop of SSD (Liu et al. 2016, arXiv:1512.02325), as torchvision's `RandomIoUCrop` draws it.

    A least IoU of crop and box is drawn from 0, 0.1, 0.3, 0.5, 0.7, 0.9 and "no crop"; then windows of 0.3..1 times
    each side and an aspect ratio of 0.5..2 are tried until one holds the centre of a box and has that IoU with such a
    box. Boxes whose centre is outside are dropped, and so is what is less than a pixel wide or high. An image without
    boxes, or with a side of less than 4 pixels, stays as it is.
    """

    views = None

    def __init__(self) -> None:
        self.transform = v2.RandomIoUCrop()

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """The cropped image and target."""
        if len(target.labels) == 0 or min(target.size) < 4:  # 0.3 times 3 pixels would be a window without a pixel
            return image, target
        boxes = tv_tensors.BoundingBoxes(target.boxes, format=XYXY, canvas_size=target.size)
        with _global_draws_from(generator):
            cropped, boxes = self.transform(image, boxes)
        if cropped.shape == image.shape:
            return image, target
        return cropped, _visible(target, boxes.as_subclass(Tensor), _size(cropped))


class ZoomOut:
    """Put the image at a random place of a larger canvas, so that its objects look smaller (SSD, arXiv:1512.02325).

    The canvas has the colour of ImageNet's mean, which is about zero after normalisation, as padding is. Where its
    short side would have more than twice the detector's `size`, the image is made smaller first, so that memory stays
    bounded.

    Args:
        size: short side of an image after resizing, in pixels.
        largest: sides of the canvas over those of the image are uniform in 1..largest. SSD has 4; with 2 and the large
            scale jitter, objects look at least a quarter as large as they are.
        probability: how often it happens, 0..1.
    """

    views = None

    def __init__(self, size: int, largest: float = 2.0, probability: float = 0.5) -> None:
        self.size, self.largest, self.probability = size, largest, probability

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """The image and target on their canvas, or as they are."""
        draw, grown, *place = torch.rand(4, generator=generator).tolist()
        if draw >= self.probability:
            return image, target
        factor = 1 + (self.largest - 1) * grown
        shrunk = min(1.0, 2 * self.size / (factor * min(target.size)))
        height, width = (max(1, round(side * shrunk)) for side in target.size)
        image = functional.resize_image(image, [height, width], antialias=True)
        margins = [round((factor - 1) * side) for side in (height, width)]
        top, left = (int(part * (margin + 1)) for part, margin in zip(place, margins, strict=True))
        padding = [left, top, margins[1] - left, margins[0] - top]
        canvas = functional.pad_image(image, padding, fill=list(MEAN_COLOUR))
        boxes = target.resized((height, width)).boxes + torch.tensor([left, top, left, top])
        boxes = clip_boxes_to_image(boxes, _size(canvas))  # which rounding may leave
        return canvas, replace(target, boxes=boxes, size=_size(canvas))


class ScaleJitter:
    """Show the image at a random scale, as the scale jitter of Ghiasi et al. 2021 (arXiv:2012.07177).

    The factor is uniform in smallest..largest. Above 1, a window of one over the factor of each side is cut out at a
    random place, which the detector's `prepare` brings to its usual size; below 1, `prepare` makes the image smaller by
    it (`Target.scale`). So objects look so many times larger, and no batch is larger than without. Boxes are clipped to
    the window; those of which less than a tenth, or less than a pixel in a direction, is left are dropped.

    Args:
        smallest: of the factor, above 0.
        largest: of the factor.
    """

    views = None

    def __init__(self, smallest: float, largest: float) -> None:
        self.smallest, self.largest = smallest, largest

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """The image and target at another scale."""
        draw, *place = torch.rand(3, generator=generator).tolist()
        factor = self.smallest + (self.largest - self.smallest) * draw
        if factor <= 1:
            return image, replace(target, scale=target.scale * factor)
        height, width = (max(1, round(side / factor)) for side in target.size)
        top, left = (
            int(p * (full - side + 1)) for p, full, side in zip(place, target.size, (height, width), strict=True)
        )
        boxes, size = functional.crop_bounding_boxes(target.boxes, XYXY, top, left, height, width)
        cropped = functional.crop_image(image, top, left, height, width)
        return cropped, _visible(target, boxes, size, share=0.1)


class MultiScale:
    """Multi-scale training: the short side of each image after resizing is drawn anew.

    It is a multiple of 32 pixels (below a size of 160 pixels: any whole number) in 0.8..1.2 times the detector's
    `size`. Pixels and boxes stay as they are: the detector's `prepare` resizes, as `Target.scale` says. A batch can
    have 1.44 times as many pixels as without.

    Args:
        size: short side of an image after resizing, in pixels.
    """

    views = None

    def __init__(self, size: int) -> None:
        self.size, step = size, 32 if size >= 160 else 1
        self.sides = range(math.ceil(0.8 * size / step) * step, math.floor(1.2 * size) + 1, step)

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """The image as it is, and its target with another scale."""
        side = self.sides[int(torch.randint(len(self.sides), (), generator=generator))]
        return image, replace(target, scale=target.scale * side / self.size)


@contextmanager
def _global_draws_from(generator: torch.Generator) -> Iterator[None]:
    """Let torch's global generator, from which torchvision draws, follow from `generator`; restore it afterwards."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        yield


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _visible(target: Target, boxes: Tensor, size: tuple[int, int], share: float = 0.0) -> Target:
    """The target of a cropped image: without the boxes of which too little is left.

    Args:
        target: of the whole image.
        boxes: (G, 4), clipped to the crop.
        size: height and width of the crop.
        share: least part of a box's area that must be left.
    """
    _, valid = functional.sanitize_bounding_boxes(boxes, XYXY, size, min_size=1.0, min_area=1.0)
    return replace(target, boxes=boxes, size=size).kept(valid & (box_area(boxes) >= share * box_area(target.boxes)))
