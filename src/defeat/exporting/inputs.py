"""What the input and the outputs of an exported file look like, from the options of the command."""

from dataclasses import dataclass
from typing import Literal, get_args

from defeat.detector import Detector
from defeat.detector.exported import ExportDescription
from defeat.engine.guards import fingerprint
from defeat.engine.provenance import commit, versions
from defeat.errors import InputError, unknown_name
from defeat.settings import at_least

Nms = Literal["inside", "outside"]
SIDES = ("height", "width")
DYNAMIC = ("batch", *SIDES)
LARGEST = 16_384  # pixels


@dataclass(frozen=True)
class InputOptions:
    """Options of `defeat export` on input and outputs, see `export`."""

    nms: str
    dynamic: str
    height: int | None
    width: int | None
    white: int

    def __post_init__(self) -> None:
        """Refuse values that no detector allows."""
        if self.nms not in get_args(Nms):
            raise unknown_name("value of --nms", self.nms, get_args(Nms))
        if self.white not in (1, 255):
            raise InputError(f"--white must be 1 or 255, not {self.white}.")
        for name in SIDES:
            at_least(name, getattr(self, name), 32, LARGEST)
        for name in self._named:
            if name not in DYNAMIC:
                raise unknown_name("value of --dynamic", name, (*DYNAMIC, "auto", "none"))
            if name in SIDES and getattr(self, name) is not None:
                raise InputError(f"--{name} {getattr(self, name)}: it is dynamic; leave one of the two out.")
        if "batch" in self._named and self.nms == "inside":
            raise InputError(
                "--dynamic batch: with non-maximum suppression inside, the file takes one image; add --nms outside."
            )

    @property
    def _named(self) -> tuple[str, ...]:
        if self.dynamic in ("auto", "none"):
            return ()
        return tuple(name.strip() for name in self.dynamic.split(","))

    def varying(self, square: bool) -> tuple[str, ...]:
        """The dimensions that may vary, for a detector that stretches images to a square or not."""
        if self.dynamic != "auto":
            return self._named
        return () if square or self.height is not None or self.width is not None else SIDES

    def sides(self, detector: Detector) -> tuple[int | None, int | None]:
        """Height and width of the input in pixels, None where they may vary.

        Raises:
            InputError: the detector stretches images to a square, and the options say otherwise.
        """
        info = detector.info
        varying = self.varying(info.square)
        given = (self.height, self.width)
        if info.square and (set(varying) & set(SIDES) or any(side not in (None, info.size) for side in given)):
            raise InputError(
                f"{info.family} stretches images to a square of {info.size} pixels: leave out --height, --width and "
                "--dynamic."
            )
        height, width = (
            None if name in varying else side or info.size for name, side in zip(SIDES, given, strict=True)
        )
        return height, width


def describe(detector: Detector, options: InputOptions, precision: str, licence: str) -> ExportDescription:
    """The description of a file.

    Args:
        detector: what is exported.
        options: of input and outputs.
        precision: fp32, fp16 or int8.
        licence: of the weights, as the user states it.

    Raises:
        InputError: the options are not valid for this detector.
    """
    info, selection = detector.info, detector.selection
    height, width = options.sides(detector)
    around = tuple(info.mean) if detector.padding is None else (detector.padding,) * 3
    return ExportDescription(
        family=info.family,
        classes=info.classes,
        size=info.size,
        max_size=info.max_size,
        size_divisor=info.size_divisor,
        square=info.square,
        antialias=detector.antialias,
        fill=tuple(options.white * value for value in around),
        white=options.white,
        height=height,
        width=width,
        batch=None if "batch" in options.varying(info.square) else 1,
        nms=options.nms,
        score_thresh=selection.score_thresh,
        nms_thresh=selection.nms_thresh,
        detections_per_img=selection.detections_per_img,
        precision=precision,
        mean=info.mean,
        std=info.std,
        fingerprint=fingerprint(detector),
        version=f"defeat {versions()['defeat']}, {commit() or 'no commit'}",
        licence=licence,
    )
