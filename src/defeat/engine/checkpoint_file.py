"""How a checkpoint is written and read: whole or not at all, with the number of its format.

It is a foreign file like any other, looked at before it is trusted.
"""

import errno
import os
from io import BytesIO
from pathlib import Path
from shutil import disk_usage
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import nn

from defeat.detector.weights import first_not_finite, misfits
from defeat.errors import InputError
from defeat.files import WriteError, write_atomically

FORMAT = 1
ABOUT = "defeat"  # what this program adds to a checkpoint: plain numbers and texts
STUDENT = "student."  # first part of the names of a student's weights
PARTS = {"state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "loops": dict}


class CheckpointFile(TorchCheckpointIO):
    """Checkpoints of this program; Lightning's own would pass through the folder of temporary files, without fsync.

    Args:
        module: whose checkpoints they are.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; until it is complete, the one before stays.

        Raises:
            WriteError: it can't be written, or the disk has not enough room.
        """
        path = Path(path)
        content = BytesIO()
        torch.save(checkpoint, content)
        needed = content.getbuffer().nbytes
        try:
            full = disk_usage(path.parent).free < needed
        except OSError as error:
            raise WriteError(path, needed, error) from error
        if full:  # found before a write takes what room there is
            raise WriteError(path, needed, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        write_atomically(path, content.getbuffer())

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint, onto the processor; see `read_checkpoint`."""
        return read_checkpoint(Path(path), self.module)


def read_checkpoint(path: Path, module: nn.Module) -> dict[str, Any]:
    """Read a checkpoint of a module.

    Raises:
        InputError: it is damaged, holds code (which is never run), or is of another detector or another version.
    """
    try:
        content: Any = torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch raises its own kind for each way to be broken
        reason = f"it is damaged, or holds more than tensors and numbers ({type(error).__name__})"
        raise _refused(path, reason) from error
    if not isinstance(content, dict) or any(not isinstance(content.get(name), kind) for name, kind in PARTS.items()):
        raise _refused(path, "it is no checkpoint of a run")
    weights = content["state_dict"]
    if different := misfits(module.state_dict(), weights):
        raise _refused(path, f"{len(different)} of its tensors are not those of this detector, such as {different[0]}")
    if (name := first_not_finite(weights)) is not None:
        raise _refused(path, f"its weights are not finite ({name})")
    if (best := (content.get("selection") or {}).get("best")) is not None:
        own = {
            name.removeprefix(STUDENT): value for name, value in module.state_dict().items() if name.startswith(STUDENT)
        }
        if misfits(own, best["weights"]) or first_not_finite(best["weights"]) is not None:
            raise _refused(path, "the best student that it keeps is not this one, or has weights that are not finite")
    # What was written before the number was is of the same format.
    found = content.get(ABOUT, {}).get("format", FORMAT)
    if found != FORMAT:
        raise InputError(
            f"{path} was written by another version of this program (format {found}, this one reads {FORMAT}): go on "
            "with that version, or begin anew with another --out."
        )
    return content


def _refused(path: Path, reason: str) -> InputError:
    return InputError(f"{path} can't be resumed from: {reason}. Begin again with another --out.")
