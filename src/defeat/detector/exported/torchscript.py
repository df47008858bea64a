"""TorchScript files, run by torch on the CPU, on which they were traced; they need torchvision's operators."""

from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
import torchvision  # noqa: F401 (its operators, such as non-maximum suppression)

from defeat.detector.exported.description import BOXES, KEY, LABELS, SCORES
from defeat.errors import InputError

SUFFIX = ".torchscript"


def open_file(path: Path, device: str) -> tuple["TorchScriptRuntime", str | None]:
    """Open a file; and the description in it, None if there is none.

    Raises:
        InputError: the file can't be loaded.
    """
    extra = {KEY: ""}
    try:
        network = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    except Exception as error:  # of any type, raised by torch
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].rstrip(".")
        raise InputError(f"{path} can't be loaded as TorchScript ({reason}).") from error
    text: str | bytes = extra[KEY]
    return TorchScriptRuntime(network), (text.decode() if isinstance(text, bytes) else text) or None


class TorchScriptRuntime:
    """A network in TorchScript."""

    def __init__(self, network: Any) -> None:
        self.network = network

    @torch.no_grad()
    def run(self, images: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Compute the outputs by name for (B, 3, H, W) images."""
        outputs = self.network(torch.from_numpy(images))
        return {name: output.numpy() for name, output in zip((BOXES, SCORES, LABELS), outputs, strict=False)}
