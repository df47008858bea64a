"""What becomes of broken files of a data set: all are named at once, or what they are about is left out.

An image with a broken annotation is left out whole: with an object that nobody marked it would teach and score wrongly.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar, get_args

from rich.console import Console
from rich.progress import track

from defeat.errors import BadDataError, InputError

OnBadData = Literal["stop", "skip"]
LISTED = 10  # problems that are shown of all

Item = TypeVar("Item")


class Problems:
    """Gathers what is wrong with the images and annotations of a split.

    Args:
        on_bad_data: `stop` to refuse a data set with problems, `skip` to leave out the images that have one.
        console: where to show progress; None for none.
        decode: whether `skip` decodes every image, to leave out those whose pixels can't be.

    Attributes:
        skip: whether images with a problem are left out.
        decode: whether every image has to be decoded when the data set is opened.
        found: a sentence for each problem, in the order of the files.
        left_out: images that are left out.
        notes: other things to know about the data, a phrase each.

    Raises:
        InputError: `on_bad_data` is neither.
    """

    def __init__(self, on_bad_data: str = "stop", console: Console | None = None, decode: bool = True) -> None:
        if on_bad_data not in get_args(OnBadData):
            raise InputError(f"--on-bad-data must be {' or '.join(get_args(OnBadData))}, not {on_bad_data!r}.")
        self.skip = on_bad_data == "skip"
        self.decode = self.skip and decode
        self.found: dict[str, None] = {}
        self.left_out = 0
        self.notes: list[str] = []
        self._console = console

    def add(self, error: InputError) -> None:
        """Take note of a problem; one that is known already counts once."""
        self.found[str(error)] = None

    @contextmanager
    def of_an_image(self) -> Iterator[None]:
        """Take note of an InputError inside instead of passing it on: the image that it is about is left out."""
        try:
            yield
        except InputError as error:
            self.add(error)
            self.left_out += 1

    def track(self, images: Collection[Item]) -> Iterable[Item]:
        """The images, with a progress bar where each is decoded."""
        shown = self.decode and self._console is not None
        return track(images, "Checking images", console=self._console, transient=True) if shown else images

    def require_none(self, origin: object) -> None:
        """Refuse a data set with problems, unless they are to be skipped.

        Raises:
            InputError: the problem, or the first ones of many.
        """
        if self.found and not self.skip:
            way_out = "Mend these files, or leave out the images that they are about with --on-bad-data skip."
            raise self._error(f"{origin} has {len(self.found)} problems", way_out)

    def nothing_left(self, origin: object, otherwise: str) -> InputError:
        """The error for a data set of which nothing can be used; `otherwise` is what to say where nothing is broken."""
        if not self.found:
            return InputError(otherwise)
        return self._error(f"{origin} holds nothing that can be used: {len(self.found)} problems", "Mend these files.")

    def report(self, images: int) -> list[str]:
        """What was left out, a phrase each, where `images` are left."""
        if not self.left_out:
            return self.notes
        count, first = f"{self.left_out} of {self.left_out + images}", next(iter(self.found)).rstrip(".")
        return [f"{count} images left out (the first problem: {first})", *self.notes]

    def _error(self, head: str, way_out: str) -> InputError:
        sentences = list(self.found)
        if len(sentences) == 1:
            return InputError(sentences[0])
        shown = f"; the first {LISTED}:" if len(sentences) > LISTED else ":"
        return BadDataError(f"{head}{shown}", sentences[:LISTED], way_out)
