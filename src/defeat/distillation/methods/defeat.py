"""DeFeat: decoupled features and decoupled proposals (Guo et al., CVPR 2021, arXiv 2103.14475)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from defeat.distillation.align import Adaptation, check_classes, rescale_boxes, shared_strides, teacher_map
from defeat.distillation.base import Method, check_weights
from defeat.distillation.losses import (
    masked_mean,
    region_mean,
    sigmoid_divergence,
    softmax_divergence,
    squared_difference,
    standardise,
)
from defeat.distillation.regions import ground_truth_regions
from defeat.distillation.schedule import warm_up
from defeat.errors import InputError, unknown_name
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target

SCALES = ("standardise", "teacher", "none")


class DeFeat(Method):
    """Object regions and background each teach the student, with weights of their own.

    Neck (equation 3 of the paper): the squared difference between the teacher's map and the adapted student's, summed
    over the object region and over the background apart, each over twice the number of its elements in the batch, times
    its own weight, averaged over the levels. Each ground-truth box belongs to one level, chosen by its size.

    Classification (equation 5): KL(teacher || student) at a temperature, averaged over the positive and over the
    negative predictions apart. Of two-stage detectors both score the teacher's proposals; of one-stage detectors with
    the same anchors every anchor counts, with one Bernoulli variable a class.

    The published weights fit one pair of networks: features of other backbones are larger by orders of magnitude,
    and the same weights then drown the detector's own losses. By default both sides are therefore standardised,
    which bounds each neck term near its weight whatever the features' scale. Of the ways tried on held-out blood
    cells (lite2 to lite0, 12 epochs, one seed, AP: student alone 50.3) standardising with weights 4 and 4 did best
    (53.2; with 1 and 1 52.4; standardising the teacher alone 51.7). Classification terms at 0.5 beside weights 1
    and 1 lost against the neck alone (51.8), so they are off by default.

    Args:
        student: what is known about the student.
        teacher: what is known about the teacher.
        object_weight: weight of the object region of the neck (published: 3 for VOC, with `scale` none).
        background_weight: weight of the background of the neck (published: 12 for VOC, with `scale` none).
        positive_weight: weight of the positive predictions' divergence; 0 switches it off.
        negative_weight: weight of the negative predictions' divergence; 0 switches it off.
        positive_temperature: temperature of the positive predictions, above 0.
        negative_temperature: temperature of the negative predictions, above 0.
        scale: what makes the neck terms independent of the magnitude of features. `standardise`: both sides get zero
            mean and unit variance in every channel of a level; `teacher`: the teacher's side alone does, and the
            adaptation layer has to find that scale; `none`: the published arithmetic, whose weights fit one pair of
            networks only.
        initialisation: of the adaptation layers: `default` or `published` (see `Adaptation`).
        warmup: part of the run over which all terms rise linearly from zero, 0..1.
        count_padding: whether padded cells count as background, as in the published code.

    Raises:
        InputError: a weight, temperature or name is not valid, or the two necks share no stride.
    """

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        object_weight: float = 4.0,
        background_weight: float = 4.0,
        positive_weight: float = 0.0,
        negative_weight: float = 0.0,
        positive_temperature: float = 1.0,
        negative_temperature: float = 1.0,
        scale: str = "standardise",
        initialisation: str = "default",
        warmup: float = 0.05,
        count_padding: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        check_weights(
            object_weight=object_weight,
            background_weight=background_weight,
            positive_weight=positive_weight,
            negative_weight=negative_weight,
        )
        if scale not in SCALES:
            raise unknown_name("scale", scale, SCALES)
        if not all(0 < temperature < float("inf") for temperature in (positive_temperature, negative_temperature)):
            raise InputError("Temperatures must be above 0 and finite.")
        if not 0 <= warmup <= 1:
            raise InputError(f"warmup must be between 0 and 1, not {warmup}.")
        self.weights = {"object": object_weight, "background": background_weight}
        self.head_weights = {"positive": positive_weight, "negative": negative_weight}
        self.temperatures = {"positive": positive_temperature, "negative": negative_temperature}
        self.scale, self.warmup, self.count_padding = scale, warmup, count_padding
        self.strides = shared_strides(student, teacher)
        self.adaptation: Adaptation | None = None
        if any(self.weights.values()):
            channels = {stride: (student.neck[stride], teacher.neck[stride]) for stride in self.strides}
            self.adaptation = Adaptation(channels, initialisation)
        self.head = self._head() if any(self.head_weights.values()) else None

    def _head(self) -> str | None:
        """Which predictions the two can be compared on: `proposals`, `dense`, or None with a note."""
        reason = check_classes(self.student, self.teacher)
        if reason is None:
            offered = self.student.offers & self.teacher.offers
            if "proposals" in offered:
                return "proposals"
            if "dense" in offered and _grid(self.student) == _grid(self.teacher):
                return "dense"
            reason = "they share neither proposals nor anchors on images of one size"
        self.notes.append(f"The classification terms are left out: {reason}.")
        return None

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute `neck_object`, `neck_background`, `head_positive`, `head_negative`; zero weights leave theirs out."""
        losses = {} if self.adaptation is None else self._neck(self.adaptation, student, teacher, targets)
        if self.head is not None:
            losses |= self._classification(student, teacher)
        factor = warm_up(progress, self.warmup)
        return {name: loss * factor for name, loss in losses.items()}

    def _neck(
        self, adaptation: Adaptation, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        maps = {stride: student.neck[stride].float() for stride in self.strides}
        shapes = {stride: (level.shape[-2], level.shape[-1]) for stride, level in maps.items()}
        objects = ground_truth_regions([target.boxes for target in targets], shapes)
        sums = dict.fromkeys(self.weights, torch.zeros((), device=maps[self.strides[0]].device))
        for stride, level in maps.items():
            inside = torch.ones_like(student.valid[stride]) if self.count_padding else student.valid[stride]
            regions = {"object": objects[stride] & inside, "background": inside & ~objects[stride]}
            found = adaptation(level, stride)
            wanted = teacher_map(teacher, stride, shapes[stride])
            per_cell = squared_difference(*self._scaled(found, wanted, inside))
            for name, region in regions.items():
                sums[name] = sums[name] + region_mean(per_cell, region, wanted.shape[1])
        return {f"neck_{name}": weight * sums[name] / len(maps) for name, weight in self.weights.items() if weight > 0}

    def _scaled(self, found: Tensor, wanted: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale == "standardise":
            return standardise(found, inside), standardise(wanted, inside)
        if self.scale == "teacher":
            weight = inside[:, None].to(wanted.dtype)
            mean = (wanted * weight).sum((0, 2, 3), keepdim=True) / weight.sum()
            deviation = (((wanted - mean).square() * weight).sum((0, 2, 3), keepdim=True) / weight.sum() + 1e-6).sqrt()
            return found, (wanted - mean) / deviation
        return found, wanted

    def _classification(self, student: DetectorOutput, teacher: DetectorOutput) -> dict[str, Tensor]:
        if self.head == "proposals":
            assert teacher.proposals is not None
            assert student.score_proposals is not None
            wanted, labels = teacher.proposals.logits.float(), teacher.proposals.labels
            found = student.score_proposals(rescale_boxes(teacher.proposals.boxes, 1 / teacher.scale)).float()
            divergence, background = softmax_divergence, wanted.shape[1] - 1
        else:
            assert teacher.dense is not None
            assert student.dense is not None
            wanted, found = teacher.dense.logits.float().flatten(0, 1), student.dense.logits.float().flatten(0, 1)
            labels = student.dense.labels.flatten()
            divergence, background = sigmoid_divergence, wanted.shape[1]
        groups = {"positive": (labels >= 0) & (labels < background), "negative": labels == background}
        return {
            f"head_{name}": weight * masked_mean(divergence(found, wanted, self.temperatures[name]), groups[name])
            for name, weight in self.head_weights.items()
            if weight > 0
        }


def _grid(info: DetectorInfo) -> tuple[str, int, int]:
    """What decides where anchors are: two detectors with the same grid have the same anchors in every batch."""
    return info.anchors, info.size, info.max_size
