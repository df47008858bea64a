"""The interface of a teacher, and its optional capabilities."""

from collections.abc import Collection, Sequence
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from defeat.types import Batch, Detections, DetectorInfo, DetectorOutput, Maps

PREDICT = "predict"  # `predict(images)` returns detections
MAPS = "maps"  # `forward_maps(batch)` returns only the feature maps, so that they can be cached
STORED = "stored"  # `stored(names, sizes)` returns detections that were made before
CAPABILITIES = frozenset({PREDICT, MAPS, STORED})


@runtime_checkable
class Teacher(Protocol):
    """A trained network that a student learns from, such as a `Detector`, a `TappedTeacher` or a `BoxNetwork`.

    A step that needs a missing capability is omitted with a note, or refused if a method requires it.
    """

    @property
    def info(self) -> DetectorInfo:
        """Classes, strides, channels, input size and normalisation.

        `size` and `max_size` are 0 for a teacher without an input size, such as a `TappedTeacher` without `size`: it
        sees the student's batch at the student's size, with more padding if its `size_divisor` requires that.
        """

    @property
    def capabilities(self) -> frozenset[str]:
        """Its capabilities, a subset of `CAPABILITIES`."""

    def adopt(self, batch: Batch) -> Batch:
        """Convert a batch that the student prepared, so that both see the same pixels.

        The batch is resized to `info.size` (unless that is 0) and padded to multiples of `info.size_divisor`.
        """

    def forward_teacher(
        self, batch: Batch, reads: Collection[str] | None = None, maps: Maps | None = None
    ) -> DetectorOutput:
        """Compute the output that a student learns from, in eval mode and without gradient.

        Args:
            batch: result of `adopt`.
            reads: fields of the output that will be read, besides `valid`; None for all. Others may be missing.
            maps: result of `forward_maps` for the same batch, if already computed; only with `MAPS`.
        """


class Predictor(Protocol):
    """Anything that detects objects, such as a `Detector` or an `ExportedDetector`."""

    @property
    def info(self) -> DetectorInfo:
        """Its classes, and more."""

    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect objects in RGB images, each (3, H, W), uint8 in 0..255 or float32 in 0..1; sorted by score."""


def batch_detections(predictor: Predictor, batch: Batch) -> list[Detections]:
    """Detections of a predictor for a prepared batch, in pixels of the batch and on its device."""
    crops = [image[:, :height, :width] for image, (height, width) in zip(batch.images, batch.sizes, strict=True)]
    found = predictor.predict([(crop * 255).round().to(torch.uint8).cpu() for crop in crops])
    device = batch.images.device
    return [Detections(one.boxes.to(device), one.scores.to(device), one.labels.to(device)) for one in found]


class PredictingTeacher(Teacher, Predictor, Protocol):
    """A teacher with the capability `PREDICT`."""


class StoredTeacher(Teacher, Protocol):
    """A teacher with the capability `STORED`."""

    def stored(self, names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[Detections | None]:
        """Detections of images, sorted by score; None for an image that it has not seen.

        Args:
            names: paths of the images, relative to their folder.
            sizes: height and width of each in pixels.
        """

    def has_seen(
        self, names: Sequence[str], sizes: Sequence[tuple[int, int]], others: Sequence[str] = ()
    ) -> list[bool]:
        """Whether it has detections of each image, and none of `others` is the same image to it."""


class MapsTeacher(Teacher, Protocol):
    """A teacher with the capability `MAPS`."""

    def forward_maps(self, batch: Batch) -> Maps:
        """Compute feature maps of backbone and neck by stride, for a batch returned by `adopt`."""

    def padded_size(self, height: int, width: int) -> tuple[int, ...]:
        """Height and width of an image in pixels after resizing and padding, in a batch of its own.

        The arguments are those of the original image, or of the image in the student's batch if `info.size` is 0.
        """


def can_predict(teacher: Teacher) -> TypeGuard[PredictingTeacher]:
    """Whether a teacher can detect objects."""
    return PREDICT in teacher.capabilities


def gives_maps(teacher: Teacher) -> TypeGuard[MapsTeacher]:
    """Whether a teacher can compute only its feature maps."""
    return MAPS in teacher.capabilities


def gives_detections(teacher: Teacher) -> bool:
    """Whether a teacher can predict, or has detections that were made before."""
    return bool(teacher.capabilities & {PREDICT, STORED})


def has_stored(teacher: Teacher) -> TypeGuard[StoredTeacher]:
    """Whether a teacher has detections of images that it knows by their names."""
    return STORED in teacher.capabilities
