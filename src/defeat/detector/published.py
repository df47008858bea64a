"""Differences between the published configurations and torchvision's detectors.

Guo et al. (CVPR 2021) trained with MMDetection 2.0: anchors are not rounded, the box loss is L1, RoIAlign is aligned
with adaptive sampling, one-stage losses are averaged over the batch, and some layers have another initialisation. Each
is an option of its family; the defaults are those of torchvision, which its checkpoints need.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork
from torchvision.ops import FeaturePyramidNetwork, roi_align, sigmoid_focal_loss

from defeat.detector.selection import best_indices

CANONICAL_SIDE = 56.0  # boxes with a side of less than twice this are pooled from the finest level


class ExactAnchors(AnchorGenerator):  # type: ignore[misc] # torchvision has no types
    """Anchors whose corners are not rounded to whole pixels."""

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Anchors (A, 4) around the origin, ordered by ratio (height over width), then scale."""
        side = torch.as_tensor(scales, dtype=dtype, device=device)
        root = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        width, height = (side / root[:, None]).flatten(), (side * root[:, None]).flatten()
        return torch.stack([-width, -height, width, height], dim=1) / 2


class StrideAnchors(ExactAnchors):
    """Anchors at a distance of exactly the stride of their level.

    torchvision infers the distance from the sizes of image and feature map, which gives less on upper levels where the
    image is not a multiple of their stride.

    Args:
        sizes: sides of the anchors in pixels, per level.
        aspect_ratios: height over width, per level.
        strides: of the levels.
        rounded: whether corners are rounded to whole pixels.
    """

    cell_anchors: list[Tensor]

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        rounded: bool = False,
    ) -> None:
        super().__init__(sizes, aspect_ratios)
        self.strides, self.rounded = tuple(strides), rounded
        if rounded:
            self.cell_anchors = [anchors.round() for anchors in self.cell_anchors]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors (N, 4) of all levels, for each image."""
        first = feature_maps[0]
        self.set_cell_anchors(first.dtype, first.device)
        strides = [[torch.tensor(stride, device=first.device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([level.shape[-2:] for level in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


def build_anchors(
    sizes: Sequence[Sequence[float]], strides: Sequence[int], rounded: bool, exact_strides: bool
) -> AnchorGenerator:
    """Build anchors with ratios of height to width of 1/2, 1 and 2.

    Args:
        sizes: sides of the anchors in pixels, per level.
        strides: of the levels.
        rounded: whether corners are rounded to whole pixels.
        exact_strides: whether they are at a distance of exactly the stride, see `StrideAnchors`.
    """
    ratios = ((0.5, 1.0, 2.0),) * len(strides)
    if exact_strides:
        return StrideAnchors(sizes, ratios, strides, rounded)
    return (AnchorGenerator if rounded else ExactAnchors)(sizes, ratios)


class LimitedBoxCoder(BoxCoder):  # type: ignore[misc]
    """Boxes shrink at most by the factor by which they can grow; torchvision limits only the growth."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Decode deltas (R, 4 n), relative to boxes (R, 4)."""
        lowest = [-math.inf, -math.inf, *(-self.bbox_xform_clip * weight for weight in self.weights[2:])]
        limited = rel_codes.unflatten(1, (-1, 4)).maximum(rel_codes.new_tensor(lowest)).flatten(1)
        decoded: Tensor = super().decode_single(limited, boxes)
        return decoded


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """A region proposal network with configurable losses.

    Attributes:
        box_loss: `smooth_l1` (torchvision: squared below 1/9) or `l1`.
        negative_weight: weight of negative anchors in the classification loss, 0 or more.
        annotated: whether each image of the batch is annotated; negative anchors of other images are ignored.
    """

    box_loss = "smooth_l1"
    negative_weight = 1.0
    annotated: Sequence[bool] = ()

    @classmethod
    def of(cls, network: RegionProposalNetwork, box_loss: str) -> "ProposalNetwork":
        """Create it from the parts and settings of torchvision's network."""
        matcher, sampler = network.proposal_matcher, network.fg_bg_sampler
        converted = cls(
            network.anchor_generator,
            network.head,
            matcher.high_threshold,
            matcher.low_threshold,
            sampler.batch_size_per_image,
            sampler.positive_fraction,
            network._pre_nms_top_n,
            network._post_nms_top_n,
            network.nms_thresh,
            network.score_thresh,
        )
        converted.box_loss = box_loss
        return converted

    def _get_top_n_idx(self, objectness: Tensor, num_anchors_per_level: list[int]) -> Tensor:
        """Indices (B, n) of the anchors of each level with the largest objectness (B, N)."""
        if self.training:  # the order of equal values does not matter
            indices: Tensor = super()._get_top_n_idx(objectness, num_anchors_per_level)
            return indices
        levels, starts = objectness.split(num_anchors_per_level, 1), accumulate(num_anchors_per_level, initial=0)
        most = self.pre_nms_top_n()
        return torch.cat(
            [best_indices(level, most) + start for level, start in zip(levels, starts, strict=False)], dim=1
        )

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label anchors 1 (positive), 0 (negative) or -1 (ignored), with the box matched to each."""
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        annotated = self.annotated or [True] * len(labels)
        labels = [
            label if complete else torch.where(label == 0, -1.0, label)
            for label, complete in zip(labels, annotated, strict=True)
        ]
        return labels, boxes

    def compute_loss(
        self, objectness: Tensor, deltas: Tensor, labels: list[Tensor], targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Compute the losses of objectness and boxes over the sampled anchors of all images."""
        if not any(self.annotated or [True]) and not any(bool((label > 0).any()) for label in labels):
            return 0 * objectness.sum(), 0 * deltas.sum()  # all anchors are ignored
        if self.box_loss == "smooth_l1" and self.negative_weight == 1:
            losses: tuple[Tensor, Tensor] = super().compute_loss(objectness, deltas, labels, targets)
            return losses
        positive, negative = (torch.where(torch.cat(masks))[0] for masks in self.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        label = torch.cat(labels)[sampled]
        costs = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], label, reduction="none")
        weights = torch.where(label > 0, 1.0, self.negative_weight)
        box = box_cost(deltas[positive], torch.cat(targets)[positive], self.box_loss) / max(1, len(sampled))
        return weighted_mean(costs, weights), box


