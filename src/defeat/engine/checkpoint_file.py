"""Write checkpoints atomically, and validate them when they are read: a checkpoint is untrusted input."""

import errno
import os
from io import BytesIO
from pathlib import Path
from shutil import disk_usage
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import nn

from defeat.detector.weights import first_not_finite, mismatches
from defeat.errors import InputError
from defeat.files import WriteError, write_atomically

FORMAT = 1
METADATA = "defeat"  # key of this program's metadata in a checkpoint: plain numbers and strings
STUDENT = "student."  # prefix of the names of a student's weights
PARTS = {"state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "loops": dict}


class CheckpointFile(TorchCheckpointIO):
    """Atomic checkpoint files; Lightning writes its own by way of the system's temporary folder, without fsync.

    Args:
        module: the module that is saved and restored.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; it replaces the previous one only when it is complete.

        Raises:
            WriteError: it can't be written, or the disk is full.
        """
        path = Path(path)
        content = BytesIO()
        torch.save(checkpoint, content)
        needed = content.getbuffer().nbytes
        try:
            full = disk_usage(path.parent).free < needed
        except OSError as error:
            raise WriteError(path, needed, error) from error
        if full:  # checked first, so that a failing write does not use up the remaining space
            raise WriteError(path, needed, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        write_atomically(path, content.getbuffer())

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint to the CPU; see `read_checkpoint`."""
        return read_checkpoint(Path(path), self.module)


def read_checkpoint(path: Path, module: nn.Module) -> dict[str, Any]:
    """Read and validate a checkpoint of a module.

    Raises:
        InputError: it is damaged, contains code (which is never run), or belongs to another detector or version.
    """
    try:
        content: Any = torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch raises different exceptions for different kinds of damage
        reason = f"it is damaged, or contains more than tensors and numbers ({type(error).__name__})"
        raise _invalid(path, reason) from error
    if not isinstance(content, dict) or any(not isinstance(content.get(name), kind) for name, kind in PARTS.items()):
        raise _invalid(path, "it is not a checkpoint of a run")
    weights = content["state_dict"]
    if different := mismatches(module.state_dict(), weights):
        raise _invalid(path, f"{len(different)} of its tensors are not those of this detector, such as {different[0]}")
    if (name := first_not_finite(weights)) is not None:
        raise _invalid(path, f"its weights are not finite ({name})")
    if (best := (content.get("selection") or {}).get("best")) is not None:
        student = {
            name.removeprefix(STUDENT): value for name, value in module.state_dict().items() if name.startswith(STUDENT)
        }
        if mismatches(student, best["weights"]) or first_not_finite(best["weights"]) is not None:
            raise _invalid(path, "its best student is another detector, or has weights that are not finite")
    # Checkpoints without a format number are of the same format.
    version = content.get(METADATA, {}).get("format", FORMAT)
    if version != FORMAT:
        raise InputError(
            f"{path} was written by another version of this program (format {version}, this one reads {FORMAT}): "
            "resume with that version, or start again with another --out."
        )
    return content


def _invalid(path: Path, reason: str) -> InputError:
    return InputError(f"{path} can't be resumed from: {reason}. Start again with another --out.")
