"""How hard the terms of distillation pull on the student, beside the detector's own losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defeat.types import DetectorOutput


@dataclass(frozen=True)
class Pulls:
    """Norms of gradients over that of the detector's own losses, 0 or more.

    Attributes:
        terms: of each term by name; 0 for a term without any gradient, infinity where the detector has none.
        together: of all terms together, which is less than the sum where they pull in different directions.
    """

    terms: dict[str, float]
    together: float


def measure_pulls(terms: Mapping[str, Tensor], output: DetectorOutput) -> Pulls:
    """Compare gradients with respect to the student's neck maps.

    A term that does not reach the neck, because it is computed from the backbone's maps, is measured there, against the
    gradient that the detector's own losses have there; what it pulls is added to what the others pull together.

    Args:
        terms: losses of distillation by name, with their graph.
        output: what the student gave in the same step, with the graph of its own losses.
    """
    own = torch.stack([loss.float() for loss in output.losses.values()]).sum()
    everywhere = [*output.neck.values()], [*output.backbone.values()]
    places = [maps for part in everywhere if (maps := [one for one in part if one.requires_grad])]
    left, ratios, together = dict(terms), dict.fromkeys(terms, 0.0), 0.0
    for maps in places:
        gradients = {name: gradient for name, term in left.items() if _norm(gradient := _gradient(term, maps)) > 0}
        if not gradients:
            continue
        own_norm = _norm(_gradient(own, maps))
        for name, gradient in gradients.items():
            ratios[name] = _ratio(_norm(gradient), own_norm)
            del left[name]
        together += _ratio(
            _norm([torch.stack(level).sum(dim=0) for level in zip(*gradients.values(), strict=True)]), own_norm
        )
    return Pulls(ratios, together)


def _gradient(loss: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Of each map, zero where the loss does not depend on it."""
    if not loss.requires_grad:
        return [torch.zeros_like(one, dtype=torch.float32) for one in maps]
    found = torch.autograd.grad(loss, maps, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(one) if grad is None else grad.float() for one, grad in zip(maps, found, strict=True)]


def _norm(gradient: Sequence[Tensor]) -> float:
    return float(torch.stack([one.norm() for one in gradient]).norm())


def _ratio(norm: float, own: float) -> float:
    return norm / own if own > 0 else float("inf") if norm > 0 else 0.0
