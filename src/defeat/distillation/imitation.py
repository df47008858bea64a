"""Imitation of feature maps: adaptation layers, regions, differences, and weights of region and background."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypedDict, Unpack

import torch
from torch import Tensor

from defeat.distillation.align import LevelPair
from defeat.distillation.base import Method
from defeat.distillation.differences import DIFFERENCES, squared_difference, standardise, standardised_difference
from defeat.distillation.losses import region_mean
from defeat.distillation.maps import MatchedMaps, Part
from defeat.distillation.regions import Regions, Shape, box_strides
from defeat.distillation.schedule import split_schedule
from defeat.errors import unknown_name
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target

LEVEL_WEIGHTS = ("equal", "objects")
SCALES = ("standardise", "teacher", "none")


class MapOptions(TypedDict, total=False):
    """Options shared by all methods that imitate feature maps."""

    scale: str
    """How the terms are made independent of the magnitude of the features: standardise (both sides), teacher (the
    teacher's maps only) or none (published)."""
    initialisation: str
    """Initialisation of the adaptation layers: identity (where channels match), default (random) or published (near
    zero)."""
    adaptation_kernel: int
    """Kernel size of the adaptation layers in cells: 1; 3 (published), which costs more; or 0, for none where channels
    match."""
    missing_levels: str
    """Handling of levels whose stride the teacher lacks: leave_out, or nearest (the teacher's level of the nearest
    stride, resized)."""
    count_padding: bool
    """Whether padded cells count as background, as in the published code."""
    warmup: float
    """Fraction of the run over which the terms rise linearly from zero, 0..1."""
    decay: str
    """How the terms change over the epochs: constant, linear, cosine or up_down."""


# Measured with students that inherit neck and head, see docs/accuracy.md.
MAP_DEFAULTS: MapOptions = {
    "scale": "standardise",
    "initialisation": "identity",
    "adaptation_kernel": 1,
    "missing_levels": "leave_out",
    "count_padding": False,
    "warmup": 0.05,
    "decay": "constant",
}
PaintRegions = Callable[[Sequence[Tensor], dict[int, Shape]], Regions]


class MapImitation(MatchedMaps):
    """Losses between the feature maps of student and teacher, over a region and over the background.

    On each level, the difference between the teacher's map and the adapted student's is summed over the region and,
    separately, over the rest of the image; each sum is divided by twice the number of its elements in the batch. Levels
    are averaged, and each of the two means gets its own weight, so that the background, which has many more cells, does
    not outweigh the objects (Guo et al., CVPR 2021, equation 3; with one weight at zero, equation 1).

    Args:
        student: description of the student.
        teacher: description of the teacher.
        part: whose maps: `neck`, or `backbone`, where a ReLU follows each adaptation layer.
        regions: function that marks the region, see `defeat.distillation.regions`.
        object_weight: weight of the region; 0 leaves the term out.
        background_weight: weight of the rest; 0 leaves the term out.
        strides: strides of the student's levels that are compared; None for all.
        missing_levels: handling of levels whose stride the teacher lacks, see `match_levels`.
        difference: `squared`, `absolute` or `divisive`, see `defeat.distillation.differences`.
        scale: how the terms are made independent of the magnitude of the features. `standardise`: zero mean and unit
            variance in every channel of a level, on both sides; `teacher`: only on the teacher's side, and the
            adaptation layer has to learn the scale; `none`: as published, with weights that fit one pair of networks.
        initialisation: initialisation of the adaptation layers: `identity`, `default` or `published` (see
            `Adaptation`).
        adaptation_kernel: kernel size of the adaptation layers, 0, 1 or 3 cells (see `Adaptation`).
        count_padding: whether padded cells count as background, as in the published code.
        level_weights: weight of each level in the mean over the levels: `equal` (published), or `objects`: in
            proportion to the number of boxes assigned to it by their size, so that a level without objects in the
            batch has no gradient.

    Attributes:
        levels: the matched levels by the student's stride; empty where both weights are 0.
        notes: one sentence for each level that is left out or resized.

    Raises:
        InputError: no stride is shared, or the difference, the scale or the initialisation is unknown.
    """

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        part: Part,
        regions: PaintRegions,
        *,
        object_weight: float = 0.0,
        background_weight: float = 0.0,
        strides: Sequence[int] | None = None,
        missing_levels: str = "leave_out",
        difference: str = "squared",
        scale: str = "standardise",
        initialisation: str = "identity",
        adaptation_kernel: int = 1,
        count_padding: bool = False,
        level_weights: str = "equal",
    ) -> None:
        super().__init__(
            student,
            teacher,
            part,
            strides=strides,
            missing_levels=missing_levels,
            initialisation=initialisation,
            adaptation_kernel=adaptation_kernel,
            active=object_weight != 0 or background_weight != 0,  # a part that is switched off has no layers
        )
        if level_weights not in LEVEL_WEIGHTS:
            raise unknown_name("choice of level_weights", level_weights, LEVEL_WEIGHTS)
        self.level_weights = level_weights
        if difference not in DIFFERENCES:
            raise unknown_name("difference", difference, DIFFERENCES)
        if scale not in SCALES:
            raise unknown_name("scale", scale, SCALES)
        self.regions = regions
        self.weights = {"object": object_weight, "background": background_weight}
        self.difference, self.scale, self.count_padding = DIFFERENCES[difference], scale, count_padding

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute the weighted terms `PART_object` and `PART_background`.

        Args:
            student: output of the student.
            teacher: output of the teacher; its images may be larger or smaller.
            targets: the boxes of each image, in pixels of the student's batch.
        """
        if not self.levels:
            return {}
        maps = {stride: getattr(student, self.part)[stride] for stride in self.levels}
        shapes = {stride: (level.shape[-2], level.shape[-1]) for stride, level in maps.items()}
        regions = self.regions([target.boxes for target in targets], shapes)
        terms: dict[str, list[Tensor]] = {name: [] for name, weight in self.weights.items() if weight > 0}
        for pair in self.of(student, teacher):
            inside = torch.ones_like(pair.valid) if self.count_padding else pair.valid
            per_cell = self._difference(pair.student, pair.teacher, inside)
            region = regions[pair.stride].to(per_cell.dtype) * inside
            cells = {"object": region, "background": inside.to(per_cell.dtype) - region}
            for name, term in terms.items():
                term.append(region_mean(per_cell, cells[name], pair.teacher.shape[1]))
        means = {name: self._mean_over_levels(torch.stack(term), targets, list(maps)) for name, term in terms.items()}
        return {f"{self.part}_{name}": self.weights[name] * mean for name, mean in means.items()}

    def _mean_over_levels(self, values: Tensor, targets: Sequence[Target], strides: Sequence[int]) -> Tensor:
        """Mean of (L,) values, one per level, weighted as `level_weights` says."""
        if self.level_weights == "equal" or not any(len(target.boxes) for target in targets):
            return values.mean()
        levels = box_strides(torch.cat([target.boxes for target in targets]), strides)
        counts = torch.stack([(levels == stride).sum() for stride in strides])
        return (values * counts).sum() / counts.sum()

    def painted(self, boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> Regions:
        """The region on the levels that are compared."""
        return self.regions(boxes, {stride: shape for stride, shape in shapes.items() if stride in self.levels})

    def _difference(self, student_map: Tensor, teacher_map: Tensor, inside: Tensor) -> Tensor:
        """The difference of both maps, scaled as `scale` says, summed over the channels: (B, H, W)."""
        if self.scale == "standardise":
            if self.difference is squared_difference:
                return standardised_difference(student_map, teacher_map, inside)
            student_map = standardise(student_map, inside)
        return self.difference(student_map, teacher_map if self.scale == "none" else standardise(teacher_map, inside))


class NeckMethod(Method):
    """Base class of methods that imitate one region of the neck; `neck_object` is their only term.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        regions: function that marks the region, see `defeat.distillation.regions`.
        weight: weight of the term.
        difference: see `MapImitation`.
        options: see `MapOptions`.

    Raises:
        InputError: an option is not valid, or the two necks share no stride.
    """

    reads = ("neck",)
    shared: ClassVar[Mapping[str, Any]] = MAP_DEFAULTS

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        regions: PaintRegions,
        weight: float,
        *,
        difference: str = "squared",
        **options: Unpack[MapOptions],
    ) -> None:
        super().__init__(student, teacher)
        self.schedule, map_options = split_schedule({**self.shared, **options})
        self.begins_near_zero = map_options["initialisation"] == "published"
        self.neck = MapImitation(
            student, teacher, "neck", regions, object_weight=weight, difference=difference, **map_options
        )
        self.notes += self.neck.notes

    @property
    def levels(self) -> list[LevelPair]:
        """The compared levels of the neck."""
        return self.neck.pairs

    def painted(self, boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> dict[str, Regions]:
        """The region, as `object`."""
        return {"object": self.neck.painted(boxes, shapes)}

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute `neck_object`, the term on the region."""
        return self.schedule.scaled(self.neck(student, teacher, targets), progress)
