"""Pairs of feature maps that methods compare: matched levels, the student's maps adapted, the teacher's resized."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from defeat.distillation.align import Adaptation, LevelPair, match_levels, resize_map
from defeat.distillation.base import Method
from defeat.distillation.schedule import split_schedule
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target

Part = Literal["neck", "backbone"]


@dataclass(frozen=True)
class MapPair:
    """The maps of a level of the student and of the matching one of the teacher, in float32.

    Attributes:
        stride: stride of the student's level.
        student: (B, C, H, W), adapted to the teacher's channels.
        teacher: (B, C, H, W), resized to the student's shape; without gradient.
        valid: (B, H, W) bool, false on padding.
    """

    stride: int
    student: Tensor
    teacher: Tensor
    valid: Tensor


class MatchedMaps(nn.Module):
    """Matches the levels of two detectors, and adapts the student's maps to the teacher's channels.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        part: whose maps: `neck`, or `backbone`, where a ReLU follows each adaptation layer.
        strides: strides of the student's levels that are compared; None for all.
        missing_levels: handling of levels whose stride the teacher lacks, see `match_levels`.
        initialisation: initialisation of the adaptation layers, see `Adaptation`.
        adaptation_kernel: kernel size of the adaptation layers, see `Adaptation`.
        active: whether anything is compared; if not, there are no levels and no layers.

    Attributes:
        levels: the matched levels by the student's stride.
        notes: one sentence for each level that is left out or resized.

    Raises:
        InputError: no stride is shared, or an option is not valid.
    """

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        part: Part,
        *,
        strides: Sequence[int] | None = None,
        missing_levels: str = "leave_out",
        initialisation: str = "identity",
        adaptation_kernel: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        self.part = part
        self.levels: dict[int, LevelPair] = {}
        self.notes: list[str] = []
        if active:
            channels = getattr(student, part)
            self.levels = match_levels(channels, getattr(teacher, part), part, strides, missing_levels)
            self._note_missing([stride for stride in sorted(channels) if strides is None or stride in strides])
        self.adaptation = Adaptation(self.levels, initialisation, part == "backbone", adaptation_kernel)

    @property
    def pairs(self) -> list[LevelPair]:
        """The levels that are compared, each with the kernel of its adaptation layer."""
        return [replace(pair, kernel=self.adaptation.kernel_of(pair)) for pair in self.levels.values()]

    def of(self, student: DetectorOutput, teacher: DetectorOutput) -> Iterator[MapPair]:
        """The maps of each level.

        Args:
            student: output of the student.
            teacher: output of the teacher; its images may be larger or smaller.
        """
        for stride, level in self.levels.items():
            student_map = getattr(student, self.part)[stride].float()
            ratio = teacher.scale * level.stride / level.teacher_stride
            teacher_map = getattr(teacher, self.part)[level.teacher_stride].float()
            shape = student_map.shape[-2], student_map.shape[-1]
            resized = resize_map(teacher_map, ratio, shape, teacher.stretch)
            yield MapPair(stride, self.adaptation(student_map, stride), resized, student.valid[stride])

    def _note_missing(self, strides: Sequence[int]) -> None:
        """Add notes on the student's levels that the teacher lacks."""
        left_out = [str(stride) for stride in strides if stride not in self.levels]
        if left_out:
            self.notes.append(f"The teacher's {self.part} has no level at stride {', '.join(left_out)}: left out.")
        resized = [level for level in self.levels.values() if level.stride != level.teacher_stride]
        self.notes += [
            f"The teacher's {self.part} has no level at stride {level.stride}: the one at stride "
            f"{level.teacher_stride} is resized."
            for level in resized
        ]


class LevelOptions(TypedDict, total=False):
    """Options shared by the methods that compare whole levels of the neck."""

    initialisation: str
    """Initialisation of the adaptation layers: identity (where channels match), default (random) or published (near
    zero)."""
    adaptation_kernel: int
    """Kernel size of the adaptation layers in cells: 1, 3, or 0 (published): 1 where channels differ, and none
    elsewhere."""
    missing_levels: str
    """Handling of levels whose stride the teacher lacks: leave_out, or nearest (the teacher's level of the nearest
    stride, resized)."""
    warmup: float
    """Fraction of the run over which the terms rise linearly from zero, 0..1."""
    decay: str
    """How the terms change over the epochs: constant, linear, cosine or up_down."""


LEVEL_DEFAULTS: LevelOptions = {
    "initialisation": "identity",
    "adaptation_kernel": 0,
    "missing_levels": "leave_out",
    "warmup": 0.0,
    "decay": "constant",
}


class LevelMethod(Method):
    """Base class of methods whose losses are sums over the levels of the neck, as their papers define them.

    A subclass sets `weights`, one per term, and implements `level_losses`.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        weights: weights of the terms by option name, `TERM_weight` each.
        finest: number of levels of the student that are compared, beginning with the finest; None for all.
        options: see `LevelOptions`.

    Raises:
        InputError: an option is not valid, or the two necks share no stride.
    """

    reads = ("neck",)
    shared: ClassVar[Mapping[str, Any]] = LEVEL_DEFAULTS

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        weights: dict[str, float],
        *,
        finest: int | None = None,
        **options: Unpack[LevelOptions],
    ) -> None:
        super().__init__(student, teacher)
        self.weights = weights
        self.schedule, given = split_schedule({**self.shared, **options})
        self.begins_near_zero = given["initialisation"] == "published"
        self.maps = MatchedMaps(
            student,
            teacher,
            "neck",
            strides=sorted(student.neck)[:finest],
            active=any(weights.values()),
            **given,
        )
        self.notes += self.maps.notes

    @property
    def levels(self) -> list[LevelPair]:
        """The compared levels of the neck."""
        return self.maps.pairs

    @abstractmethod
    def level_losses(self, maps: MapPair, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute the losses of a level by the name of their term, not yet weighted.

        Args:
            maps: both maps of the level.
            targets: the boxes of each image, in pixels of the student's batch.
        """

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute `neck_TERM` for each term with a weight above zero: the weighted sum over the levels."""
        sums: dict[str, list[Tensor]] = {}
        for maps in self.maps.of(student, teacher):
            for name, loss in self.level_losses(maps, targets).items():
                sums.setdefault(name, []).append(loss)
        return self.weighted({f"neck_{name}": torch.stack(loss).sum() for name, loss in sums.items()}, progress)

    def wants(self, term: str) -> bool:
        """Whether the weight of a term is above zero."""
        return self.weights[f"{term}_weight"] > 0


def published_weight(given: float | None, one_stage: float, two_stage: float, student: DetectorInfo) -> float:
    """A weight as given, or else as published for the student's kind of detector.

    Args:
        given: the option; None for the published value.
        one_stage: published for detectors without proposals.
        two_stage: published for detectors with proposals.
        student: description of the student.
    """
    if given is not None:
        return given
    return two_stage if "proposals" in student.offers else one_stage
