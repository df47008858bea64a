"""Distillation of object queries, between detection transformers (DETRDistill: Chang et al., ICCV 2023)."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss

from defeat.distillation.base import Method, checked_weights
from defeat.distillation.classification import comparable_field
from defeat.distillation.losses import balanced_cross_entropy, sigmoid_divergence
from defeat.distillation.processes import average_count
from defeat.distillation.schedule import Schedule
from defeat.errors import InputError, missing_package, unknown_name
from defeat.types import DetectorInfo, DetectorOutput, Progress, Queries, Target

LAYERS = ("all", "last")
CLASS_COST, BOX_COST, GIOU_COST = 2.0, 5.0, 2.0  # of the assignment, as for objects in the detectors' own losses


class DETR(Method):
    """The student's queries follow the teacher's, as they follow the annotated objects in its own losses.

    The teacher's best queries of an image are assigned to the student's, one to one, with the least total cost: the
    cross entropy of classes, the L1 distance and the generalised IoU of boxes, weighted 2, 5 and 2. Each
    pair adds the divergence of its classes, which are soft targets, and the L1 distance (centre and size, relative to
    the image) and 1 - GIoU of its boxes, times the teacher's confidence, its highest class score: queries on the
    background, whose boxes mean nothing, count for little. The sum is divided by the sum of the confidences in the
    batch, and summed over the student's layers, each paired with the teacher's at the same fraction of its depth. No
    annotation is used, so that images without annotations teach as much as others.

    On the encoder's cells, the class scores are compared by the cross entropy weighted by the distance of the scores
    (BCKD: Yang et al., ICCV 2023), summed over the cells inside the images, with the same kind of divisor.

    The classes are the shared ones (see `ClassMap`). Of DETRDistill, this is the distillation of predictions, with the
    confidence in place of its separate terms for objects and background; its terms on features, and its decoder pass
    with the teacher's queries, are not implemented.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        class_weight: weight of the divergence of classes.
        box_weight: weight of the L1 distance of boxes.
        giou_weight: weight of 1 - GIoU of boxes.
        encoder_weight: weight of the class scores of the encoder's cells; left out where the cells differ.
        layers: which layers of the student's decoder learn: all, or last.
        queries: number of the teacher's queries per image that are assigned, those with the highest scores.
        warmup: fraction of the run over which the terms rise linearly from zero, 0..1.
        decay: how the terms change over the epochs: constant, linear, cosine or up_down.

    Raises:
        InputError: an option is not valid, one of the two has no queries, or no class is shared.
    """

    paper = "Chang et al., ICCV 2023, arXiv 2211.10156"
    reads = ("queries", "dense")

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        class_weight: float = 1.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        encoder_weight: float = 1.0,
        layers: str = "all",
        queries: int = 100,
        warmup: float = 0.05,
        decay: str = "constant",
    ) -> None:
        super().__init__(student, teacher)
        self.weights = checked_weights(
            class_weight=class_weight, box_weight=box_weight, giou_weight=giou_weight, encoder_weight=encoder_weight
        )
        if layers not in LAYERS:
            raise unknown_name("choice of layers", layers, LAYERS)
        if queries < 1:
            raise InputError(f"queries must be 1 or more, not {queries}.")
        _require_queries(student, teacher)
        if any(self.weights.values()) and not self.classes.pairs:
            raise InputError("The teacher knows none of the student's classes: pair them with --class-map.")
        self.layers, self.queries = layers, queries
        self.schedule = Schedule(decay, warmup)
        if encoder_weight and comparable_field(student, teacher)[0] != "dense":
            self.weights["encoder_weight"] = 0.0
            self.notes.append("The encoders' cells differ (other strides or size): encoder_weight is left out.")

    @property
    def needs(self) -> frozenset[str]:
        """`queries` and `dense`, as far as a weight is above zero."""
        weights = self.weights
        of_queries = any(weights[name] for name in ("class_weight", "box_weight", "giou_weight"))
        return frozenset(["queries"] * of_queries + ["dense"] * bool(weights["encoder_weight"]))

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute `query_class`, `query_box`, `query_giou` and `encoder_class`."""
        losses: dict[str, Tensor] = {}
        if "queries" in self.needs:
            losses |= self._query_terms(student, teacher)
        if "dense" in self.needs:
            losses["encoder_class"] = self.weights["encoder_weight"] * self._encoder_term(student, teacher)
        return self.schedule.scaled(losses, progress)

    def _query_terms(self, student: DetectorOutput, teacher: DetectorOutput) -> dict[str, Tensor]:
        assert student.queries is not None
        assert teacher.queries is not None
        layers, of_teacher = self._layer_pairs(student.queries, teacher.queries)
        logits = self._shared(student.queries.logits[layers], of_student=True)  # (L, B, Q, K)
        boxes = _relative(student.queries.boxes[layers].float(), student.queries.size)
        # The teacher's batch may be larger, and padded further than the student's.
        height, width = student.queries.size
        size = (height * teacher.scale, width * teacher.scale * teacher.stretch)
        teacher_logits = self._shared(teacher.queries.logits[of_teacher], of_student=False)
        confidence, best = teacher_logits.sigmoid().amax(dim=-1).topk(min(self.queries, teacher_logits.shape[2]), dim=2)
        teacher_logits = _taken(teacher_logits, best)  # (L, B, M, K)
        teacher_boxes = _taken(_relative(teacher.queries.boxes[of_teacher].float(), size), best)
        rows, columns = _assigned(logits.detach(), boxes.detach(), teacher_logits, teacher_boxes)
        logits, boxes = _taken(logits, rows), _taken(boxes, rows)  # (L, B, min(Q, M), ...)
        teacher_logits, teacher_boxes = _taken(teacher_logits, columns), _taken(teacher_boxes, columns)
        confidence = confidence.gather(2, columns)
        divisors = average_count(confidence.sum(dim=(1, 2)))  # (L,)

        def mean(values: Tensor) -> Tensor:
            return ((values * confidence).sum(dim=(1, 2)) / divisors).sum()

        divergence = sigmoid_divergence(logits.flatten(0, 2), teacher_logits.flatten(0, 2), 1.0)
        distance = (_centred(boxes) - _centred(teacher_boxes)).abs().sum(dim=-1)
        overlap = generalized_box_iou_loss(boxes, teacher_boxes)
        values = {"class": divergence.view_as(confidence), "box": distance, "giou": overlap}
        weights = {name: self.weights[f"{name}_weight"] for name in values}
        return {f"query_{name}": weights[name] * mean(value) for name, value in values.items() if weights[name]}

    def _encoder_term(self, student: DetectorOutput, teacher: DetectorOutput) -> Tensor:
        assert student.dense is not None
        assert teacher.dense is not None
        inside = (student.dense.labels >= 0).flatten()
        logits = self._shared(student.dense.logits, of_student=True).flatten(0, 1)[inside]
        teacher_logits = self._shared(teacher.dense.logits, of_student=False).flatten(0, 1)[inside]
        confidence = teacher_logits.sigmoid().amax(dim=1)
        return balanced_cross_entropy(logits, teacher_logits).sum() / average_count(confidence.sum())

    def _layer_pairs(self, student: Queries, teacher: Queries) -> tuple[list[int], list[int]]:
        """Layers of the student, and the teacher's at the same fraction of the depth."""
        count, teacher_count = len(student.logits), len(teacher.logits)
        layers = list(range(count)) if self.layers == "all" else [count - 1]
        return layers, [max(1, round((layer + 1) * teacher_count / count)) - 1 for layer in layers]

    def _shared(self, logits: Tensor, *, of_student: bool) -> Tensor:
        """Logits (..., K) of the shared classes, in float32."""
        flat = logits.float().flatten(0, -2)
        shared = self.classes.student_logits(flat) if of_student else self.classes.teacher_logits(flat)
        unflattened: Tensor = shared.unflatten(0, logits.shape[:-1])
        return unflattened


