"""What families that are composed of torchvision's parts share: the pyramid, and conversion of torchvision's models."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from defeat.detector.backbone import Backbone, UpperLevels, build_backbone
from defeat.detector.base import DetectorSpec

FIVE_LEVELS = (8, 16, 32, 64, 128)  # strides of a pyramid from P3 to P7
TORCHVISION_CHANNELS = 256  # of the pyramids of torchvision's models


def five_levels(spec: DetectorSpec, weights: str, source: str = "neck", activation: bool = True) -> Backbone:
    """Build a body with the pyramid of one-stage detectors: P3 to P5, and two more levels.

    Args:
        spec: description of the detector.
        weights: of the backbone (see `find_weights`).
        source: of P6, see `UpperLevels`.
        activation: between P6 and P7, see `UpperLevels`.
    """
    return build_backbone(
        spec.backbone,
        strides=FIVE_LEVELS[:3],
        weights=weights,
        norm=spec.norm,
        neck_channels=spec.neck_channels,
        frozen_stages=spec.frozen_stages,
        extra_blocks=lambda last, neck: UpperLevels(last, neck, source, activation),
        extra_strides=FIVE_LEVELS[3:],
    )


def converted_backbone(core: nn.Module, strides: Sequence[int]) -> Backbone:
    """Body and pyramid of a torchvision model, whose pyramid has these strides."""
    body, fpn = (core.get_submodule(f"backbone.{name}") for name in ("body", "fpn"))
    blocks: Any = fpn.get_submodule("inner_blocks")
    channels = [block[0].in_channels for block in blocks]
    used = strides[: len(channels)]
    return Backbone(body, fpn, dict(zip(used, channels, strict=True)), dict.fromkeys(strides, TORCHVISION_CHANNELS))


def converted_spec(
    core: Any, family: str, name: str, classes: tuple[str, ...], options: dict[str, Any] | None = None
) -> DetectorSpec:
    """Description of a torchvision model as a detector of a family."""
    return DetectorSpec(
        family,
        name,
        classes,
        size=core.transform.min_size[-1],
        max_size=core.transform.max_size,
        mean=tuple(core.transform.image_mean),
        std=tuple(core.transform.image_std),
        options=options or {},
    )
