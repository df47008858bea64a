"""The checkpoint that a stopped run goes on from: a foreign file like any other, looked at before it is trusted."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from defeat.errors import InputError

PARTS = {"state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "loops": dict}


def require_resumable(path: Path, module: nn.Module) -> None:
    """Refuse a checkpoint that is damaged, that holds code (which is never run), or that belongs to another detector.

    Raises:
        InputError: naming what is wrong.
    """
    try:
        content: Any = torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch raises its own kind for each way to be broken
        raise _refused(
            path, f"it is damaged, or holds more than tensors and numbers ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict) or any(not isinstance(content.get(name), kind) for name, kind in PARTS.items()):
        raise _refused(path, "it is no checkpoint of a run")
    found, expected = content["state_dict"], module.state_dict()
    shapes = {name: getattr(tensor, "shape", None) for name, tensor in found.items()}
    different = [name for name in expected.keys() | found.keys() if shapes.get(name) != _shape(expected.get(name))]
    if different:
        raise _refused(
            path, f"{len(different)} of its tensors are not those of this detector, such as {min(different)}"
        )
    broken = [name for name, tensor in found.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise _refused(path, f"its weights are not finite ({broken[0]})")


def _shape(tensor: torch.Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


def _refused(path: Path, reason: str) -> InputError:
    return InputError(f"{path} can't be resumed from: {reason}. Begin again with another --out.")
