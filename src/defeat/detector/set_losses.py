"""Losses of detectors with object queries: those of transformers, where parts of an image may have no annotation."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

NO_SCORE = -1e4  # class logit of a query that has no loss: its score and its gradient are zero
# Names of our losses by the first part of the names of transformers; the sum over all layers is one loss.
NAMES = {
    "loss_vfl": "classification",
    "loss_mal": "classification",
    "loss_bbox": "box",
    "loss_giou": "giou",
    "loss_fgl": "corners",
    "loss_ddf": "corner_distillation",
}
DENOISING = "denoising"

Labels = list[dict[str, Tensor]]


class SetLosses:
    """Losses of all layers of a decoder, with the assignment of queries to objects that the model was published with.

    Args:
        config: configuration of the model.
        function: its loss function.
    """

    def __init__(self, config: Any, function: Any) -> None:
        self.config, self.function = config, function
        # The same class in all models of the RT-DETR line.
        self.matcher = import_module("transformers.loss.loss_rt_detr").RTDetrHungarianMatcher(config)

    def __call__(
        self, output: Any, labels: Labels, annotated: Sequence[bool], negative_weight: float = 1.0
    ) -> dict[str, Tensor]:
        """Compute the losses, weighted as in the configuration, each summed over the layers.

        Args:
            output: output of the model's decoder in training.
            labels: classes (G,) and boxes (G, 4), centre and size relative to the batch's tensor, per image.
            annotated: whether all objects of an image are annotated. If not, queries without an object have no loss,
                and neither has an image without an object.
            negative_weight: weight of queries without an object in the classification loss; the queries of denoising
                are not affected.
        """
        kept = [row for row, of_image in enumerate(labels) if annotated[row] or len(of_image["class_labels"])]
        if not kept:
            return self._zeros(output)
        output = _Selected(output, kept)
        labels = [labels[row] for row in kept]
        ignoring = torch.tensor([not annotated[row] for row in kept])
        losses = self._losses(output, labels, ignoring)
        if negative_weight != 1:
            positive = self._losses(output, labels, torch.ones_like(ignoring))["classification"]
            negative = losses["classification"] - positive
            losses["classification"] = positive + negative_weight * negative
        return losses

    def _losses(self, output: "_Selected", labels: Labels, ignoring: Tensor) -> dict[str, Tensor]:
        logits, encoder_logits = output.logits, output.encoder_logits
        if bool(ignoring.any()):
            logits, encoder_logits = self._without_negatives(output, labels, ignoring)
        _, terms, _ = self.function(
            logits[:, -1],
            labels,
            logits.device,
            output.boxes[:, -1],
            self.config,
            logits,
            output.boxes,
            enc_topk_logits=encoder_logits,
            enc_topk_bboxes=output.encoder_boxes,
            denoising_meta_values=output.denoising,
            predicted_corners=output.corners,
            initial_reference_points=output.reference_points,
        )
        losses: dict[str, Tensor] = {}
        for name, term in terms.items():
            kind = DENOISING if "_dn_" in name else NAMES["_".join(name.split("_")[:2])]
            losses[kind] = losses[kind] + term if kind in losses else term
        if self.config.num_denoising and DENOISING not in losses:
            losses[DENOISING] = 0 * logits.sum()
        return losses

    def _without_negatives(self, output: "_Selected", labels: Labels, ignoring: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits of decoder and encoder, without a score where a query has no object.

        A lower score never makes a query a better match, so the assignment stays the same.
        """
        count = output.encoder_logits.shape[1]
        prefix, queries = output.logits[:, :, :-count], output.logits[:, :, -count:]
        layers = [
            self._masked(layer, boxes, labels, ignoring)
            for layer, boxes in zip(queries.unbind(1), output.boxes[:, :, -count:].unbind(1), strict=True)
        ]
        masked = torch.cat([prefix, torch.stack(layers, dim=1)], dim=2)
        return masked, self._masked(output.encoder_logits, output.encoder_boxes, labels, ignoring)

    def _masked(self, logits: Tensor, boxes: Tensor, labels: Labels, ignoring: Tensor) -> Tensor:
        """(B, Q, K) logits without a score for queries without an object in these images."""
        matches = self.matcher({"logits": logits, "pred_boxes": boxes.clamp(0, 1)}, labels)
        keep = ~ignoring[:, None].repeat(1, logits.shape[1])  # (B, Q)
        for row, (queries, _) in enumerate(matches):
            keep[row, queries] = True
        return torch.where(keep.to(logits.device)[..., None], logits, NO_SCORE)

    def _zeros(self, output: Any) -> dict[str, Tensor]:
        zero = sum(0 * tensor.sum() for tensor in _tensors(output))
        assert isinstance(zero, Tensor)
        names = ["classification", "box", "giou"] + [DENOISING] * bool(self.config.num_denoising)
        return dict.fromkeys(names, zero)


class _Selected:
    """The parts of a decoder's output that the losses read, for some images of the batch.

    Args:
        output: output of the model.
        rows: indices of the images.
    """

    def __init__(self, output: Any, rows: list[int]) -> None:
        everything = len(rows) == len(output.intermediate_logits)

        def select(tensor: Tensor | None) -> Any:
            return tensor if tensor is None or everything else tensor[rows]

        self.logits: Tensor = select(output.intermediate_logits)  # (B, L, Q, K), denoising queries first
        self.boxes: Tensor = select(output.intermediate_reference_points)  # (B, L, Q, 4)
        self.corners = select(_tensor(output.intermediate_predicted_corners))
        self.reference_points = select(_tensor(output.initial_reference_points))
        self.encoder_logits: Tensor = select(output.enc_topk_logits)  # (B, Q, K)
        self.encoder_boxes: Tensor = select(output.enc_topk_bboxes)  # (B, Q, 4)
        self.denoising = output.denoising_meta_values
        if self.denoising is not None:
            positive = self.denoising["dn_positive_idx"]
            self.denoising = self.denoising | {"dn_positive_idx": [positive[row] for row in rows]}


def _tensor(value: Any) -> Tensor | None:
    """A tensor; None for the empty tuple of models without it."""
    return value if isinstance(value, Tensor) else None


def _tensors(output: Any) -> list[Tensor]:
    fields = ("intermediate_logits", "intermediate_reference_points", "enc_topk_logits", "enc_topk_bboxes")
    return [getattr(output, name) for name in fields]
