"""Writes ONNX files."""

import io
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from defeat.detector.exported.description import IMAGES, KEY, ExportDescription
from defeat.errors import InputError, first_line, install_command, missing_package
from defeat.exporting.graph import ExportGraph, tracing

OPSET = 17
BATCH, HEIGHT, WIDTH, DETECTIONS, CANDIDATES = "batch", "height", "width", "detections", "candidates"


def traced(graph: ExportGraph, example: torch.Tensor, dynamo: bool = False) -> Any:
    """Convert to a model of the package onnx.

    Args:
        graph: what to export.
        example: an input (1, 3, H, W) with objects that the detector finds, so that no branch of it is empty.
        dynamo: whether the exporter of torch.export is used, which can't express non-maximum suppression.

    Raises:
        InputError: a package is missing, or the other exporter can't convert the network.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing_package("`defeat export`", "onnx and onnxruntime", "export") from error
    if dynamo:
        return _exported(graph, example)
    about = graph.description
    sides = ((0, BATCH, about.batch), (2, HEIGHT, about.height), (3, WIDTH, about.width))
    axes: dict[str, dict[int, str]] = {IMAGES: {axis: name for axis, name, fixed in sides if fixed is None}}
    for name in graph.outputs:
        if about.nms == "inside":
            axes[name] = {0: DETECTIONS}
        else:
            axes[name] = {**({0: BATCH} if about.batch is None else {}), 1: CANDIDATES}
    content: Any = io.BytesIO()
    with tracing():
        graph.eval()(example)  # tensors that a detector keeps for a size become constants
        torch.onnx.export(
            graph,
            (example,),
            content,
            dynamo=False,
            opset_version=OPSET,
            input_names=[IMAGES],
            output_names=list(graph.outputs),
            dynamic_axes={name: of_name for name, of_name in axes.items() if of_name},
        )
    return onnx.load_model_from_string(content.getvalue())


def _exported(graph: ExportGraph, example: torch.Tensor) -> Any:
    """As `traced`, with the exporter of torch.export, for an input of a fixed size."""
    if find_spec("onnxscript") is None:
        raise InputError("--dynamo needs the package onnxscript: pip install onnxscript.")
    with tracing():
        graph.eval()(example)
        try:
            program = torch.onnx.export(
                graph, (example,), dynamo=True, input_names=[IMAGES], output_names=list(graph.outputs), verbose=False
            )
        except Exception as error:  # of any type, raised by torch
            reason = first_line(error)
            raise InputError(f"--dynamo: the network can't be exported ({reason}).") from error
    assert program is not None
    return program.model_proto


def simplified(model: Any) -> Any:
    """Remove operations that do nothing, and fold constants, with onnxslim.

    Raises:
        InputError: the package is missing.
    """
    try:
        import onnxslim
    except ImportError as error:
        raise InputError(f"--simplify needs onnxslim: {install_command('export')}, or --simplify false.") from error
    return onnxslim.slim(model)


def described(model: Any, description: ExportDescription) -> bytes:
    """The content of a file: a model with the description in its metadata."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, description.text()
    model.producer_name = "defeat"
    content: bytes = model.SerializeToString()
    return content


def write(model: Any, description: ExportDescription, path: Path) -> None:
    """Write a model of the package onnx as ONNX file."""
    path.write_bytes(described(model, description))


# Operations with weights that are halved.
WEIGHTED = ("Conv", "Gemm", "MatMul")


def halved(model: Any) -> Any:
    """Convert the weights of convolutions and products to half precision; inputs and outputs stay float32.

    Weights are stored in half precision and converted when they are read, because processors compute in float32.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    consumers = {name for node in model.graph.node if node.op_type in WEIGHTED for name in node.input}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name not in consumers or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        name = tensor.name
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)
    return model


def quantised(model: Any, samples: Sequence[Any], folder: Path, outputs: bool = True) -> Any:
    """Convert weights and activations of convolutions to 8-bit integers, calibrated on samples.

    On one distilled RetinaNet and its baseline (BCCD, tf_efficientnet_lite0), rounded outputs took 0.8 of the time of
    float32, and cost 0 and 3 points of AP; without them nothing was lost, and no time was saved on that CPU.

    Args:
        model: of the package onnx.
        samples: prepared images (1, 3, H, W).
        folder: for temporary files.
        outputs: whether outputs of convolutions are converted, too, without which most convolutions compute in floating
            point.

    Raises:
        InputError: the package is missing.
    """
    import onnx

    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise missing_package("--precision int8", "onnxruntime", "export") from error

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        """The prepared images, one at a time."""

        def __init__(self) -> None:
            self.remaining = iter(samples)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.remaining, None)
            return None if image is None else {IMAGES: image}

    source, target = folder / "float.onnx", folder / "quantised.onnx"
    source.write_bytes(model.SerializeToString())
    logging.disable(logging.WARNING)  # advice to simplify the model first, which was done
    try:
        quantize_static(
            source,
            target,
            Samples(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={} if outputs else {"OpTypesToExcludeOutputQuantization": ["Conv"]},
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(target)
