"""The description of an exported detector, which its file contains: how images are prepared, and what outputs mean."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from defeat.detector.description import (
    COLOUR,
    NAMES,
    POSITIVE_COLOUR,
    SIDE,
    Rule,
    integer,
    name_of,
    require_description,
    validated,
)
from defeat.detector.selection import Selection
from defeat.errors import InputError

FORMAT = 1
KEY = "defeat"  # of the entry in the file's metadata
IMAGES, BOXES, SCORES, LABELS = "images", "boxes", "scores", "labels"  # names of the input and the outputs


def _one_of(*values: Any) -> Rule:
    return Rule(
        lambda value: value in values and type(value) in map(type, values), f"one of {', '.join(map(str, values))}"
    )


def _number(low: float, high: float) -> Rule:
    def accepts(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high  # also refuses NaN

    return Rule(accepts, f"a number in {low}..{high}")


def _or_none(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.accepts(value), f"{rule.expected}, or null")


FLAG = Rule(lambda value: isinstance(value, bool), "true or false")
TEXT = Rule(lambda value: isinstance(value, str), "a text")


@dataclass(frozen=True)
class ExportDescription:
    """What a program must know to use an exported detector.

    The input `images` is (B, 3, H, W) float32 RGB. An image is resized as `size`, `max_size` and `square` say, and put
    into the upper left corner if the input has fixed sides; the rest has the value of `fill`. Normalisation and padding
    to multiples of `size_divisor` are inside the file.

    With `nms` inside there is one image, and the outputs are `boxes` (D, 4), x1 y1 x2 y2 in pixels of the input,
    `scores` (D,) in 0..1 and `labels` (D,), 0..K-1, sorted by score. With `nms` outside they are `boxes` (B, N, 4) and
    `scores` (B, N, K) of all candidates: drop scores up to `score_thresh`, apply non-maximum suppression per class with
    the IoU `nms_thresh` unless it is null, and keep the best `detections_per_img`.

    Attributes:
        family: name of the family.
        classes: names of the K classes, in the order of the labels.
        size: short side of an image after resizing, in pixels; of a square, its side.
        max_size: upper limit of the long side, in pixels.
        size_divisor: the network pads height and width to multiples of this.
        square: whether images are stretched to a square, instead of keeping their aspect ratio.
        antialias: whether images are antialiased when they are shrunk.
        fill: red, green and blue around an image in an input of fixed sides, in the unit of `white`.
        white: value of a white pixel, 1 or 255.
        height: height of the input in pixels; None if it may vary.
        width: width of the input in pixels; None if it may vary.
        batch: images at a time; None if it may vary.
        nms: inside or outside of the file.
        score_thresh: detections with a lower score are dropped, 0..1.
        nms_thresh: IoU threshold of non-maximum suppression; None where the network needs none.
        detections_per_img: maximum number of detections of an image.
        precision: fp32, fp16 or int8.
        mean: mean of R, G, B that the network subtracts, for values in 0..1.
        std: standard deviation of R, G, B that it divides by.
        fingerprint: SHA-256 of the weights of the original.
        version: version of the program that wrote the file, with its commit.
        licence: licence of the weights as the user stated it; empty if not stated.
    """

    family: str = validated(name_of("detector"))
    classes: tuple[str, ...] = validated(NAMES)
    size: int = validated(SIDE)
    max_size: int = validated(SIDE)
    size_divisor: int = validated(integer(1, 1024, "a number of pixels from 1 to 1024"))
    square: bool = validated(FLAG)
    antialias: bool = validated(FLAG)
    fill: tuple[float, ...] = validated(COLOUR)
    white: int = validated(_one_of(1, 255))
    height: int | None = validated(_or_none(SIDE))
    width: int | None = validated(_or_none(SIDE))
    batch: int | None = validated(_or_none(integer(1, 1, "1")))
    nms: str = validated(_one_of("inside", "outside"))
    score_thresh: float = validated(_number(0, 1))
    nms_thresh: float | None = validated(_or_none(_number(0, 1)))
    detections_per_img: int = validated(integer(1, 1_000_000, "a number of detections from 1"))
    precision: str = validated(_one_of("fp32", "fp16", "int8"))
    mean: tuple[float, ...] = validated(COLOUR)
    std: tuple[float, ...] = validated(POSITIVE_COLOUR)
    fingerprint: str = validated(TEXT, default="")
    version: str = validated(TEXT, default="")
    licence: str = validated(TEXT, default="")

    @property
    def selection(self) -> Selection:
        """How detections are selected from candidates."""
        return Selection(self.score_thresh, self.detections_per_img, self.nms_thresh)

    def text(self) -> str:
        """As JSON, for the metadata of a file."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, text: str, origin: Path) -> "ExportDescription":
        """Read the metadata of a file.

        Args:
            text: result of `text`.
            origin: the file, for messages.

        Raises:
            InputError: it is not valid.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{origin}: the description of the detector in it is damaged.") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise InputError(f"{origin} was written by another version of this program: export the run again.")
        require_description(cls, content, origin)
        known = {entry.name for entry in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        return cls(**{name: value for name, value in values.items() if name in known})
