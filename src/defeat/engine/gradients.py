"""Ratios of the gradients of the distillation terms to those of the detector's own losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defeat.types import DetectorOutput

HALF_SCALE = 2.0**12  # half precision covers 6e-8 to 65504; gradients at a neck map are around 1e-9 to 1e-2


@dataclass(frozen=True)
class GradientRatios:
    """Gradient norms divided by that of the detector's own losses, 0 or more.

    Attributes:
        terms: ratio of each term by name; 0 for a term without gradient, infinity where the detector has none.
        together: ratio of the sum of all terms, which is less than the sum of the ratios for different directions.
    """

    terms: dict[str, float]
    together: float


def measure_gradient_ratios(terms: Mapping[str, Tensor], output: DetectorOutput) -> GradientRatios:
    """Compare gradients with respect to the student's neck maps.

    A term without gradient at the neck, because it is computed from the backbone's maps, is measured at the backbone,
    relative to the gradient of the detector's own losses there; its ratio is added to that of the other terms together.

    Args:
        terms: distillation losses by name, with their graph.
        output: output of the student in the same step, with the graph of its own losses.
    """
    detector_loss = torch.stack([loss.float() for loss in output.losses.values()]).sum()
    parts = (output.neck, output.backbone)
    map_lists = [maps for part in parts if (maps := [level for level in part.values() if level.requires_grad])]
    remaining, ratios, together = dict(terms), dict.fromkeys(terms, 0.0), 0.0
    for maps in map_lists:
        gradients = {name: grads for name, term in remaining.items() if _norm(grads := _gradients(term, maps)) > 0}
        if not gradients:
            continue
        detector_norm = _norm(_gradients(detector_loss, maps))
        for name, grads in gradients.items():
            ratios[name] = _ratio(_norm(grads), detector_norm)
            del remaining[name]
        total = [torch.stack(level).sum(dim=0) for level in zip(*gradients.values(), strict=True)]
        together += _ratio(_norm(total), detector_norm)
    return GradientRatios(ratios, together)


def gradient(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient of a loss with respect to each input, in float32; None where the loss does not depend on it.

    The graph is retained. If an input is in half precision, where small gradients would underflow, the loss is scaled
    up temporarily.
    """
    if not loss.requires_grad:
        return [None] * len(inputs)
    scale = HALF_SCALE if any(tensor.dtype == torch.float16 for tensor in inputs) else 1.0
    gradients = torch.autograd.grad(loss * scale, inputs, retain_graph=True, allow_unused=True)
    return [None if grad is None else grad.float() / scale for grad in gradients]


def _gradients(loss: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """`gradient`, with zeros where the loss does not depend on a map."""
    pairs = zip(maps, gradient(loss, maps), strict=True)
    return [torch.zeros_like(level, dtype=torch.float32) if grad is None else grad for level, grad in pairs]


def _norm(gradients: Sequence[Tensor]) -> float:
    return float(torch.stack([grad.norm() for grad in gradients]).norm())


def _ratio(norm: float, detector_norm: float) -> float:
    return norm / detector_norm if detector_norm > 0 else float("inf") if norm > 0 else 0.0
