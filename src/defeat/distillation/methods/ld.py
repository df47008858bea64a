"""LD: localisation distillation (Zheng et al., CVPR 2022, arXiv 2102.12252)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import distance_box_iou

from defeat.distillation.base import Method, checked_weights
from defeat.distillation.classification import comparable_field
from defeat.distillation.losses import masked_mean
from defeat.distillation.processes import average_count
from defeat.distillation.schedule import Schedule
from defeat.errors import InputError
from defeat.types import DensePredictions, DetectorInfo, DetectorOutput, Progress, Target

FARTHEST = 0.25  # the valuable region begins at this share of an object's threshold, gamma of the paper


class LD(Method):
    """The student's distributions of the sides of boxes follow the teacher's.

    The divergence of the two distributions at a temperature T, KL(teacher || student), times T^2 and averaged over
    the M values of a distribution and over the four sides (equations 3 to 5 of the paper). Two regions:

    - `main`: the positive points, weighted by the student's score, as in the detector's own box losses.
    - `valuable`: points near an object that are not positive. Their squares (eight strides wide) have a DIoU with it
      between a quarter of the object's threshold and the threshold, which is the lowest DIoU of its positive points. In
      the paper it is that of ATSS, which other assignments don't have.

    It needs no common classes. Both detectors must predict distributions of as many values at the same points, as GFL
    and YOLOv9 do.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        main_weight: weight of the positive points (published: 0.25).
        valuable_weight: weight of the valuable region (published: 0.25).
        temperature: temperature of the distributions, above 0 (published: 10).
        warmup: fraction of the run over which the terms rise linearly from zero, 0..1.
        decay: how the terms change over the epochs: constant, linear, cosine or up_down.

    Raises:
        InputError: an option is not valid, or the distributions can't be compared.
    """

    paper = "Zheng et al., CVPR 2022, arXiv 2102.12252"
    reads = ("dense",)

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        main_weight: float = 0.25,
        valuable_weight: float = 0.25,
        temperature: float = 10.0,
        warmup: float = 0.0,
        decay: str = "constant",
    ) -> None:
        super().__init__(student, teacher)
        self.weights = checked_weights(main_weight=main_weight, valuable_weight=valuable_weight)
        self.schedule = Schedule(decay, warmup)
        if not 0 < temperature < float("inf"):
            raise InputError(f"temperature must be above 0 and finite, not {temperature}.")
        self.temperature = temperature
        if not student.bins or student.bins != teacher.bins or comparable_field(student, teacher)[0] != "dense":
            raise InputError(
                "ld needs two detectors that predict boxes as distributions of as many values at the same points (two "
                "of gfl, or two of yolo9, with images of one size)."
            )

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute `head_main` and `head_valuable`, those with a weight above zero."""
        if not self.needs:
            return {}
        assert student.dense is not None
        assert teacher.dense is not None
        labels = student.dense.labels
        positive = (labels >= 0) & (labels < len(self.student.classes))  # (B, N)
        losses: dict[str, Tensor] = {}
        if self.weights["main_weight"] > 0:
            trust = student.dense.logits.detach().float()[positive].sigmoid().amax(dim=1)
            divergences = self._divergences(student.dense, teacher.dense, positive)
            losses["head_main"] = (divergences * trust).sum() / average_count(trust.sum())
        if self.weights["valuable_weight"] > 0:
            valuable = valuable_region(student.dense, positive, targets)
            divergences = self._divergences(student.dense, teacher.dense, valuable)
            losses["head_valuable"] = masked_mean(divergences, torch.ones_like(divergences, dtype=torch.bool))
        return self.weighted(losses, progress)

    def _divergences(self, student: DensePredictions, teacher: DensePredictions, region: Tensor) -> Tensor:
        """Mean divergence over the sides, for the P points of a region (B, N): (P,)."""
        assert student.distributions is not None
        assert teacher.distributions is not None
        own = F.log_softmax(student.distributions[region].float() / self.temperature, dim=-1)  # (P, 4, M)
        other = F.log_softmax(teacher.distributions[region].float() / self.temperature, dim=-1)
        divergence = F.kl_div(own, other, reduction="none", log_target=True).mean(dim=(1, 2))
        return divergence * self.temperature**2


def valuable_region(dense: DensePredictions, positive: Tensor, targets: Sequence[Target]) -> Tensor:
    """Points near objects that are not positive, (B, N) bool.

    Args:
        dense: predictions of the student, with squares.
        positive: (B, N) bool, the positive points.
        targets: the boxes of each image, in pixels of the batch.
    """
    assert dense.squares is not None
    region = torch.zeros_like(positive)
    for image, target in enumerate(targets):
        if not len(target.boxes):
            continue
        overlaps = distance_box_iou(dense.squares, target.boxes)  # (N, G)
        of_class = (dense.labels[image, :, None] == target.labels) & positive[image, :, None]
        owner = overlaps.masked_fill(~of_class, -torch.inf).argmax(dim=1)
        own = of_class & (owner[:, None] == torch.arange(len(target.boxes), device=owner.device))
        threshold = overlaps.masked_fill(~own, torch.inf).amin(dim=0)  # (G,); infinite without a positive point
        inside = (overlaps >= FARTHEST * threshold) & (overlaps <= threshold) & threshold.isfinite()
        region[image] = inside.any(dim=1) & ~positive[image] & (dense.labels[image] >= 0)
    return region
