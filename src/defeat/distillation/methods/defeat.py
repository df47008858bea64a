"""DeFeat: decoupled features and decoupled proposals (Guo et al., CVPR 2021, arXiv 2103.14475)."""

from collections.abc import Sequence
from functools import partial
from typing import Unpack

from torch import Tensor

from defeat.distillation.align import LevelPair
from defeat.distillation.base import Method, checked_weights
from defeat.distillation.classification import ClassImitation, ClassTerm
from defeat.distillation.imitation import MAP_DEFAULTS, MapImitation, MapOptions, PaintRegions
from defeat.distillation.regions import (
    CANONICAL_SIDE,
    Regions,
    Shape,
    backbone_regions,
    object_regions,
    object_regions_on_all_levels,
)
from defeat.distillation.schedule import split_schedule
from defeat.errors import InputError, unknown_name
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target

PUBLISHED_SIZE = 800  # short side, in pixels, of the images that the published constants fit


class DeFeat(Method):
    """The student imitates the teacher on object regions and on the background, with separate weights.

    Neck (equation 3 of the paper): the squared difference between the teacher's map and the adapted student's, summed
    separately over the object region and over the background, each divided by twice the number of its elements in the
    batch, times its weight, averaged over the levels. Each ground-truth box belongs to one level, chosen by its size.
    Backbone: the same on the body's maps, with all boxes marked on each level.

    Classification (equation 5): KL(teacher || student) at a temperature, summed separately over the positive and the
    negative predictions, each divided by the count that `head_average` selects, times its weight. Two-stage detectors
    both score the teacher's proposals; for one-stage detectors with the same anchors every anchor counts, with one
    Bernoulli variable per class.

    The published weights fit one pair of networks: features of other backbones are larger by orders of magnitude, and
    the same weights then outweigh the detector's own losses. By default both sides are therefore standardised, which
    bounds each neck term near its weight for features of any scale. Where a student inherits the teacher's neck and
    head, its maps have to become equal to the teacher's: adaptation layers that start as identity, and weights of 32
    and 16, gain most there. Measured on held-out images, AP of one seed, students that inherit (docs/accuracy.md has
    all variants):

    - drawn scenes, Faster R-CNN: inheritance only 19.8, random 3 x 3 adaptation layers with weights 4 and 16 23.4,
      identity 33.3, identity of 1 x 1 cells 35.6; those with weights 16 and 16 41.4, 32 and 16 42.2, 32 and 32 43.3;
      baseline 8.4.
    - blood cells, RetinaNet: baseline 25.7, weights 16 and 16 40.6, 32 and 16 41.6, 32 and 32 40.8; teacher 36.4.

    Classification terms cost a second pass of the heads and gained nothing on top of the neck terms, so they are off by
    default.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        object_weight: weight of the object region of the neck (published: 3 for VOC, with `scale` none).
        background_weight: weight of the background of the neck (published: 12 for VOC, with `scale` none).
        backbone_object_weight: weight of the object region of the backbone; 0 switches it off.
        backbone_background_weight: weight of the background of the backbone; 0 switches it off.
        backbone_strides: strides of the backbone's maps that are compared.
        positive_weight: weight of the positive predictions' divergence; 0 switches it off.
        negative_weight: weight of the negative predictions' divergence; 0 switches it off.
        positive_temperature: temperature of the positive predictions, above 0.
        negative_temperature: temperature of the negative predictions, above 0.
        head_average: what each sum over proposals is divided by: all, the number of sampled proposals, where a weight
            of 1 gives gradients as large as those of the detector's own loss; or group (published), the number of
            positives or of negatives, where gradients at positives are at least four times as large. One-stage
            detectors always divide by the group. On drawn scenes, at a learning rate near the highest that a lite0
            student tolerates, weights 1 and 1 gave 0.2 AP with group and 12.1 with all; baseline 10.7 (one seed).
        head_comparison: kl, or balanced: for sigmoid predictions BCKD's class-balanced cross entropy.
        proposals: whose proposals both detectors score: teacher, student or both.
        object_levels: on which levels of the neck an object is marked: published (one, chosen by its size in pixels,
            with constants for images of 800 pixels), scaled (one, the constants scaled to the size of the student's
            images), or all, as FGD does.
        level_weights: weight of each level of the neck in the mean over the levels: equal (published), or objects (in
            proportion to the number of boxes assigned to the level).
        detector_negatives: weight of negatives in the student's own classification losses, 0 or more; 1 changes
            nothing.
        detector_negatives_decay: divisor of that weight after every epoch, 1 or more (published code: 5).
        options: options of all methods that imitate feature maps, see `MapOptions`.

    Raises:
        InputError: a weight, temperature or name is not valid, or the two share no stride.
    """

    paper = "Guo et al., CVPR 2021, arXiv 2103.14475"
    reads = ("neck", "backbone", "proposals", "dense")
    shared = MAP_DEFAULTS

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        object_weight: float = 32.0,
        background_weight: float = 16.0,
        backbone_object_weight: float = 0.0,
        backbone_background_weight: float = 0.0,
        backbone_strides: tuple[int, ...] = (8, 16, 32),
        positive_weight: float = 0.0,
        negative_weight: float = 0.0,
        positive_temperature: float = 1.0,
        negative_temperature: float = 1.0,
        head_average: str = "all",
        head_comparison: str = "kl",
        proposals: str = "teacher",
        object_levels: str = "published",
        level_weights: str = "equal",
        detector_negatives: float = 1.0,
        detector_negatives_decay: float = 1.0,
        **options: Unpack[MapOptions],
    ) -> None:
        super().__init__(student, teacher)
        self.weights = checked_weights(
            object_weight=object_weight,
            background_weight=background_weight,
            backbone_object_weight=backbone_object_weight,
            backbone_background_weight=backbone_background_weight,
            positive_weight=positive_weight,
            negative_weight=negative_weight,
        )
        checked_weights(detector_negatives=detector_negatives)
        if not 1 <= detector_negatives_decay < float("inf"):
            raise InputError(f"detector_negatives_decay must be 1 or more, not {detector_negatives_decay}.")
        self.detector_negatives, self.detector_negatives_decay = detector_negatives, detector_negatives_decay
        self.schedule, map_options = split_schedule({**self.shared, **options})
        self.begins_near_zero = map_options["initialisation"] == "published"
        self.neck = MapImitation(
            student,
            teacher,
            "neck",
            _object_painter(object_levels, student.size),
            object_weight=object_weight,
            background_weight=background_weight,
            level_weights=level_weights,
            **map_options,
        )
        self.backbone = MapImitation(
            student,
            teacher,
            "backbone",
            backbone_regions,
            object_weight=backbone_object_weight,
            background_weight=backbone_background_weight,
            strides=backbone_strides,
            **map_options,
        )
        terms = {
            "positive": ClassTerm(positive_weight, "positive", head_comparison, positive_temperature, head_average),
            "negative": ClassTerm(negative_weight, "negative", head_comparison, negative_temperature, head_average),
        }
        self.head = ClassImitation(student, teacher, terms, proposals)
        self.notes += self.neck.notes + self.backbone.notes
        if self.head.reason:
            self.notes.append(f"The classification terms are left out: {self.head.reason}.")

    @property
    def levels(self) -> list[LevelPair]:
        """The compared levels of neck and backbone."""
        return [*self.neck.pairs, *self.backbone.pairs]

    @property
    def needs(self) -> frozenset[str]:
        """The maps of the parts whose weights are above zero, and the field that the head's terms compare."""
        parts = (imitation.part for imitation in (self.neck, self.backbone) if imitation.levels)
        return frozenset([*parts, *([self.head.field] if self.head.field else [])])

    def negative_weight(self, progress: Progress) -> float:
        """Weight of negatives in the student's own classification losses, `w / decay^epoch`."""
        return self.detector_negatives / self.detector_negatives_decay**progress.epoch

    def painted(self, boxes: Sequence[Tensor], shapes: dict[int, Shape]) -> dict[str, Regions]:
        """The object region of the neck; the rest of the image is the background."""
        return {"object": self.neck.painted(boxes, shapes)}

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute the `object` and `background` terms of neck and backbone, and `head_positive` and `head_negative`."""
        losses = self.neck(student, teacher, targets) | self.backbone(student, teacher, targets)
        return self.schedule.scaled(losses | self.head(student, teacher), progress)


def _object_painter(levels: str, size: int) -> PaintRegions:
    """The function that marks objects on the neck's levels; `size` is the short side of the student's images."""
    painters: dict[str, PaintRegions] = {
        "published": object_regions,
        "scaled": partial(object_regions, canonical_side=CANONICAL_SIDE * size / PUBLISHED_SIZE),
        "all": object_regions_on_all_levels,
    }
    if levels not in painters:
        raise unknown_name("choice of object_levels", levels, painters)
    return painters[levels]