class AlignedPooling(nn.Module):
    """Aligned RoIAlign; the level of each box depends on its size.

    Args:
        strides: strides of the levels, ascending from 4 by factors of 2; coarser levels are not used.
        output_size: height and width of the output.
        sampling_ratio: sampling points per cell in each direction; 0 for adaptive.
    """

    def __init__(self, strides: Sequence[int], output_size: int, sampling_ratio: int) -> None:
        super().__init__()
        self.strides, self.output_size, self.sampling_ratio = tuple(strides), output_size, sampling_ratio

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Pool boxes (one (R_i, 4) tensor per image, pixels of the batch): (R, C, output_size, output_size)."""
        levels = list(features.values())[: len(self.strides)]
        image = torch.repeat_interleave(
            torch.tensor([len(image_boxes) for image_boxes in boxes], device=levels[0].device)
        )
        corners = torch.cat(boxes)
        regions = torch.cat([image[:, None].to(corners.dtype), corners], dim=1)  # (R, 5)
        side = (corners[:, 2:] - corners[:, :2]).prod(dim=1).clamp(min=0).sqrt()
        level = torch.floor(torch.log2(side / CANONICAL_SIDE + 1e-6)).clamp(0, len(levels) - 1)
        pooled = levels[0].new_zeros(len(corners), levels[0].shape[1], self.output_size, self.output_size)
        for index, (features_of_level, stride) in enumerate(zip(levels, self.strides, strict=True)):
            rows = torch.where(level == index)[0]
            options = (self.output_size, 1 / stride, self.sampling_ratio, True)
            pooled[rows] = roi_align(features_of_level, regions[rows].to(features_of_level.dtype), *options).to(pooled)
        return pooled


def second_stage_loss(
    logits: Tensor,
    deltas: Tensor,
    labels: list[Tensor],
    targets: list[Tensor],
    box_loss: str = "smooth_l1",
    negative_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Compute classification and box loss of the second stage.

    Args:
        logits: (R, 1+K), background first.
        deltas: (R, 4 (1+K)).
        labels: 0 for background, one (R_i,) tensor per image.
        targets: target deltas, one (R_i, 4) tensor per image.
        box_loss: `smooth_l1` (torchvision: squared below 1/9) or `l1`.
        negative_weight: weight of background proposals in the classification loss, 0 or more.
    """
    if not len(logits):  # no image of the batch is annotated
        return 0 * logits.sum(), 0 * deltas.sum()
    if box_loss == "smooth_l1" and negative_weight == 1:
        losses: tuple[Tensor, Tensor] = fastrcnn_loss(logits, deltas, labels, targets)
        return losses
    label = torch.cat(labels)
    positive = torch.where(label > 0)[0]
    weights = torch.where(label > 0, 1.0, negative_weight)
    classification = weighted_mean(F.cross_entropy(logits, label, reduction="none"), weights)
    predicted = deltas.unflatten(1, (-1, 4))[positive, label[positive]]
    return classification, box_cost(predicted, torch.cat(targets)[positive], box_loss) / max(1, len(label))


