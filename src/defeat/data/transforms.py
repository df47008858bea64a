"""Augmentations: image and target change together, drawn from a generator that the caller gives."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from defeat.errors import InputError
from defeat.types import Target


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
    boxes = functional.horizontal_flip_bounding_boxes(
        target.boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=target.size
    )
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
