"""DeFeat: decoupled features and decoupled proposals (Guo et al., CVPR 2021, arXiv 2103.14475)."""

from collections.abc import Sequence
from functools import partial
from typing import Unpack

from torch import Tensor

from defeat.distillation.align import LevelPair
from defeat.distillation.base import Method, checked_weights
from defeat.distillation.classification import ClassImitation, ClassTerm
from defeat.distillation.imitation import MAP_DEFAULTS, MapImitation, MapOptions, PaintRegions, scheduled
from defeat.distillation.regions import (
    CANONICAL_SIDE,
    Regions,
    Shape,
    backbone_regions,
    object_regions,
    object_regions_on_all_levels,
)
from defeat.errors import InputError, unknown_name
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target

PUBLISHED_SIZE = 800  # short side, in pixels, of the images that the published constants fit


class DeFeat(Method):
    """Object regions and background each teach the student, with weights of their own.

    Neck (equation 3 of the paper): the squared difference between the teacher's map and the adapted student's, summed
    over the object region and over the background apart, each over twice the number of its elements in the batch, times
    its own weight, averaged over the levels. Each ground-truth box belongs to one level, chosen by its size. Backbone:
    the same on the body's maps, with all boxes painted on each level.

    Classification (equation 5): KL(teacher || student) at a temperature, added up over the positive and over the
    negative predictions apart, each sum over the count that `head_average` names, times its own weight. Of two-stage
    detectors both score the teacher's proposals; of one-stage detectors with the same anchors every anchor counts, with
    one Bernoulli variable a class.

    The published weights fit one pair of networks: features of other backbones are larger by orders of magnitude,
    and the same weights then drown the detector's own losses. By default both sides are therefore standardised,
    which bounds each neck term near its weight whatever the features' scale. Where a student begins with the neck and
    the head of its teacher, its maps have to become the teacher's own: adaptation layers that begin as identity, and
    weights of 32 and 16, are worth most there. Measured on held-out images, AP of one seed, students that inherit
    (docs/accuracy.md has all that was tried):

    - drawn scenes, Faster R-CNN: inherited alone 19.8, random 3 x 3 adaptation layers with weights 4 and 16 23.4,
      identity 33.3, identity of 1 x 1 cells 35.6; those with weights 16 and 16 41.4, 32 and 16 42.2, 32 and 32 43.3;
      baseline 8.4.
    - blood cells, RetinaNet: baseline 25.7, weights 16 and 16 40.6, 32 and 16 41.6, 32 and 32 40.8; teacher 36.4.

    Classification terms cost a second pass of the heads and won nothing beside the neck, so they are off by default.

    Args:
        student: what is known about the student.
        teacher: what is known about the teacher.
        object_weight: weight of the object region of the neck (published: 3 for VOC, with `scale` none).
        background_weight: weight of the background of the neck (published: 12 for VOC, with `scale` none).
        backbone_object_weight: weight of the object region of the backbone; 0 switches it off.
        backbone_background_weight: weight of the background of the backbone; 0 switches it off.
        backbone_strides: strides of the backbone's maps that take part.
        positive_weight: weight of the positive predictions' divergence; 0 switches it off.
        negative_weight: weight of the negative predictions' divergence; 0 switches it off.
        positive_temperature: temperature of the positive predictions, above 0.
        negative_temperature: temperature of the negative predictions, above 0.
        head_average: what each sum over proposals is divided by: all, the number of all sampled proposals, with which a
            weight of 1 pulls on each as hard as the detector's own loss; or group (published), the number of positive
            or of negative ones, with which positives pull four times as hard or more. One-stage detectors always divide
            by the group. On drawn scenes, at a learning rate near the highest that a lite0 student bears, weights 1 and
            1 gave 0.2 AP with group and 12.1 with all, where the student alone reached 10.7 (one seed).
        head_comparison: kl, or balanced: for sigmoid predictions BCKD's class-balanced cross entropy.
        proposals: whose proposals both detectors score: teacher, student or both.
        object_levels: on which levels of the neck an object is painted: published (one, chosen by its size in pixels,
            with constants for images of 800 pixels), scaled (one, the constants scaled to the size of the student's
            images), or all, as FGD does.
        level_weights: what each level of the neck counts for in the mean over the levels: equal (published), or objects
            (its share of the cells of all objects' own levels in the batch).
        detector_negatives: weight of negatives in the student's own losses of classes, 0 or more; 1 changes nothing.
        detector_negatives_decay: what that weight is divided by after every epoch, 1 or more (published code: 5).
        options: those of all methods that imitate maps, see `MapOptions`.

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
        self.schedule, maps = scheduled({**self.shared, **options})
        self.begins_near_zero = maps["initialisation"] == "published"
        self.neck = MapImitation(
            student,
            teacher,
            "neck",
            _object_painter(object_levels, student.size),
            object_weight=object_weight,
            background_weight=background_weight,
            level_weights=level_weights,
            **maps,
        )
        self.backbone = MapImitation(
            student,
            teacher,
            "backbone",
            backbone_regions,
            object_weight=backbone_object_weight,
            background_weight=backbone_background_weight,
            strides=backbone_strides,
            **maps,
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
        """Those of neck and backbone."""
        return [*self.neck.pairs, *self.backbone.pairs]

    @property
    def needs(self) -> frozenset[str]:
        """The maps of the parts whose weights are above zero, and what the head's terms compare."""
        maps = (part.part for part in (self.neck, self.backbone) if part.levels)
        return frozenset([*maps, *([self.head.field] if self.head.field else [])])

    def negative_weight(self, progress: Progress) -> float:
        """The weight of negatives in the student's own losses, `w / decay^epoch`."""
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
    """What paints objects on the neck's levels; `size` is the short side of the student's images in pixels."""
    painters: dict[str, PaintRegions] = {
        "published": object_regions,
        "scaled": partial(object_regions, canonical_side=CANONICAL_SIDE * size / PUBLISHED_SIZE),
        "all": object_regions_on_all_levels,
    }
    if levels not in painters:
        raise unknown_name("choice of object_levels", levels, painters)
    return painters[levels]