def one_stage_loss(
    logits: Tensor,
    deltas: Tensor,
    targets: Sequence[dict[str, Tensor]],
    anchors: Sequence[Tensor],
    matched: Sequence[Tensor],
    coder: BoxCoder,
    average: str = "image",
    negative_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Compute the focal loss of classes and the L1 loss of boxes over all anchors.

    Args:
        logits: (B, N, K).
        deltas: (B, N, 4).
        targets: boxes and labels per image.
        anchors: B times (N, 4).
        matched: B times (N,), index of the object matched to each anchor, -1 for background, -2 for ignored.
        coder: encodes boxes as deltas.
        average: over the positive anchors of each `image`, then over images (torchvision), or of the whole `batch`.
        negative_weight: weight of negative anchors in the classification loss, 0 or more.
    """
    classes, boxes, counts = [], [], []
    for image, (target, index) in enumerate(zip(targets, matched, strict=True)):
        positive = torch.where(index >= 0)[0]
        one_hot = torch.zeros_like(logits[image])
        one_hot[positive, target["labels"][index[positive]]] = 1
        costs = sigmoid_focal_loss(logits[image], one_hot, reduction="none").sum(dim=1)  # (N,)
        weights = torch.where(index >= 0, 1.0, negative_weight) * (index != Matcher.BETWEEN_THRESHOLDS)
        classes.append((costs * weights).sum())
        target_deltas = coder.encode_single(target["boxes"][index[positive]], anchors[image][positive])
        boxes.append(F.l1_loss(deltas[image][positive], target_deltas, reduction="sum"))
        counts.append(len(positive))
    if average == "batch":
        count = max(1, sum(counts))
        return torch.stack(classes).sum() / count, torch.stack(boxes).sum() / count
    per_image = torch.tensor(counts, device=logits.device).clamp(min=1)
    return (torch.stack(classes) / per_image).mean(), (torch.stack(boxes) / per_image).mean()


def box_cost(predicted: Tensor, target: Tensor, box_loss: str) -> Tensor:
    """Sum of the box loss over (P, 4) deltas."""
    if box_loss == "l1":
        return F.l1_loss(predicted, target, reduction="sum")
    return F.smooth_l1_loss(predicted, target, beta=1 / 9, reduction="sum")


def weighted_mean(costs: Tensor, weights: Tensor) -> Tensor:
    """Sum of weighted costs, over the number of weights above zero (at least one)."""
    return (costs * weights).sum() / (weights > 0).sum().clamp(min=1)


def initialise_pyramid(fpn: FeaturePyramidNetwork) -> None:
    """Initialise the convolutions of a pyramid as published (Xavier, uniform)."""
    for layer in fpn.modules():
        if isinstance(layer, nn.Conv2d):
            _xavier(layer)


def initialise_convolutions(module: nn.Module) -> None:
    """Initialise convolutions so that the signal keeps its size behind a ReLU (He et al., ICCV 2015).

    With a deviation of 0.01, torchvision's and the published one for 256 channels, it becomes a third behind each 3 x 3
    convolution of 256 channels, and a sixth with 64, and so does the gradient.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


def initialise_second_stage(head: nn.Module, predictor: Any) -> None:
    """Initialise the linear layers of the second stage as published."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            _xavier(layer)
    for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)


def _xavier(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
