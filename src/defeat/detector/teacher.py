"""What a trained teacher must have, and what else it may be able to do."""

from collections.abc import Collection, Sequence
from typing import Protocol, TypeGuard, runtime_checkable

from torch import Tensor

from defeat.types import Batch, Detections, DetectorInfo, DetectorOutput, Maps

PREDICT = "predict"  # `predict(images)` gives detections
MAPS = "maps"  # `forward_maps(batch)` gives the maps alone, so that they can be kept in a cache
FOLD = "fold"  # its batch normalisation can be folded into the convolutions of `backbone`
PROPOSALS = "proposals"  # its output has `score_proposals`
HEAD = "head"  # its head can run on the maps of another detector
INHERIT = "inherit"  # a student may begin with its weights
CAPABILITIES = frozenset({PREDICT, MAPS, FOLD, PROPOSALS, HEAD, INHERIT})


@runtime_checkable
class Teacher(Protocol):
    """A trained network that a student learns from; every `Detector` is one, and so is a `TappedTeacher`.

    What it lacks among the capabilities is left out with a note, or refused where a method can't do without.
    """

    @property
    def info(self) -> DetectorInfo:
        """Classes, strides, channels, input size and normalisation."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Which of `CAPABILITIES` it has."""

    def adopt(self, batch: Batch) -> Batch:
        """Take over a batch that the student prepared, so that both look at the same pixels."""

    def forward_teacher(
        self, batch: Batch, reads: Collection[str] | None = None, maps: Maps | None = None
    ) -> DetectorOutput:
        """Compute what a student may learn from, in eval mode and without gradient.

        Args:
            batch: what `adopt` gave.
            reads: fields of the output that will be read, beside `valid`; None for all. Others may be missing.
            maps: what `forward_maps` gave for the same batch, when that is known already; only with `MAPS`.
        """


class PredictingTeacher(Teacher, Protocol):
    """A teacher with the capability `PREDICT`."""

    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect objects in RGB images, each (3, H, W), uint8 in 0..255 or float32 in 0..1; best first."""


class MapsTeacher(Teacher, Protocol):
    """A teacher with the capability `MAPS`."""

    def forward_maps(self, batch: Batch) -> Maps:
        """Compute the maps of backbone and neck for a batch that `adopt` gave, by stride."""

    def padded_size(self, height: int, width: int) -> tuple[int, ...]:
        """Height and width in pixels that an image has after resizing and its own padding."""


def can_predict(teacher: Teacher) -> TypeGuard[PredictingTeacher]:
    """Whether a teacher gives detections."""
    return PREDICT in teacher.capabilities


def gives_maps(teacher: Teacher) -> TypeGuard[MapsTeacher]:
    """Whether a teacher gives its maps alone."""
    return MAPS in teacher.capabilities
