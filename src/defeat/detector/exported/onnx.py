"""ONNX files, run by onnxruntime."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from defeat.detector.exported.description import IMAGES, KEY
from defeat.errors import InputError, first_line, missing_package

SUFFIX = ".onnx"


def open_file(path: Path, device: str) -> tuple["OnnxRuntime", str | None]:
    """Open a file; and the description in its metadata, None if there is none.

    Raises:
        InputError: onnxruntime is missing, or the file can't be loaded.
    """
    session = open_session(path, device)
    return OnnxRuntime(session), session.get_modelmeta().custom_metadata_map.get(KEY)


def open_session(path: Path, device: str = "auto") -> Any:
    """Open a file with as many threads as torch uses.

    Args:
        path: an ONNX file.
        device: auto (a GPU if onnxruntime supports one), cpu or cuda.

    Raises:
        InputError: onnxruntime is missing, or the file can't be loaded.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package(str(path), "onnxruntime", "onnx") from error
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    available = onnxruntime.get_available_providers()
    providers = ("CPUExecutionProvider",) if device == "cpu" else ("CUDAExecutionProvider", "CPUExecutionProvider")
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[name for name in providers if name in available]
        )
    except Exception as error:  # of any type, raised by onnxruntime
        raise InputError(f"{path} can't be loaded as ONNX ({first_line(error)}).") from error


class OnnxRuntime:
    """A session of onnxruntime."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.names = [entry.name for entry in session.get_outputs()]

    def run(self, images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.generic]]:
        """Compute the outputs by name for (B, 3, H, W) images."""
        return dict(zip(self.names, self.session.run(self.names, {IMAGES: images}), strict=True))
