"""Image files as RGB tensors, whatever their mode, and their sizes without decoding them."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from defeat.errors import InputError

# What may stand behind any suffix. Pillow knows more, some of which it hands to other programs (PostScript).
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Height and width of an image as its pixels are stored, and as its EXIF orientation wants it shown."""

    stored: tuple[int, int]
    upright: tuple[int, int]


def read_header(path: str | Path) -> ImageHeader:
    """The size of an image, from its header alone."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return _header(image)
    except Exception as error:  # every format raises its own kinds for a broken file
        raise _unreadable(path, error) from error


def read_image(path: str | Path, size: tuple[int, int], prefer_upright: bool) -> Tensor:
    """Decode an image.

    Args:
        path: the image file.
        size: height and width that the annotations belong to.
        prefer_upright: which way to look at an image whose stored and upright size both fit: as the EXIF orientation
            wants it, or as its pixels are stored.

    Returns:
        (3, H, W) uint8 RGB.

    Raises:
        InputError: the file cannot be decoded, or has another size than its annotations.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            header, method = _header(image), _UPRIGHT.get(_orientation(image))
            if size not in (header.stored, header.upright):
                raise InputError(
                    f"{path} is {_shown(header.upright)}, but its annotations are for {_shown(size)} pixels "
                    "(width x height)."
                )
            as_shown = size == header.upright and (prefer_upright or size != header.stored)
            pixels = _rgb(image)
            if as_shown and method is not None:
                pixels = pixels.transpose(method)
            # A copy, because torch wants an array that it may write to.
            array = np.array(pixels)  # (H, W, 3)
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _header(image: Image.Image) -> ImageHeader:
    width, height = image.size
    turned = _orientation(image) in (5, 6, 7, 8)
    return ImageHeader((height, width), (width, height) if turned else (height, width))


def _orientation(image: Image.Image) -> int:
    # Pillow turns TIFF images itself, and would decode a PNG to look for EXIF data behind its pixels.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1  # Broken EXIF data is no reason to lose an image.


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey; Pillow's own conversion would clip at 255 instead of scaling.
        grey = np.clip(np.asarray(image).astype(np.int64) // 256, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise OSError("floating-point pixels have no defined range")
    with warnings.catch_warnings():
        # Pillow warns about transparent palettes, whose transparency is dropped on purpose.
        warnings.simplefilter("ignore", UserWarning)
        return image.convert("RGB")


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _unreadable(path: str | Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist.")
    if isinstance(error, PermissionError):
        return InputError(f"{path} may not be read: its permissions forbid it.")
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{path} cannot be read as an image: {reason}.")


def rgb_tensor(image: object) -> Tensor:
    """An image in any of the usual forms as a tensor.

    Args:
        image: path of a file; PIL image; array (H, W, 3) of uint8, RGB; or tensor (3, H, W), uint8 in 0..255 or a
            floating type in 0..1, RGB.

    Returns:
        (3, H, W): uint8, or for a tensor of a floating type float32.

    Raises:
        InputError: it is none of these, or the file can't be read.
    """
    if isinstance(image, str | Path):
        return read_image(image, read_header(image).upright, prefer_upright=True)
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous()
    if isinstance(image, Tensor) and image.ndim == 3 and image.shape[0] == 3 and 0 not in image.shape:
        if image.dtype == torch.uint8:
            return image.as_subclass(Tensor)
        if image.is_floating_point() and bool((image >= 0).all()) and bool((image <= 1).all()):
            return image.as_subclass(Tensor).float()
    raise InputError(
        f"{_kind(image)} is not an image: give a path, a PIL image, an array (H, W, 3) of uint8, or a tensor (3, H, W) "
        "of uint8 in 0..255 or of a floating type in 0..1, all RGB."
    )


def _kind(image: object) -> str:
    if isinstance(image, Tensor | np.ndarray):
        return f"A {type(image).__name__} of shape {tuple(image.shape)} and type {image.dtype}"
    return f"A {type(image).__name__}"
