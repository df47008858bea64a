"""Read images of any mode as RGB tensors, and image sizes without decoding."""

import importlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import RLock

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, features
from torch import Tensor

from defeat.errors import InputError, install_command

# Formats accepted for any suffix. Pillow supports more, and passes some of them to other programs (PostScript).
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000")
# Suffixes of the formats whose decoder not every installation has.
_AVIF = (".avif",)
_HEIF = (".heic", ".heif")
OWN_DECODER = _HEIF + _AVIF
# Default of the largest number of pixels of an image: Pillow warns at half of it, and refuses more.
MAX_PIXELS = 178_956_970
_RAISED = RLock()  # held while Pillow's limit, which belongs to the process, is another one

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
    """Height and width of an image as stored, and after applying its EXIF orientation.

    Attributes:
        stored: height and width in the file.
        upright: height and width after applying the orientation.
        oriented: whether the orientation changes the pixels.
    """

    stored: tuple[int, int]
    upright: tuple[int, int]
    oriented: bool


class MissingDecoderError(InputError):
    """An image can't be read because its decoder is not installed.

    Attributes:
        path: of the image.
        format: of the image, `HEIF` or `AVIF`.
        remedy: what to install.
    """

    def __init__(self, sentence: str, path: str = "", kind: str = "", remedy: str = "") -> None:
        super().__init__(sentence)
        self.path, self.format, self.remedy = path, kind, remedy


def missing_decoder(path: str | Path) -> MissingDecoderError | None:
    """The error of an image whose decoder, by its suffix, is not installed; None where nothing is missing."""
    suffix = Path(path).suffix.lower()
    if suffix in _HEIF and not _registered_heif():
        kind, remedy = "HEIF", f"`{install_command('heif')}`"
    elif suffix in _AVIF and not features.check("avif"):
        kind, remedy = "AVIF", "Pillow 11.3 or later with its AVIF decoder: `pip install --upgrade pillow`"
    else:
        return None
    return MissingDecoderError(f"{path} cannot be read: images in {kind} need {remedy}.", str(path), kind, remedy)


@cache
def _registered_heif() -> bool:
    """Whether Pillow can read HEIF, by its plugin pillow-heif."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def _formats(path: str | Path) -> tuple[str, ...]:
    suffix = Path(path).suffix.lower()
    if suffix in _HEIF and _registered_heif():
        return (*_FORMATS, "HEIF")
    return (*_FORMATS, "AVIF") if features.check("avif") else _FORMATS


@contextmanager
def _opened(path: str | Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image file whose number of pixels is within the limit.

    Raises:
        InputError: it has more pixels.
    """
    with _pillow_accepting(max_pixels):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of images within the limit
            try:
                image = Image.open(path, formats=_formats(path))
            except Image.DecompressionBombError as error:
                raise _too_large(path, _claimed_size(path, str(error)), max_pixels) from error
        with image:
            if image.width * image.height > max_pixels:
                raise _too_large(path, _pixels((image.height, image.width)), max_pixels)
            yield image


@contextmanager
def _pillow_accepting(pixels: int) -> Iterator[None]:
    """Let Pillow open images of so many pixels; afterwards it has its own limit again."""
    own = Image.MAX_IMAGE_PIXELS
    if pixels <= MAX_PIXELS and (own is None or pixels <= 2 * own):
        yield
        return
    with _RAISED:
        own = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None if own is None else max(own, -(-pixels // 2))
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = own


def _claimed_size(path: str | Path, message: str) -> str:
    """Size of an image that Pillow refuses to open with a message because of it."""
    for name in _FORMATS:
        try:
            # The reader of a format reads the header; most leave it to Pillow to look at the size.
            with Path(path).open("rb") as file, Image.OPEN[name][0](file, "") as image:
                return _pixels((image.height, image.width))
        except Exception:  # noqa: S112
            continue  # not of this format
    count = re.search(r"\d+", message)
    return f"{int(count[0]):,} pixels" if count else "too many pixels"


def _pixels(size: tuple[int, int]) -> str:
    return f"{_size_text(size)} = {size[0] * size[1]:,} pixels"


def _too_large(path: str | Path, pixels: str, limit: int) -> InputError:
    return InputError(
        f"{path} has {pixels}, more than the limit of {limit:,}: cut it into tiles, or give a larger --max-pixels if "
        "there is enough memory."
    )


def read_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Read the size of an image from its header.

    Args:
        path: the image file.
        max_pixels: most pixels of an image; the limit keeps a small file that claims to be a huge image from filling
            the memory.

    Raises:
        InputError: the file can't be read, or has more pixels.
    """
    try:
        with _opened(path, max_pixels) as image:
            return _header(image)
    except InputError:
        raise
    except Exception as error:  # each format raises its own exceptions
        raise _unreadable(path, error) from error


def read_image(path: str | Path, size: tuple[int, int], prefer_upright: bool, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode an image.

    Args:
        path: the image file.
        size: height and width that the annotations refer to.
        prefer_upright: whether to apply the EXIF orientation if both the stored and the upright size match.
        max_pixels: most pixels of an image, see `read_header`.

    Returns:
        (3, H, W) uint8 RGB.

    Raises:
        InputError: the file cannot be decoded, has more pixels, or its size differs from that of its annotations.
    """
    try:
        with _opened(path, max_pixels) as image:
            header, method = _header(image), _UPRIGHT.get(_orientation(image))
            if size not in (header.stored, header.upright):
                raise InputError(
                    f"{path} is {_size_text(header.upright)}, but its annotations are for {_size_text(size)} pixels "
                    "(width x height)."
                )
            upright = size == header.upright and (prefer_upright or size != header.stored)
            pixels = _rgb(image)
            if upright and method is not None:
                pixels = pixels.transpose(method)
            # A copy, because torch needs a writable array.
            array = np.array(pixels)  # (H, W, 3)
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _header(image: Image.Image) -> ImageHeader:
    width, height = image.size
    orientation = _orientation(image)
    rotated = orientation in (5, 6, 7, 8)
    return ImageHeader((height, width), (width, height) if rotated else (height, width), orientation in _UPRIGHT)


def _orientation(image: Image.Image) -> int:
    # Pillow rotates TIFF images itself, and would decode a PNG to search for EXIF data after the pixels.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1  # Ignore broken EXIF data.


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey; Pillow's conversion would clip at 255 instead of scaling.
        grey = np.clip(np.asarray(image).astype(np.int64) // 256, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise OSError("floating-point pixels have no defined range")
    with warnings.catch_warnings():
        # Pillow warns about transparent palettes; transparency is dropped on purpose.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # TIFF is looked at again
        return image.convert("RGB")


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _unreadable(path: str | Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist.")
    if isinstance(error, PermissionError):
        return InputError(f"{path} cannot be read: permission denied.")
    missing = missing_decoder(path)
    if missing is not None:
        return missing
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{path} cannot be read as an image: {reason}.")


def rgb_tensor(image: object, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Convert an image to a tensor.

    Args:
        image: path of a file; PIL image; array (H, W, 3) of uint8, RGB; or tensor (3, H, W), uint8 in 0..255 or a
            floating type in 0..1, RGB.
        max_pixels: most pixels of a file, see `read_header`.

    Returns:
        (3, H, W): uint8, or float32 for a floating-point tensor.

    Raises:
        InputError: unsupported type or shape, or the file can't be read.
    """
    if isinstance(image, str | Path):
        return read_image(image, read_header(image, max_pixels).upright, True, max_pixels)
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
