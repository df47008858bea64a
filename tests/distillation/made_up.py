"""Detector outputs built by hand, without running a detector."""

from typing import Any

import torch
from torch import Tensor

from defeat.types import DensePredictions, DetectorInfo, DetectorOutput, Progress, Proposals, Target
from tests.detector.tiny import target

CLASSES = ("cat", "dog")
START = Progress(step=0, steps=100)


def info(neck: dict[int, int], **changes: Any) -> DetectorInfo:
    """Description of a detector with these channels by stride, which offers feature maps only."""
    settings: dict[str, Any] = {
        "family": "made_up",
        "classes": CLASSES,
        "neck": neck,
        "backbone": neck,
        "size": 64,
        "max_size": 96,
        "size_divisor": 32,
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "activation": "sigmoid",
        "background": "none",
    }
    return DetectorInfo(**settings | changes)


def output(neck: dict[int, Tensor], valid: dict[int, Tensor] | None = None, **fields: Any) -> DetectorOutput:
    everywhere = {stride: torch.ones(len(level), *level.shape[-2:], dtype=torch.bool) for stride, level in neck.items()}
    return DetectorOutput({}, neck, neck, valid or everywhere, **fields)


def random_output(channels: int, seed: int, images: int = 2, size: int = 64, **fields: Any) -> DetectorOutput:
    """Maps at strides 8 and 16 of images of `size` pixels."""
    generator = torch.Generator().manual_seed(seed)
    neck = {s: torch.randn(images, channels, size // s, size // s, generator=generator) for s in (8, 16)}
    return output(neck, **fields)


def dense(logits: Tensor, labels: Tensor, boxes: Tensor | None = None, **fields: Tensor) -> DensePredictions:
    """Predictions with logits (B, N, K); all boxes are zero, unless boxes (B, N, 4) are given."""
    given = torch.zeros(*logits.shape[:2], 4) if boxes is None else boxes
    strides = torch.full((logits.shape[1],), 8)
    return DensePredictions(logits, lambda image, index: given[image, index], labels, strides, **fields)


def proposals(boxes: list[Tensor], logits: Tensor, labels: Tensor) -> Proposals:
    every = torch.cat(boxes)
    deltas = torch.zeros(len(logits), logits.shape[1] - 1, 4)
    return Proposals(boxes, labels, logits, deltas, lambda index, _: every[index])


def boxed(*boxes: list[float], size: tuple[int, int] = (64, 64)) -> Target:
    return target(list(boxes), [0] * len(boxes), size)
