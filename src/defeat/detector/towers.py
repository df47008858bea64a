"""Towers: the branches of a dense head, in which convolutions precede the one that predicts.

A head has the branches `classification_head` and `regression_head`, as in torchvision, each with its tower `conv`.
"""

from collections.abc import Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

from torch import Tensor, nn

BRANCHES = {"classes": "classification_head", "boxes": "regression_head"}


ByStride = dict[int, Tensor]


def run_recorded(head: nn.Module, maps: ByStride) -> tuple[dict[str, Tensor], dict[str, ByStride]]:
    """Run a head on feature maps (B, C, H, W) by stride.

    Returns:
        The predictions of the head, and the maps before the last convolution of its towers, `classes` and `boxes`.
    """
    recorded: dict[str, list[Tensor]] = {name: [] for name in BRANCHES}
    handles = []
    for name, branch in BRANCHES.items():
        tower: Any = head.get_submodule(branch).conv
        layer = tower[_last_convolution(tower) - 1]
        handles.append(layer.register_forward_hook(_recorder(recorded[name])))
    try:
        outputs = head(list(maps.values()))
    finally:
        for handle in handles:
            handle.remove()
    return outputs, {name: dict(zip(maps, levels, strict=True)) for name, levels in recorded.items()}


def rest_of(head: nn.Module) -> Any:
    """A head that begins with the last convolution of each tower; it shares the weights of the given one."""
    shared = {id(weight): weight for weight in chain(head.parameters(), head.buffers())}
    rest = deepcopy(head, shared)
    for branch in BRANCHES.values():
        part: Any = rest.get_submodule(branch)
        part.conv = part.conv[_last_convolution(part.conv) :]
    return rest


def _recorder(maps: list[Tensor]) -> Any:
    def record(module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
        maps.append(output)

    return record


def _last_convolution(tower: nn.Sequential) -> int:
    """Index of the last layer of a tower that is, or contains, a convolution."""
    return max(
        index for index, layer in enumerate(tower) if any(isinstance(part, nn.Conv2d) for part in layer.modules())
    )
