"""Interface of the distillation methods."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from defeat.distillation.align import Adaptation, LevelPair
from defeat.distillation.class_map import ClassMap
from defeat.distillation.regions import Regions, Shape
from defeat.distillation.schedule import Schedule
from defeat.errors import InputError
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target


class Method(nn.Module, ABC):
    """Base class of the methods: computes named losses from the outputs of student and teacher for the same batch.

    A subclass takes the two `DetectorInfo`s first and its options as keywords; builds its adaptation layers, which are
    trained along with the student and never saved with it; and implements `terms`. It never sums losses, takes steps,
    or moves anything to a device.

    Attributes:
        paper: source of the method (class attribute).
        reads: fields of `DetectorOutput` that it may read, apart from the losses (class attribute).
        reads_boxes_only: whether it reads nothing of the teacher but `detections` (class attribute).
        shared: defaults of the options shared with other methods, taken as `**options` (class attribute).
        student: description of the student.
        teacher: description of the teacher, with its classes renamed to the student's names.
        weights: weights of the terms, by option name.
        schedule: factor of all terms. They should depend on the length of the run in no other way, because a run can be
            resumed with more epochs where the factor so far would have been the same.
        begins_near_zero: whether the adaptation layers start near zero, so that at first hardly any gradient passes.
        notes: one sentence per part of the method that is left out for this pair, with the reason.

    Raises:
        InputError: the pair lacks something that the method needs.
    """

    paper: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    reads_boxes_only: ClassVar[bool] = False
    shared: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, student: DetectorInfo, teacher: DetectorInfo) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.weights: dict[str, float] = {}
        self.schedule = Schedule()
        self.begins_near_zero = False
        self.notes: list[str] = []

    @property
    def classes(self) -> ClassMap:
        """Maps teacher classes to student classes by name."""
        return ClassMap(self.student.classes, self.teacher.classes)

    @property
    def levels(self) -> list[LevelPair]:
        """The levels of both detectors that are compared; empty by default."""
        return []

    @property
    def needs(self) -> frozenset[str]:
        """The fields among `reads` that are read with the current options: the teacher need not compute the others.

        By default all of them, and none if all weights are zero.
        """
        return frozenset(self.reads if any(self.weights.values()) or not self.weights else ())

    def negative_weight(self, progress: Progress) -> float:
        """Weight of negatives in the student's own classification loss; 1 leaves the loss unchanged."""
        return 1.0

    def adapt_in(self, dtype: torch.dtype | None) -> None:
        """Let the adaptation layers compute in a lower precision, such as bfloat16; their outputs stay float32."""
        for layer in self.modules():
            if isinstance(layer, Adaptation):
                layer.dtype = dtype

    def painted(self, boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> dict[str, Regions]:
        """The regions of the neck's maps that the method uses, by name, for pictures; empty by default.

        Args:
            boxes: one (G, 4) tensor per image, pixels of the batch.
            shapes: height and width of each level in cells, by stride.
        """
        return {}

    def weighted(self, losses: Mapping[str, Tensor], progress: Progress) -> dict[str, Tensor]:
        """Losses named `PART_TERM`, each times the weight `TERM_weight` and the factor of the schedule."""
        products = {name: self.weights[f"{name.partition('_')[2]}_weight"] * loss for name, loss in losses.items()}
        return self.schedule.scaled(products, progress)

    @abstractmethod
    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute the losses; arguments and result as for `forward`, with autocast disabled."""

    def forward(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute named, already weighted scalar losses, in float32 even under autocast.

        Args:
            student: output of the student, with gradient.
            teacher: output of the teacher, without gradient.
            targets: the trainable boxes of each image, in pixels of the student's batch.
            progress: current step and epoch of the run.
        """
        device = next(iter(student.neck.values())).device.type
        with torch.autocast(device, enabled=False):
            return self.terms(student, teacher, targets, progress)


def checked_weights(**weights: float) -> dict[str, float]:
    """Check that no weight is negative or not finite; returns the weights by name.

    Raises:
        InputError: a weight is negative or not finite.
    """
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise InputError(f"{name} must be 0 or more and finite, not {weight}.")
    return weights
