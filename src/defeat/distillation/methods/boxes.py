"""Imitation of the teacher's final boxes, which works for any pair of detectors; arithmetic of this project."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou_loss

from defeat.distillation.align import rescale_boxes
from defeat.distillation.base import Method, checked_weights
from defeat.distillation.losses import sigmoid_divergence
from defeat.distillation.processes import average_count
from defeat.distillation.schedule import Schedule
from defeat.errors import InputError, unknown_name
from defeat.types import DetectorInfo, DetectorOutput, Progress, Target

FIELDS = ("proposals", "queries", "dense")  # of the student, the first that it offers
CHOICES = ("drop", "keep")
CONFIRMED = 0.5  # IoU with an object from which a box of the teacher is confirmed
TINY = 1e-6  # scores are kept this far from 0 and 1, where logits are infinite


@dataclass(frozen=True)
class _Predictions:
    """Predictions of a student for one image.

    Attributes:
        boxes: (N, 4) boxes by which they are matched, in pixels of the batch, without gradient.
        logits: (N, K) or (N, K+1) class logits.
    """

    boxes: Tensor
    logits: Tensor


class Boxes(Method):
    """The student's predictions follow the final boxes of the teacher, with their scores as soft targets.

    Every box of the teacher of a class that the student knows is matched to the student's predictions whose boxes have
    an IoU with it of at least a threshold, and to the one with the highest IoU in any case; a prediction belongs to the
    box that it overlaps most. At matched predictions, the score of the box's class follows the teacher's (divergence of
    two Bernoulli variables), and the box follows the teacher's (1 - GIoU, times the teacher's score). Both are averaged
    over the matched predictions of the batch, with the teacher's scores as weights of the boxes.

    It reads nothing of the teacher but boxes, so that detectors of different kinds can be paired, and teachers can be
    objects that only give boxes (`--teacher onnx:FILE`, `FILE.py:FACTORY`). Predictions of the student are its
    proposals, the queries of its last layer, or those at its anchors or points.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        class_weight: weight of the scores.
        box_weight: weight of the boxes.
        least_score: boxes of the teacher with a lower score are left out, 0..1.
        iou_threshold: IoU from which a prediction is matched, 0..1.
        unconfirmed: what to do in annotated images with boxes of the teacher that have no IoU of 0.5 or more with an
            object of their class, which are its mistakes: drop or keep (on BCCD no better when dropped).
        warmup: fraction of the run over which the terms rise linearly from zero, 0..1.
        decay: how the terms change over the epochs: constant, linear, cosine or up_down.

    Raises:
        InputError: an option is not valid, the student has no predictions, or no class is shared.
    """

    paper = "none; soft pseudo-labels"
    reads = ("detections", *FIELDS)
    reads_boxes_only = True

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        class_weight: float = 1.0,
        box_weight: float = 2.0,
        least_score: float = 0.1,
        iou_threshold: float = 0.5,
        unconfirmed: Literal["drop", "keep"] = "keep",
        warmup: float = 0.0,
        decay: str = "constant",
    ) -> None:
        super().__init__(student, teacher)
        self.weights = checked_weights(class_weight=class_weight, box_weight=box_weight)
        self.schedule = Schedule(decay, warmup)
        for name, value in (("least_score", least_score), ("iou_threshold", iou_threshold)):
            if not 0 <= value <= 1:
                raise InputError(f"{name} must be between 0 and 1, not {value}.")
        if unconfirmed not in CHOICES:
            raise unknown_name("choice of unconfirmed", unconfirmed, CHOICES)
        self.least_score, self.iou_threshold, self.unconfirmed = least_score, iou_threshold, unconfirmed
        self.field = next((name for name in FIELDS if name in student.offers), None)
        if self.field is None:
            raise InputError("boxes needs a student with proposals, queries or anchors.")
        if not self.classes.pairs:
            raise InputError("boxes needs a class that both detectors know: pair classes with --class-map.")

    @property
    def needs(self) -> frozenset[str]:
        """The teacher's detections, unless both weights are zero."""
        return frozenset({"detections"} if any(self.weights.values()) else ())

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute `head_class` and `head_box`, those with a weight above zero."""
        if not self.needs:
            return {}
        assert teacher.detections is not None
        logits, boxes, scores, goals = [], [], [], []
        for image, (detections, predictions, target) in enumerate(
            zip(teacher.detections, self._predictions(student), targets, strict=True)
        ):
            known = self.classes.detections(detections)
            (every,) = rescale_boxes([known.boxes.float()], 1 / teacher.scale, 1 / teacher.stretch)
            kept = (known.scores >= self.least_score) & self._usable(every, known.labels, target)
            goal = every[kept]
            index, matched = self._match(predictions.boxes, goal)
            label = known.labels[kept][matched]
            logits.append(_class_logit(predictions.logits[index], label, self.student.background == "last"))
            boxes.append(self._decoded(student, image, index, label))
            scores.append(known.scores[kept][matched].float())
            goals.append(goal[matched])
        own, score = torch.cat(logits), torch.cat(scores).clamp(TINY, 1 - TINY)
        count = average_count(torch.tensor(len(score), dtype=torch.float32, device=score.device))
        losses: dict[str, Tensor] = {}
        if self.weights["class_weight"] > 0:
            losses["head_class"] = sigmoid_divergence(own[:, None], score.logit()[:, None], 1.0).sum() / count
        if self.weights["box_weight"] > 0:
            costs = generalized_box_iou_loss(torch.cat(boxes), torch.cat(goals)) * score
            losses["head_box"] = costs.sum() / average_count(score.sum())
        return self.weighted(losses, progress)

    def _usable(self, boxes: Tensor, labels: Tensor, target: Target) -> Tensor:
        """(D,) bool, false for mistakes of the teacher: boxes (D, 4) of classes (D,) where no such object is."""
        if self.unconfirmed == "keep" or not target.annotated:
            return torch.ones_like(labels, dtype=torch.bool)
        of_class = labels[:, None] == target.labels
        confirmed: Tensor = (box_iou(boxes, target.boxes) >= CONFIRMED) & of_class
        return confirmed.any(dim=1)

    def _match(self, boxes: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the matched predictions among (N, 4) boxes, and of the box of the teacher of each."""
        if not len(goals) or not len(boxes):
            nothing = torch.zeros(0, dtype=torch.int64, device=boxes.device)
            return nothing, nothing
        overlaps = box_iou(goals, boxes)  # (D, N)
        best, owner = overlaps.max(dim=0)
        nearest = overlaps.argmax(dim=1)
        owner[nearest] = torch.arange(len(goals), device=boxes.device)
        matched = best >= self.iou_threshold
        matched[nearest] = True
        index = matched.nonzero()[:, 0]
        return index, owner[index]

    def _predictions(self, student: DetectorOutput) -> list[_Predictions]:
        """The student's predictions for each image."""
        if self.field == "proposals":
            assert student.proposals is not None
            counts = [len(boxes) for boxes in student.proposals.boxes]
            logits = student.proposals.logits.float().split(counts)
            return [_Predictions(*pair) for pair in zip(student.proposals.boxes, logits, strict=True)]
        if self.field == "queries":
            assert student.queries is not None
            boxes = student.queries.boxes[-1]
            return [
                _Predictions(*pair) for pair in zip(boxes.detach(), student.queries.logits[-1].float(), strict=True)
            ]
        assert student.dense is not None
        return [_Predictions(*pair) for pair in zip(student.dense.boxes, student.dense.logits.float(), strict=True)]

    def _decoded(self, student: DetectorOutput, image: int, index: Tensor, label: Tensor) -> Tensor:
        """Boxes (P, 4) of predictions of an image, with gradient."""
        if self.field == "proposals":
            assert student.proposals is not None
            before = sum(len(boxes) for boxes in student.proposals.boxes[:image])
            return student.proposals.decode(index + before, label)
        if self.field == "queries":
            assert student.queries is not None
            return student.queries.boxes[-1, image, index]
        assert student.dense is not None
        return student.dense.decode(torch.full_like(index, image), index)


def _class_logit(logits: Tensor, labels: Tensor, softmax: bool) -> Tensor:
    """Logit of the score of a class: (P,), of (P, K) sigmoid logits, or of (P, K+1) softmax logits."""
    own = logits.gather(1, labels[:, None])[:, 0]
    if not softmax:
        return own
    others = logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), float("-inf"))
    return own - others.logsumexp(dim=1)
