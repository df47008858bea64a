"""How a checkpoint is written and read: whole or not at all, with the number of its format."""

import errno
import os
from io import BytesIO
from pathlib import Path
from shutil import disk_usage
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from defeat.detector.files import WriteError, write_atomically
from defeat.errors import InputError

FORMAT = 1
ABOUT = "defeat"  # what this program adds to a checkpoint: plain numbers and texts


class CheckpointFile(TorchCheckpointIO):
    """Checkpoints of this program; Lightning's own would pass through the folder of temporary files, without fsync."""

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

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint that `require_resumable` has looked at.

        Raises:
            InputError: it is of another version.
        """
        checkpoint = super().load_checkpoint(path, map_location, weights_only)
        # What was written before the number was is of the same format.
        found = checkpoint.get(ABOUT, {}).get("format", FORMAT)
        if found != FORMAT:
            raise InputError(
                f"{path} was written by another version of this program (format {found}, this one reads {FORMAT}): go "
                "on with that version, or begin anew with another --out."
            )
        return checkpoint
