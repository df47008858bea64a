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
    "standard": ("flip", "scale_jitter", "photometric"),
    "strong": ("flip", "iou_crop", "large_scale_jitter", "photometric_distort", "zoom_out"),
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
    # The flip is first, so that a seed mirrors the same images at every level; colours change after crops, when there
    # are fewer pixels, and before a canvas is put around them.
    return {
        "flip": HorizontalFlip(flip),
        "iou_crop": IoUCrop(),
        "scale_jitter": ScaleJitter(0.8, 1.25),
        "large_scale_jitter": ScaleJitter(0.5, 2.0),
        "photometric": Photometric(_mild_distortion()),
        "photometric_distort": Photometric(v2.RandomPhotometricDistort()),
        "zoom_out": ZoomOut(size),
        "multi_scale": MultiScale(size),
    }


def _mild_distortion() -> v2.Transform:
    """Brightness, contrast and saturation, each for half of the images; the hue would take longer than all of them."""
    changes = (v2.ColorJitter(brightness=0.125), v2.ColorJitter(contrast=0.25), v2.ColorJitter(saturation=0.25))
    return v2.Compose([v2.RandomApply([change], p=0.5) for change in changes])
