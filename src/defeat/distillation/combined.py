"""Several methods at once, `a+b`: the terms of each, with its own options and names."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, ClassVar

from torch import Tensor, nn

from defeat.distillation.align import LevelPair
from defeat.distillation.base import Method
from defeat.distillation.regions import Regions, Shape
from defeat.settings import PLUS
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target

DOT = "."  # between the names of a method and of its option


class Combined(Method):
    """The terms of several methods, added up; a subclass per combination is made by `combination`.

    Names of options, weights and terms begin with the name of their method and a dot, such as `defeat.object_weight`.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        options: options of the parts.

    Raises:
        InputError: a part refuses the pair or an option.
    """

    kinds: ClassVar[dict[str, type[Method]]]

    def __init__(self, student: DetectorInfo, teacher: DetectorInfo, **options: Any) -> None:
        super().__init__(student, teacher)
        built = {name: kind(student, teacher, **options_of_part(options, name)) for name, kind in self.kinds.items()}
        self.parts = nn.ModuleDict(built)
        self.weights = {
            f"{name}{DOT}{key}": value for name, part in built.items() for key, value in part.weights.items()
        }
        self.begins_near_zero = any(part.begins_near_zero for part in built.values())
        self.notes += [f"{name}: {note}" for name, part in built.items() for note in part.notes]

    @property
    def methods(self) -> dict[str, Method]:
        """The methods by name."""
        return {name: part for name, part in self.parts.items() if isinstance(part, Method)}

    @property
    def levels(self) -> list[LevelPair]:
        """The levels that any of the methods compares, each once."""
        return list(dict.fromkeys(chain.from_iterable(method.levels for method in self.methods.values())))

    @property
    def needs(self) -> frozenset[str]:
        """The fields that any of the methods reads."""
        return frozenset().union(*(method.needs for method in self.methods.values()))

    def negative_weight(self, progress: Progress) -> float:
        """The product of the methods' weights of negatives."""
        product = 1.0
        for method in self.methods.values():
            product *= method.negative_weight(progress)
        return product

    def painted(self, boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> dict[str, Regions]:
        """The regions of all methods."""
        return {
            f"{name}{DOT}{region}": cells
            for name, method in self.methods.items()
            for region, cells in method.painted(boxes, shapes).items()
        }

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute the terms of all methods."""
        return {
            f"{name}{DOT}{term}": loss
            for name, method in self.methods.items()
            for term, loss in method.terms(student, teacher, targets, progress).items()
        }


@cache
def combination(kinds: tuple[tuple[str, type[Method]], ...]) -> type[Combined]:
    """The class of a combination of methods, given their names and classes."""
    parts = dict(kinds)
    attributes: dict[str, Any] = {
        "__doc__": Combined.__doc__,
        "kinds": parts,
        "paper": "; ".join(kind.paper for kind in parts.values()),
        "reads": tuple(dict.fromkeys(chain.from_iterable(kind.reads for kind in parts.values()))),
        "reads_boxes_only": all(kind.reads_boxes_only for kind in parts.values()),
    }
    return type(PLUS.join(parts), (Combined,), attributes)


def options_of_part(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The options of a part, without its name before them."""
    start = f"{name}{DOT}"
    return {key.removeprefix(start): value for key, value in options.items() if key.startswith(start)}
