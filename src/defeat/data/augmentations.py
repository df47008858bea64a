"""Names of augmentations: parts, and levels that combine them."""

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
    """Build the augmentation of training images.

    Args:
        augment: levels and parts separated by commas; `-NAME` removes a part of the preceding ones.
        flip: probability of mirroring an image, 0..1.
        size: short side of an image after resizing, in pixels.

    Raises:
        InputError: unknown name, removal of a part that is not included, or invalid probability.
    """
    parts, names = _parts(flip, size), part_names(augment)
    selected = [part for name, part in parts.items() if name in names]
    return selected[0] if len(selected) == 1 else Compose(selected)


def part_names(augment: str) -> list[str]:
    """Resolve comma-separated levels and parts to parts, in the order in which they are applied.

    Raises:
        InputError: unknown name, or removal of a part that is not included.
    """
    parts = _parts()
    selected: set[str] = set()
    for word in (word.strip() for word in augment.split(",")):
        name = word.removeprefix("-")
        if name not in LEVELS and name not in parts:
            raise unknown_name("augmentation", name, [*LEVELS, *parts])
        members = set(LEVELS.get(name, (name,)))
        if name == word:
            selected |= members
        elif members <= selected:
            selected -= members
        else:
            raise InputError(f"--augment {augment}: {word} removes a part that is not included; put it after a level.")
    return [name for name in parts if name in selected]


def continuous_parts(augment: str) -> list[str]:
    """Parts that produce an unlimited number of different views of an image."""
    parts = _parts()
    return [name for name in part_names(augment) if parts[name].views is None]


def _parts(flip: float = 0.5, size: int = 800) -> dict[str, Augmentation]:
    """All parts by name, in the order in which they are applied."""
    # The flip comes first, so that a seed flips the same images at every level. Colours change after crops, when there
    # are fewer pixels, and before zoom_out adds a canvas.
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
    """Brightness, contrast and saturation, each with probability 0.5; hue would take longer than all of them."""
    changes = (v2.ColorJitter(brightness=0.125), v2.ColorJitter(contrast=0.25), v2.ColorJitter(saturation=0.25))
    return v2.Compose([v2.RandomApply([change], p=0.5) for change in changes])
