"""The outputs of a network before detections are selected, and the selection that most families share.

Letters of shapes: B images, n candidates (anchors or points) of a level, N of all levels, K classes, D detections.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import _topk_min
from torchvision.ops import boxes as box_ops
from torchvision.ops import clip_boxes_to_image

from defeat.types import Detections

# Outputs of a network for a batch, by name. `scores_8` (B, n, K) in 0..1 and `boxes_8` (B, n, 4) in pixels of the batch
# are those of the candidates at stride 8; `factors_8` (B, n) in 0..1, where a family has them, multiply the scores.
Raw = dict[str, Tensor]
SCORES, BOXES, FACTORS = "scores", "boxes", "factors"


def best_indices(values: Tensor, most: int) -> Tensor:
    """Indices of the largest values along the last dimension, in descending order, equal ones in the order of indices.

    ONNX defines this order; `torch.topk` may take any of several equal values, so that an exported file would differ.

    Args:
        values: (.., n).
        most: maximum number of indices.
    """
    count = _topk_min(values, most, -1)
    if torch.onnx.is_in_onnx_export():
        return values.topk(count).indices
    return values.sort(descending=True, stable=True).indices[..., :count]


@dataclass(frozen=True)
class Selection:
    """How the detections of an image are selected from its candidates.

    Attributes:
        score_thresh: candidates with a lower score are dropped, 0..1.
        detections_per_img: maximum number of detections.
        nms_thresh: IoU threshold of non-maximum suppression per class, 0..1; None where a network needs none.
        topk_candidates: maximum number of candidates before non-maximum suppression, per level; None for all.
    """

    score_thresh: float
    detections_per_img: int
    nms_thresh: float | None = None
    topk_candidates: int | None = None

    @classmethod
    def of(cls, options: object) -> "Selection":
        """From the options of a family, which have the same names."""
        names = ("score_thresh", "detections_per_img", "nms_thresh", "topk_candidates")
        return cls(**{name: getattr(options, name) for name in names})

    def select(self, scores: Tensor, boxes: Tensor, size: tuple[int, int], factors: Tensor | None = None) -> Detections:
        """Select from the candidates of one level, or of all levels where each can have as many as the others.

        Args:
            scores: (n, K) in 0..1.
            boxes: (n, 4), pixels of the batch.
            size: valid height and width of the image.
            factors: (n,) in 0..1, with which scores are multiplied after threshold and choice of candidates.
        """
        return self.select_levels([(scores, boxes, factors)], size)

    def select_levels(
        self, levels: Sequence[tuple[Tensor, Tensor, Tensor | None]], size: tuple[int, int]
    ) -> Detections:
        """Select from the candidates of an image: threshold, the best of each level, non-maximum suppression per class.

        Args:
            levels: scores, boxes and factors of each level, see `select`.
            size: valid height and width of the image.
        """
        chosen = [self._candidates(*level) for level in levels]
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        boxes = clip_boxes_to_image(boxes, size)
        if self.nms_thresh is None:
            keep = best_indices(scores, self.detections_per_img)
        else:
            keep = box_ops.batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
        return Detections(boxes[keep], scores[keep], labels[keep])

    def _candidates(self, scores: Tensor, boxes: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of a level's best candidates."""
        classes, flat = scores.shape[1], scores.flatten()
        index = torch.where(flat > self.score_thresh)[0]
        if self.topk_candidates is not None:
            index = index[best_indices(flat[index], self.topk_candidates)]
        point, labels = torch.div(index, classes, rounding_mode="floor"), index % classes
        best = flat[index]
        return boxes[point], best if factors is None else best * factors[point], labels


def by_level(strides: Sequence[int], **parts: Sequence[Tensor]) -> Raw:
    """Name the parts of each level, such as `scores_8`, `scores_16` for `scores`."""
    return {
        f"{name}_{stride}": tensor
        for name, tensors in parts.items()
        for stride, tensor in zip(strides, tensors, strict=True)
    }


def select_dense(raw: Raw, sizes: Sequence[tuple[int, int]], selection: Selection) -> list[Detections]:
    """Select the detections of a batch from candidates by level, in pixels of the batch.

    Args:
        raw: `scores_S`, `boxes_S` and, if there are any, `factors_S` of each stride S.
        sizes: valid height and width of each image.
        selection: how to select.
    """
    levels = _levels(raw)
    return [
        selection.select_levels(
            [(scores[row], boxes[row], None if factors is None else factors[row]) for scores, boxes, factors in levels],
            size,
        )
        for row, size in enumerate(sizes)
    ]


def dense_candidates(raw: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes (B, N, 4) in pixels of the batch and scores (B, N, K) of the candidates of all levels."""
    levels = _levels(raw)
    scores = [level if factors is None else level * factors[..., None] for level, _, factors in levels]
    return torch.cat([boxes for _, boxes, _ in levels], dim=1), torch.cat(scores, dim=1)


def _levels(raw: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Scores, boxes and factors of each level, in the order of `by_level`."""
    strides = [name.removeprefix(f"{SCORES}_") for name in raw if name.startswith(f"{SCORES}_")]
    return [(raw[f"{SCORES}_{s}"], raw[f"{BOXES}_{s}"], raw.get(f"{FACTORS}_{s}")) for s in strides]
