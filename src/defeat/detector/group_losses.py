"""Losses of LW-DETR (Chen et al., 2024, arXiv 2406.03459), for groups of queries, also where annotations are missing.

Written anew, because those of transformers are not finite where a score is exactly 0 or 1, and wait for all processes,
which images without annotations would keep from arriving.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from defeat.detector.lw_detr_models import GroupedPredictions
from defeat.detector.statistics import paired_iou

FOCUS = 2.0  # exponent of the score in the loss of negatives
LEAST_QUALITY = 0.01  # lower limit of the target of a query's class

Labels = Sequence[dict[str, Tensor]]
Matches = list[tuple[Tensor, Tensor]]  # queries and objects of each image


class GroupLosses:
    """Losses of the decoder's layers and of the cells where queries begin; each group of queries learns all objects.

    In each group, queries are assigned to objects one to one, with the least total cost. The classification loss is the
    IoU-aware binary cross entropy (Align-DETR: Cai et al., arXiv 2304.07527): the target of an object's class is
    t = s^alpha * u^(1 - alpha), of the score s and the IoU u of its query, and all other classes and queries have the
    loss -s^2 log(1 - s). Boxes have the L1 loss of centre and size, relative to the image, and the generalised IoU
    loss. All are divided by the number of objects in the batch (of each process) times that of groups.

    Args:
        config: configuration of the model, with the costs of the assignment and the weights of the losses.
    """

    def __init__(self, config: Any) -> None:
        self.alpha = float(config.focal_alpha)
        self.costs = (float(config.class_cost), float(config.bbox_cost), float(config.giou_cost))
        self.weights = {
            "classification": float(config.class_loss_coefficient),
            "box": float(config.bbox_loss_coefficient),
            "giou": float(config.giou_loss_coefficient),
        }
        self.every_layer = bool(config.auxiliary_loss)

    def __call__(
        self, output: GroupedPredictions, labels: Labels, annotated: Sequence[bool], negative_weight: float = 1.0
    ) -> dict[str, Tensor]:
        """Compute `classification`, `box` and `giou`, weighted, each summed over the layers and the cells.

        Args:
            output: predictions in training.
            labels: classes (G,) and boxes (G, 4), centre and size relative to the batch's tensor, per image.
            annotated: whether all objects of an image are annotated. If not, queries without an object have no loss.
            negative_weight: weight of queries without an object in the classification loss.
        """
        weights = output.logits.new_tensor([negative_weight * whole for whole in annotated])  # (B,)
        count = max(1, sum(len(of_image["boxes"]) for of_image in labels) * output.groups)
        layers = list(zip(output.logits.unbind(1), output.boxes.unbind(1), strict=True))
        predictions = [*(layers if self.every_layer else layers[-1:]), (output.first_logits, output.first_boxes)]
        losses = [self._losses(*of_layer, labels, weights, output.groups) for of_layer in predictions]
        return {
            name: weight * torch.stack([of_layer[name] for of_layer in losses]).sum() / count
            for name, weight in self.weights.items()
        }

    def _losses(self, logits: Tensor, boxes: Tensor, labels: Labels, weights: Tensor, groups: int) -> dict[str, Tensor]:
        """Sums over the batch for class logits (B, Q, K) and boxes (B, Q, 4)."""
        matches = self._assigned(logits.detach(), boxes.detach(), labels, groups)
        rows = torch.cat([torch.full_like(queries, row) for row, (queries, _) in enumerate(matches)])  # (M,)
        queries = torch.cat([of_image for of_image, _ in matches])
        pairs = [(of_image, objects) for of_image, (_, objects) in zip(labels, matches, strict=True)]
        classes = torch.cat([of_image["class_labels"][objects] for of_image, objects in pairs])
        targets = torch.cat([of_image["boxes"][objects] for of_image, objects in pairs])  # (M, 4)
        matched = boxes[rows, queries]
        corners, target_corners = (box_convert(side, "cxcywh", "xyxy") for side in (matched, targets))
        overlaps = paired_iou(corners.detach(), target_corners)
        quality = logits.detach()[rows, queries, classes].sigmoid() ** self.alpha * overlaps ** (1 - self.alpha)
        quality = quality.clamp(min=LEAST_QUALITY)
        entries = logits.sigmoid() ** FOCUS * F.softplus(logits)  # (B, Q, K), as if there were no objects
        positive = logits[rows, queries, classes]
        entries = entries.index_put((rows, queries, classes), F.softplus(positive) - quality * positive)
        of_query = weights[:, None].repeat(1, logits.shape[1])  # (B, Q)
        of_query[rows, queries] = 1.0
        return {
            "classification": (entries.sum(dim=-1) * of_query).sum(),
            "box": F.l1_loss(matched, targets, reduction="sum"),
            "giou": generalized_box_iou_loss(corners, target_corners, reduction="sum"),
        }

    @torch.no_grad()
    def _assigned(self, logits: Tensor, boxes: Tensor, labels: Labels, groups: int) -> Matches:
        """The queries and objects of each image that belong together, in all groups."""
        from scipy.optimize import linear_sum_assignment

        costs = [self._cost(*of_image) for of_image in zip(logits, boxes, labels, strict=True)]
        on_cpu = torch.cat(costs, dim=1).cpu().split([cost.shape[1] for cost in costs], dim=1)
        size, matches = logits.shape[1] // groups, []
        for cost in on_cpu:
            pairs = [linear_sum_assignment(of_group.numpy()) for of_group in cost.split(size)]
            queries = [torch.as_tensor(pair[0]) + size * group for group, pair in enumerate(pairs)]
            objects = [torch.as_tensor(pair[1]) for pair in pairs]
            matches.append((torch.cat(queries).to(logits.device), torch.cat(objects).to(logits.device)))
        return matches

    def _cost(self, logits: Tensor, boxes: Tensor, labels: dict[str, Tensor]) -> Tensor:
        """Cost (Q, G) of a query for each object of an image: the focal loss, L1 distance and generalised IoU."""
        scores = logits.sigmoid()[:, labels["class_labels"]]
        positive = 0.25 * (1 - scores) ** 2 * -(scores + 1e-8).log()
        negative = 0.75 * scores**2 * -(1 - scores + 1e-8).log()
        distance = torch.cdist(boxes, labels["boxes"], p=1)
        corners = [box_convert(side, "cxcywh", "xyxy") for side in (boxes, labels["boxes"])]
        of_class, of_box, of_giou = self.costs
        cost = of_class * (positive - negative) + of_box * distance - of_giou * generalized_box_iou(*corners)
        return torch.nan_to_num(cost, nan=1e9, posinf=1e9, neginf=1e9)  # taken only where nothing else is left
