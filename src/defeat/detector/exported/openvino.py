"""OpenVINO files: a network in .xml, with its weights beside it in .bin."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from defeat.detector.exported.description import KEY
from defeat.errors import InputError, missing_package

SUFFIX = ".xml"


def open_file(path: Path, device: str) -> tuple["OpenVinoRuntime", str | None]:
    """Open a file; and the description in its metadata, None if there is none.

    Raises:
        InputError: openvino is missing, or the file can't be loaded.
    """
    try:
        import openvino
    except ImportError as error:
        raise missing_package(str(path), "openvino", "openvino") from error
    try:
        model = openvino.Core().read_model(path)
        text = str(model.get_rt_info(KEY).value) if model.has_rt_info(KEY) else None
        return OpenVinoRuntime(compiled(model)), text
    except Exception as error:  # of any type, raised by openvino
        reason = str(error).strip().splitlines()[-1].rstrip(".")
        raise InputError(f"{path} can't be loaded as OpenVINO ({reason}).") from error


def compiled(model: Any) -> Any:
    """Compile a network for the CPU in float32 (by default OpenVINO may use bfloat16), with the threads of torch."""
    import openvino
    from openvino import properties

    settings = {
        properties.hint.inference_precision(): openvino.Type.f32,
        properties.inference_num_threads(): torch.get_num_threads(),
        properties.hint.performance_mode(): properties.hint.PerformanceMode.LATENCY,
    }
    return openvino.Core().compile_model(model, "CPU", settings)


class OpenVinoRuntime:
    """A compiled network of OpenVINO."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def run(self, images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.generic]]:
        """Compute the outputs by name for (B, 3, H, W) images."""
        results = self.network([images])
        return {output.get_any_name(): np.array(results[output]) for output in self.network.outputs}