def _require_queries(student: DetectorInfo, teacher: DetectorInfo) -> None:
    for role, info in (("student", student), ("teacher", teacher)):
        if "queries" not in info.offers:
            raise InputError(
                f"The method detr compares object queries, and the {role}, a {info.family}, has no object queries: "
                "choose two detection transformers, or another method."
            )
    if find_spec("scipy") is None:
        raise missing_package("The method detr", "scipy", "transformers")


def _relative(boxes: Tensor, size: tuple[float, float]) -> Tensor:
    """Boxes (..., 4) in pixels, relative to a size (height, width)."""
    height, width = size
    return boxes / boxes.new_tensor([width, height, width, height])


def _centred(boxes: Tensor) -> Tensor:
    """Centre and size (..., 4) of boxes given by their corners."""
    upper, lower = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(upper + lower) / 2, lower - upper], dim=-1)


def _taken(values: Tensor, index: Tensor) -> Tensor:
    """Entries (L, B, M, C) of values (L, B, Q, C) at an index (L, B, M)."""
    return values.gather(2, index[..., None].expand(*index.shape, values.shape[-1]))


@torch.no_grad()
def _assigned(logits: Tensor, boxes: Tensor, teacher_logits: Tensor, teacher_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Assign queries of student and teacher to each other, one to one, with the least total cost.

    Args:
        logits: (L, B, Q, K) of the student.
        boxes: (L, B, Q, 4) of the student, relative corners.
        teacher_logits: (L, B, M, K).
        teacher_boxes: (L, B, M, 4).

    Returns:
        Indices into Q and into M of the pairs, (L, B, min(Q, M)) each.
    """
    from scipy.optimize import linear_sum_assignment

    scores = teacher_logits.sigmoid()
    # The cross entropy -t log s - (1 - t) log(1 - s), summed over the classes, of each student's with each teacher's.
    classes = F.softplus(logits).sum(dim=-1)[..., None] - logits @ scores.mT  # (L, B, Q, M)
    distances = torch.cdist(_centred(boxes), _centred(teacher_boxes), p=1)
    cost = CLASS_COST * classes + BOX_COST * distances
    flat: Any = cost.flatten(0, 1)
    pairs = zip(boxes.flatten(0, 1), teacher_boxes.flatten(0, 1), strict=True)
    overlaps = torch.stack([generalized_box_iou(own, other) for own, other in pairs])
    flat = torch.nan_to_num(flat - GIOU_COST * overlaps).cpu().numpy()
    indices = [linear_sum_assignment(of_image) for of_image in flat]
    shape = cost.shape[:2]
    rows, columns = (torch.stack([torch.as_tensor(pair[side]) for pair in indices]) for side in (0, 1))
    return rows.unflatten(0, shape).to(logits.device), columns.unflatten(0, shape).to(logits.device)
