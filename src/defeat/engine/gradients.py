"""How hard each term of distillation pulls on the student, beside the detector's own losses."""

from collections.abc import Mapping

import torch
from torch import Tensor

from defeat.types import DetectorOutput


def gradient_ratios(terms: Mapping[str, Tensor], output: DetectorOutput) -> dict[str, float]:
    """The norm of each term's gradient over that of the detector's own losses, both with respect to the neck's maps.

    A term that does not reach the neck, because it is computed from the backbone's maps, is measured there.

    Args:
        terms: losses of distillation by name, with their graph.
        output: what the student gave in the same step, with the graph of its own losses.

    Returns:
        Ratios, 0 or more; a term without any gradient has 0, and all have infinity where the detector has none.
    """
    own = torch.stack([loss.float() for loss in output.losses.values()]).sum()
    everywhere = [*output.neck.values()], [*output.backbone.values()]
    places = [maps for part in everywhere if (maps := [one for one in part if one.requires_grad])]
    own_norms: dict[int, float] = {}
    ratios = {}
    for name, term in terms.items():
        ratios[name] = 0.0
        for number, maps in enumerate(places):
            norm = _norm(term, maps)
            if norm == 0:
                continue
            if number not in own_norms:
                own_norms[number] = _norm(own, maps)
            ratios[name] = norm / own_norms[number] if own_norms[number] > 0 else float("inf")
            break
    return ratios


def _norm(loss: Tensor, maps: list[Tensor]) -> float:
    if not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss, maps, retain_graph=True, allow_unused=True)
    norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0
