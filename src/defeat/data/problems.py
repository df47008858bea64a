"""Handling of broken files in a data set: report all of them, or skip the affected images.

An image with a broken annotation is skipped as a whole: a missing object would distort training and metrics.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar, get_args

from rich.console import Console
from rich.progress import track

from defeat.data.images import MAX_PIXELS, MissingDecoderError
from defeat.errors import BadDataError, InputError

OnBadData = Literal["stop", "skip"]
MAX_LISTED = 10  # problems in a message

Item = TypeVar("Item")


class Problems:
    """Collects the problems of images and annotations of a split.

    Args:
        on_bad_data: `stop` to refuse a data set with problems, `skip` to skip the affected images.
        console: where to show progress; None for no progress bar.
        decode: whether `skip` decodes every image, to find those that can't be decoded.
        max_pixels: most pixels of an image, see `read_header`.

    Attributes:
        skip: whether images with a problem are skipped.
        decode: whether every image must be decoded when the data set is opened.
        skipped: number of skipped images.
        notes: other remarks about the data, one phrase each.
        max_pixels: most pixels of an image.

    Raises:
        InputError: invalid `on_bad_data` or `max_pixels`.
    """

    def __init__(
        self,
        on_bad_data: str = "stop",
        console: Console | None = None,
        decode: bool = True,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if on_bad_data not in get_args(OnBadData):
            raise InputError(f"--on-bad-data must be {' or '.join(get_args(OnBadData))}, not {on_bad_data!r}.")
        if not isinstance(max_pixels, int) or max_pixels < 1:
            raise InputError(f"--max-pixels must be a whole number above 0, not {max_pixels!r}.")
        self.max_pixels = max_pixels
        self.skip = on_bad_data == "skip"
        self.decode = self.skip and decode
        self._errors: dict[str, InputError] = {}
        self.skipped = 0
        self.notes: list[str] = []
        self._console = console

    def add(self, error: InputError) -> None:
        """Record a problem; duplicates count once."""
        self._errors.setdefault(str(error), error)

    @property
    def messages(self) -> list[str]:
        """One sentence per problem, in the order of the files."""
        return grouped(self._errors.values())

    @contextmanager
    def skip_broken_image(self) -> Iterator[None]:
        """Record an InputError raised inside instead of propagating it, and count the image as skipped."""
        try:
            yield
        except InputError as error:
            self.add(error)
            self.skipped += 1

    def track(self, images: Collection[Item]) -> Iterable[Item]:
        """Iterate over images, with a progress bar if each is decoded."""
        if self.decode and self._console is not None:
            return track(images, "Checking images", console=self._console, transient=True)
        return images

    def require_none(self, origin: object) -> None:
        """Refuse a data set with problems, unless they are skipped.

        Raises:
            InputError: the problem, or the first of many problems.
        """
        if self.messages and not self.skip:
            advice = "Repair these files, or skip the affected images with --on-bad-data skip."
            raise self._error(f"{origin} has {len(self.messages)} problems", advice)

    def no_usable_image(self, origin: object, otherwise: str) -> InputError:
        """Build the error for a data set without a usable image; `otherwise` is its message if nothing is broken."""
        if not self.messages:
            return InputError(otherwise)
        return self._error(f"{origin} has no usable image: {len(self.messages)} problems", "Repair these files.")

    def report(self, images: int) -> list[str]:
        """Phrases about skipped images and notes, where `images` is the number of remaining images."""
        if not self.skipped:
            return self.notes
        count, first = f"{self.skipped} of {self.skipped + images}", self.messages[0].rstrip(".")
        return [f"{count} images skipped (first problem: {first})", *self.notes]

    def _error(self, heading: str, advice: str) -> InputError:
        sentences = self.messages
        if len(sentences) == 1:
            return InputError(sentences[0])
        ending = f"; the first {MAX_LISTED}:" if len(sentences) > MAX_LISTED else ":"
        return BadDataError(f"{heading}{ending}", sentences[:MAX_LISTED], advice)


def grouped(errors: Collection[InputError]) -> list[str]:
    """Messages of errors in order, where images of one format whose decoder is missing share a sentence."""
    formats = Counter(error.format for error in errors if isinstance(error, MissingDecoderError))
    sentences: dict[str, str] = {}  # by format, or by themselves
    for error in errors:
        if isinstance(error, MissingDecoderError):
            count = formats[error.format]
            several = f"{count} images in {error.format} need {error.remedy}, such as {error.path}."
            single = f"1 image in {error.format} needs {error.remedy}: {error.path}."
            sentences.setdefault(error.format, several if count > 1 else single)
        else:
            sentences[str(error)] = str(error)
    return [str(InputError(sentence)) for sentence in sentences.values()]
