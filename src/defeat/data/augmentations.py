"""The names of augmentations: parts, and levels that are made of them."""

from torchvision.transforms import v2

from defeat.data.transforms import (
    Augmentation,
    Compose,
    HorizontalFlip,
    IoUCrop,
    MultiScale,
    Photometric,
    ScaleJitter,
    ZoomOut,
)
from defeat.errors import InputError, unknown_name

LEVELS: dict[str, tuple[str, ...]] = {
    "none": (),
    "flip": ("flip",),
    "standard": ("flip", "photometric", "scale_jitter"),
    "strong": ("flip", "photometric_distort", "iou_crop", "zoom_out", "large_scale_jitter"),
}


def training_augmentation(augment: str = "flip", *, flip: float = 0.5, size: int = 800) -> Augmentation:
    """How training images are changed at random.

    Args:
        augment: levels and parts with commas between them; `-NAME` leaves out a part of what stands before it.
        flip: probability of mirroring an image, 0..1.
        size: short side of an image after resizing, in pixels.

    Raises:
        InputError: a name is unknown, a part is left out that is not there, or the probability is none.
    """
    parts, names = _parts(flip, size), part_names(augment)
    chosen = [part for name, part in parts.items() if name in names]
    return chosen[0] if len(chosen) == 1 else Compose(chosen)


def part_names(augment: str) -> list[str]:
    """The parts that levels and parts with commas between them stand for, in the order in which they are applied.

    Raises:
        InputError: a name is unknown, or a part is left out that is not there.
    """
    parts = _parts()
    chosen: set[str] = set()
    for word in (word.strip() for word in augment.split(",")):
        name = word.removeprefix("-")
        if name not in LEVELS and name not in parts:
            raise unknown_name("augmentation", name, [*LEVELS, *parts])
        named = set(LEVELS.get(name, (name,)))
        if name == word:
            chosen |= named
        elif named <= chosen:
            chosen -= named
        else:
            raise InputError(f"--augment {augment}: {word} leaves out what is not there; put it behind a level.")
    return [name for name in parts if name in chosen]


def endless_parts(augment: str) -> list[str]:
    """Those of the parts that never make the same view of an image twice."""
    parts = _parts()
    return [name for name in part_names(augment) if parts[name].views is None]


def _parts(flip: float = 0.5, size: int = 800) -> dict[str, Augmentation]:
    """Every part by its name, in the order in which they are applied."""
    return {
        "flip": HorizontalFlip(flip),  # first, so that a seed mirrors the same images at every level
        # The hue stays: to change it takes longer than all other parts together.
        "photometric": Photometric(v2.ColorJitter(brightness=0.125, contrast=0.25, saturation=0.25)),
        "photometric_distort": Photometric(v2.RandomPhotometricDistort()),
        "iou_crop": IoUCrop(),
        "zoom_out": ZoomOut(size),
        "scale_jitter": ScaleJitter(0.8, 1.25),
        "large_scale_jitter": ScaleJitter(0.5, 2.0),
        "multi_scale": MultiScale(size),
    }
