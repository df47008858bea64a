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

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """The changed image and target."""
        ...


def flip(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Mirror an image (3, H, W) and its boxes from left to right."""
    boxes = functional.horizontal_flip_bounding_boxes(
        target.boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=target.size
    )
    return functional.horizontal_flip_image(image), replace(target, boxes=boxes)


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

    def __call__(self, image: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Target]:
        """The image and target, mirrored or as they are."""
        draw = torch.rand((), generator=generator).item()  # in 0..1, 1 excluded
        return flip(image, target) if draw < self.probability else (image, target)
