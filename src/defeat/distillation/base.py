"""The contract that every distillation method keeps."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from defeat.distillation.align import Adaptation, LevelPair
from defeat.distillation.class_map import ClassMap
from defeat.distillation.regions import Regions, Shape
from defeat.errors import InputError
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target


class Method(nn.Module, ABC):
    """Turns what a student and a teacher computed for the same batch into named losses.

    A subclass takes the two `DetectorInfo`s first and its options as keywords; builds its adaptation layers, which are
    trained along with the student and never saved with it; and implements `terms`. It never sums, steps, or moves
    anything to a device.

    Attributes:
        paper: where the method comes from (of the class).
        reads: fields of `DetectorOutput` that it may read beside the losses (of the class).
        shared: defaults of the options that it shares with other methods and takes as `**options` (of the class).
        student: what is known about the student.
        teacher: what is known about the teacher, with its classes named as the student calls them.
        weights: of its terms, by the names of the options that set them.
        begins_near_zero: whether its adaptation layers begin near zero, so that at first hardly any gradient passes.
        notes: one sentence for each part of the method that this pair leaves out, and why.

    Raises:
        InputError: the pair lacks something that the method needs.
    """

    paper: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    shared: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, student: DetectorInfo, teacher: DetectorInfo) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.weights: dict[str, float] = {}
        self.begins_near_zero = False
        self.notes: list[str] = []

    @property
    def classes(self) -> ClassMap:
        """Meets the classes of both by their names."""
        return ClassMap(self.student.classes, self.teacher.classes)

    @property
    def levels(self) -> list[LevelPair]:
        """The levels of both detectors that are compared; none unless the method says so."""
        return []

    @property
    def needs(self) -> frozenset[str]:
        """Those of `reads` that its settings make it read: a teacher need not compute the others."""
        return frozenset(self.reads)

    def negative_weight(self, progress: Progress) -> float:
        """The weight that negatives shall have in the detector's own loss of classes; 1 leaves it as it is."""
        return 1.0

    def adapt_in(self, dtype: torch.dtype | None) -> None:
        """Let the adaptation layers compute in a lower precision, such as bfloat16; what they give is float32."""
        for layer in self.modules():
            if isinstance(layer, Adaptation):
                layer.dtype = dtype

    def painted(self, boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> dict[str, Regions]:
        """The regions of the neck's maps that the method looks at, by name, for pictures; none unless it says so.

        Args:
            boxes: one (G, 4) tensor an image, pixels of the batch.
            shapes: height and width of each level in cells, by stride.
        """
        return {}

    @abstractmethod
    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute the losses; arguments and result are those of `forward`, and autocast is off."""

    def forward(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute named, already weighted scalar losses, in float32 also under autocast.

        Args:
            student: with gradient.
            teacher: without gradient.
            targets: the trainable boxes of each image, in pixels of the student's batch.
            progress: where the run stands.
        """
        device = next(iter(student.neck.values())).device.type
        with torch.autocast(device, enabled=False):
            return self.terms(student, teacher, targets, progress)


def checked_weights(**weights: float) -> dict[str, float]:
    """The weights by name, none of them negative or not finite.

    Raises:
        InputError: naming the first such weight.
    """
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise InputError(f"{name} must be 0 or more and finite, not {weight}.")
    return weights
