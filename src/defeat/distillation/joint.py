"""Several teachers at once: a method for each, with the teacher's share of the loss."""

from collections.abc import Sequence
from itertools import chain

from torch import Tensor, nn

from defeat.distillation.align import LevelPair
from defeat.distillation.base import Method
from defeat.distillation.regions import Regions, Shape
from defeat.errors import InputError
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target


class Joint(Method):
    """The terms of one method for each of several teachers, each with adaptation layers of its own.

    The terms of a teacher are multiplied by its share, and shares add up to one, so that two teachers do not pull twice
    as hard as one. Terms on predictions (`head_`) concern the classes that a teacher knows: they are divided by the
    shares of all teachers that know them, averaged over its classes, so that a class that only one teacher knows is
    taught with full weight. Names of terms and weights begin with the number of the teacher, such as
    `teacher1.neck_object`.

    Args:
        student: description of the student.
        teacher: description of all teachers together, with their classes renamed to the student's names.
        parts: the method for each teacher.
        shares: share of each teacher, above 0; None for equal shares.

    Raises:
        InputError: the shares do not fit the teachers.
    """

    paper = "none; a weighted sum over teachers"
    reads = ()

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        parts: Sequence[Method],
        shares: Sequence[float] | None = None,
    ) -> None:
        super().__init__(student, teacher)
        given = list(shares or [1.0] * len(parts))
        if len(given) != len(parts) or not all(0 < share < float("inf") for share in given):
            raise InputError(f"--teacher-shares needs a number above 0 for each of the {len(parts)} teachers.")
        self.parts = nn.ModuleList(parts)
        self.shares = [share / sum(given) for share in given]
        self.weights = {f"{self._name(number)}{key}": value for number, key, value in self._all_weights()}
        self.begins_near_zero = any(part.begins_near_zero for part in parts)
        self.notes += [
            f"teacher {number + 1}: {note}"
            for number, part in enumerate(parts)
            for note in [*part.classes.describe(), *part.notes]
        ]

    @property
    def methods(self) -> list[Method]:
        """The method of each teacher."""
        return [part for part in self.parts if isinstance(part, Method)]

    @property
    def levels(self) -> list[LevelPair]:
        """The levels that any of the methods compares, each once."""
        return list(dict.fromkeys(chain.from_iterable(method.levels for method in self.methods)))

    @property
    def needs(self) -> frozenset[str]:
        """The fields that any of the methods reads."""
        return frozenset().union(*(method.needs for method in self.methods))

    def negative_weight(self, progress: Progress) -> float:
        """The mean of the methods' weights of negatives."""
        return sum(
            share * method.negative_weight(progress) for share, method in zip(self.shares, self.methods, strict=True)
        )

    def painted(self, boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> dict[str, Regions]:
        """The regions of the first teacher's method."""
        return self.methods[0].painted(boxes, shapes)

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute the terms of all teachers."""
        losses: dict[str, Tensor] = {}
        for number, (method, output) in enumerate(zip(self.methods, teacher.members, strict=True)):
            for name, loss in method.terms(student, output, targets, progress).items():
                factor = self.head_share(number) if name.startswith("head_") else self.shares[number]
                losses[f"{self._name(number)}{name}"] = factor * loss
        return losses

    def head_share(self, number: int) -> float:
        """Share of a teacher in the terms on predictions: its mean share among those that know each of its classes."""
        known = [set(method.classes.pairs) for method in self.methods]
        shares = [
            self.shares[number]
            / sum(share for share, classes in zip(self.shares, known, strict=True) if label in classes)
            for label in known[number]
        ]
        return sum(shares) / len(shares) if shares else self.shares[number]

    @staticmethod
    def _name(number: int) -> str:
        return f"teacher{number + 1}."

    def _all_weights(self) -> list[tuple[int, str, float]]:
        return [(number, key, value) for number, part in enumerate(self.methods) for key, value in part.weights.items()]
