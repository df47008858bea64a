"""CrossKD: cross-head knowledge distillation (Wang et al., CVPR 2024, arXiv 2306.11369)."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from defeat.distillation.align import resize_map
from defeat.distillation.base import Method, checked_weights
from defeat.distillation.differences import standardised_like
from defeat.distillation.losses import balanced_cross_entropy
from defeat.distillation.processes import average_count
from defeat.distillation.schedule import Schedule
from defeat.errors import InputError
from defeat.types import DensePredictions, DetectorInfo, DetectorOutput, Progress, Target

BRANCHES = {"classes": "class_weight", "boxes": "box_weight"}  # with the weight of each


class CrossKD(Method):
    """The teacher's head, given the student's features, predicts what it predicts with its own.

    The feature maps inside the student's head, before the last convolution of each branch (after the third of four, as
    published), get the mean and the deviation of the teacher's in every channel, and pass through the rest of the
    teacher's head. Its predictions are compared with the teacher's own (equation 4 of the paper), so that the student's
    own predictions follow the annotations alone, and the two goals don't conflict.

    - Classes: BCE with the teacher's scores, times the distance of both scores (quality focal loss with beta 1), at all
      points or anchors.
    - Boxes, at positive points or anchors: 1 - GIoU; where both predict distributions of distances, KL(teacher ||
      student) of these, averaged over their values and the four sides.

    Both are divided by the number of positive points. Everything is compared in the classes of the teacher and at its
    points: student and teacher need neither common classes nor the same kind of head, but both a head with towers
    (retinanet, fcos, gfl). Where their channels differ, a 1x1 convolution precedes the rest of the head. The teacher's
    head is not trained. The paper combines it with PKD on the neck: `--method crosskd+pkd`.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        class_weight: weight of the classes (published: 1).
        box_weight: weight of the boxes; None for the published one, 1 for GIoU and 4 for distributions.
        warmup: fraction of the run over which the terms rise linearly from zero, 0..1.
        decay: how the terms change over the epochs: constant, linear, cosine or up_down.

    Raises:
        InputError: an option is not valid, or a detector has no towers or other strides.
    """

    paper = "Wang et al., CVPR 2024, arXiv 2306.11369"
    reads = ("dense", "towers")

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        class_weight: float = 1.0,
        box_weight: float | None = None,
        warmup: float = 0.0,
        decay: str = "constant",
    ) -> None:
        super().__init__(student, teacher)
        weight = (4.0 if teacher.bins else 1.0) if box_weight is None else box_weight
        self.weights = checked_weights(class_weight=class_weight, box_weight=weight)
        self.schedule = Schedule(decay, warmup)
        if "towers" not in student.offers & teacher.offers or student.neck.keys() != teacher.neck.keys():
            raise InputError(
                "crosskd needs two detectors whose heads are towers of convolutions on the same strides (retinanet, "
                "fcos, gfl); this pair has no such heads in common."
            )
        self.adaptation = nn.ModuleDict()
        channels = next(iter(student.neck.values())), next(iter(teacher.neck.values()))
        if channels[0] != channels[1]:
            used = [branch for branch, name in BRANCHES.items() if self.weights[name] > 0]
            self.adaptation.update({branch: nn.Conv2d(*channels, 1) for branch in used})

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute `head_class` and `head_box`, those with a weight above zero."""
        if not self.needs:
            return {}
        assert student.towers is not None
        assert teacher.towers is not None
        assert teacher.dense is not None
        maps = {branch: self._restandardised(branch, getattr(student.towers, branch), teacher) for branch in BRANCHES}
        crossed, own = teacher.towers.finish(maps["classes"], maps["boxes"]), teacher.dense
        positive = (own.labels >= 0) & (own.labels < len(self.student.classes))  # (B, N)
        count = average_count(positive.sum().float())
        losses: dict[str, Tensor] = {}
        if self.weights["class_weight"] > 0:
            costs = balanced_cross_entropy(crossed.logits.flatten(0, 1).float(), own.logits.flatten(0, 1).float())
            losses["head_class"] = (costs * (own.labels.flatten() >= 0)).sum() / count
        if self.weights["box_weight"] > 0:
            losses["head_box"] = _box_costs(crossed, own, positive).sum() / count
        return self.weighted(losses, progress)

    def _restandardised(self, branch: str, student: Mapping[int, Tensor], output: DetectorOutput) -> dict[int, Tensor]:
        """The student's maps (B, C, H, W) of a branch, with the shapes, means and deviations of the teacher's."""
        teacher: dict[int, Tensor] = getattr(output.towers, branch)
        if self.weights[BRANCHES[branch]] == 0:
            return teacher
        maps = {}
        for stride, other in teacher.items():
            own = student[stride].float()
            if branch in self.adaptation:
                own = self.adaptation[branch](own)
            resized = resize_map(own, 1 / output.scale, (other.shape[-2], other.shape[-1]), 1 / output.stretch)
            maps[stride] = standardised_like(resized, other.float(), output.valid[stride])
        return maps


def _box_costs(crossed: DensePredictions, own: DensePredictions, positive: Tensor) -> Tensor:
    """Difference of two predictions of the boxes at positive points (B, N): (P,)."""
    if crossed.distributions is not None and own.distributions is not None:
        prediction = F.log_softmax(crossed.distributions[positive].float(), dim=-1)  # (P, 4, M)
        target = F.log_softmax(own.distributions[positive].float(), dim=-1)
        return F.kl_div(prediction, target, reduction="none", log_target=True).mean(dim=(1, 2))
    image, index = positive.nonzero(as_tuple=True)
    with torch.no_grad():
        goals = own.decode(image, index)
    costs: Tensor = generalized_box_iou_loss(crossed.decode(image, index), goals)
    return costs
