"""Copy the images of a data set under safe, unique names."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from PIL import Image

from defeat.data.dataset import DetectionDataset
from defeat.data.files import IMAGE_SUFFIXES
from defeat.data.images import ImageHeader, read_header
from defeat.data.tables import Sample
from defeat.errors import InputError
from defeat.files import WriteError

_UNSAFE = '<>:"/\\|?*'  # characters that a file name can't have on some system
_LONGEST_STEM = 200  # bytes; file systems allow 255 with suffix and number
_JPEG_SUFFIXES = (".jpg", ".jpeg")
_JPEG_QUALITY = 95
_CHUNK = 1 << 20  # bytes copied at once

# What happened to an image: phrases that follow a count.
_RENAMED = "images renamed (another has the name, or it is not safe on every system)"
_AS_SEEN = "images decoded and written without EXIF orientation (the layout would read it otherwise)"
_CONVERTED = "images written as PNG (the suffix of their files is not that of an image)"


class ImageWriter:
    """Writes the images of splits into folders.

    Args:
        root: folder of the new data set.
        links: whether to make hard links instead of copies, where the file system can.
        reads_upright: whether readers of the layout always apply the EXIF orientation; if not, the size in the
            annotations decides, and the pixels are as stored where both sizes match.
    """

    def __init__(self, root: Path, *, links: bool, reads_upright: bool) -> None:
        self._root = root
        self._links = links
        self._reads_upright = reads_upright
        self._taken: set[tuple[str, str]] = set()
        self._counts: Counter[str] = Counter()

    def write(self, dataset: DetectionDataset, index: int, folder: str) -> str:
        """Write an image.

        Args:
            dataset: the split.
            index: of the image in it.
            folder: where to write, relative to the root.

        Returns:
            The file name in the folder; no other image there has the same name up to the suffix.

        Raises:
            InputError: the image can't be read, or not be written.
        """
        sample = dataset.samples[index]
        stem = self._unique(folder, sample.name)
        suffix = PurePosixPath(sample.name if dataset.in_memory else sample.path).suffix
        target = self._root / folder / f"{stem}{suffix}"
        if dataset.in_memory:
            target = target.with_name(f"{stem}.png")
            self._write_pixels(dataset, index, target)
        elif suffix.lower() not in IMAGE_SUFFIXES:
            self._counts[_CONVERTED] += 1
            target = target.with_name(f"{stem}.png")
            self._write_pixels(dataset, index, target)
        elif not self._reads_alike(sample, read_header(sample.path, dataset.max_pixels)):
            self._counts[_AS_SEEN] += 1
            target = target.with_name(f"{stem}{suffix if suffix.lower() in _JPEG_SUFFIXES else '.png'}")
            self._write_pixels(dataset, index, target)
        else:
            self._copy(Path(sample.path), target)
        return target.name

    def notes(self) -> list[str]:
        """A phrase with a count for each kind of change so far."""
        return [f"{number} {phrase}" for phrase, number in self._counts.items()]

    def _unique(self, folder: str, name: str) -> str:
        stems = _stems(name)
        for number, stem in enumerate(stems):
            # Some file systems ignore case and the composition of letters.
            key = (folder, normalize("NFC", stem).casefold())
            if key not in self._taken:
                self._taken.add(key)
                self._counts[_RENAMED] += number > 0 or stem != _without_suffix(PurePosixPath(name).name)
                self._counts += Counter()  # drops zeros
                return stem
        raise AssertionError("the stems never end")

    def _reads_alike(self, sample: Sample, header: ImageHeader) -> bool:
        """Whether readers of the layout see the stored image as its boxes do."""
        if sample.size not in (header.stored, header.upright):
            return False  # decoding it raises the error
        sizes_differ = sample.size != header.stored
        upright = sample.size == header.upright and (sample.prefer_upright or sizes_differ)
        return not header.oriented or upright == (self._reads_upright or sizes_differ)

    def _write_pixels(self, dataset: DetectionDataset, index: int, target: Path) -> None:
        pixels = dataset[index][0]  # (3, H, W) uint8
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        is_jpeg = target.suffix.lower() in _JPEG_SUFFIXES
        try:
            image.save(target, "JPEG" if is_jpeg else "PNG", **({"quality": _JPEG_QUALITY} if is_jpeg else {}))
        except OSError as error:
            raise WriteError(target, pixels.numel(), error) from error

    def _copy(self, source: Path, target: Path) -> None:
        if self._links:
            try:
                os.link(source.resolve(), target)
            except OSError:
                pass  # another file system, or one without links
            else:
                return
        try:
            original = source.open("rb")
        except OSError as error:
            raise InputError(f"{source} can't be read ({error.strerror}).") from error
        with original:
            try:
                with target.open("wb") as copy:
                    shutil.copyfileobj(original, copy, _CHUNK)
            except OSError as error:
                raise WriteError(target, os.fstat(original.fileno()).st_size, error) from error


def _stems(name: str) -> Iterator[str]:
    """File names without suffix for an image, best first: its own, then with its folders, then with a number."""
    path = PurePosixPath(name)
    parts = [*path.parent.parts, _without_suffix(path.name)]
    for first in range(len(parts) - 1, -1, -1):
        yield _safe("_".join(parts[first:]))
    for number in count(2):
        yield f"{_safe(parts[-1])}_{number}"


def _without_suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name


def _safe(stem: str) -> str:
    """A file name that every system accepts, and that is not hidden."""
    text = "".join(char if char.isprintable() and char not in _UNSAFE else "_" for char in stem)
    text = text.encode()[:_LONGEST_STEM].decode(errors="ignore").strip()
    return f"_{text}" if not text or text.startswith(".") else text
