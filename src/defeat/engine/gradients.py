"""How hard the terms of distillation pull on the student, beside the detector's own losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defeat.types import DetectorOutput

HALF_SCALE = 2.0**12  # half precision ends at 6e-8 and 65504: gradients at a map of the neck lie around 1e-9 to 1e-2


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
        gradients = {name: pull for name, term in left.items() if _norm(pull := _gradient(term, maps)) > 0}
        if not gradients:
            continue
        own_norm = _norm(_gradient(own, maps))
        for name, pull in gradients.items():
            ratios[name] = _ratio(_norm(pull), own_norm)
            del left[name]
        together += _ratio(
            _norm([torch.stack(level).sum(dim=0) for level in zip(*gradients.values(), strict=True)]), own_norm
        )
    return Pulls(ratios, together)


def gradient(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient of a loss with respect to each input, in float32; None where the loss does not depend on it.

    The graph stays. Where an input is in half precision, in which a small gradient would vanish, the loss is scaled up
    on the way.
    """
    if not loss.requires_grad:
        return [None] * len(inputs)
    scale = HALF_SCALE if any(one.dtype == torch.float16 for one in inputs) else 1.0
    found = torch.autograd.grad(loss * scale, inputs, retain_graph=True, allow_unused=True)
    return [None if one is None else one.float() / scale for one in found]


def _gradient(loss: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Of each map, zero where the loss does not depend on it."""
    found = gradient(loss, maps)
    return [torch.zeros_like(one, dtype=torch.float32) if g is None else g for one, g in zip(maps, found, strict=True)]


def _norm(gradient: Sequence[Tensor]) -> float:
    return float(torch.stack([one.norm() for one in gradient]).norm())


def _ratio(norm: float, own: float) -> float:
    return norm / own if own > 0 else float("inf") if norm > 0 else 0.0
