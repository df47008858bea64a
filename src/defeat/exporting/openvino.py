"""Writes OpenVINO files from models of the package onnx."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from defeat.detector.exported.description import KEY, ExportDescription
from defeat.errors import missing_package


def converted(model: Any, folder: Path) -> Any:
    """Convert a model of the package onnx.

    Args:
        model: the model.
        folder: for a temporary file.

    Raises:
        InputError: the package is missing.
    """
    try:
        import openvino
    except ImportError as error:
        raise missing_package("--format openvino", "openvino", "openvino") from error
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    network = openvino.convert_model(path)
    _make_stable(network)
    return network


def _make_stable(network: Any) -> None:
    """Let each choice of the largest values take the first of equal ones, as ONNX defines it."""
    import openvino.opset11 as operators

    for choice in network.get_ops():
        if choice.get_type_name() != "TopK":
            continue
        given = choice.get_attributes()
        names = ("axis", "mode", "sort", "index_element_type")
        stable = operators.topk(*choice.input_values(), *(given[name] for name in names), stable=True)
        stable.set_friendly_name(choice.get_friendly_name())
        for before, after in zip(choice.outputs(), stable.outputs(), strict=True):
            before.replace(after)


def write(model: Any, description: ExportDescription, path: Path) -> None:
    """Write a model as .xml, and its weights beside it as .bin; those of fp16 have half precision."""
    import openvino

    model.set_rt_info(description.text(), KEY)
    openvino.save_model(model, path, compress_to_fp16=description.precision == "fp16")


def quantised(model: Any, samples: Iterable[Any], transformer: bool) -> Any:
    """Convert weights and activations to 8-bit integers, after calibration.

    Args:
        model: of the package openvino.
        samples: prepared images (1, 3, H, W).
        transformer: whether the network contains attention, of which some products keep their precision.

    Raises:
        InputError: the package nncf is missing.
    """
    nncf = _nncf()
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    images = list(samples)
    return nncf.quantize(model, nncf.Dataset(images), subset_size=len(images), model_type=kind)


def quantised_accurately(
    model: Any,
    samples: Iterable[Any],
    transformer: bool,
    accuracy: Callable[[Any], float],
    max_drop: float,
) -> Any:
    """As `quantised`, but layers are converted back, the most harmful first, until the accuracy is high enough.

    Args:
        model: of the package openvino.
        samples: prepared images (1, 3, H, W).
        transformer: whether the network contains attention.
        accuracy: computes the AP of a compiled model.
        max_drop: largest accepted loss of AP, in points.
    """
    nncf = _nncf()
    images = list(samples)
    return nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=nncf.Dataset(images),
        validation_dataset=nncf.Dataset([0]),
        validation_fn=lambda network, _: (accuracy(network), None),
        max_drop=max_drop,
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )


def _nncf() -> Any:
    try:
        import nncf
    except ImportError as error:
        raise missing_package("--precision int8", "nncf", "openvino") from error
    nncf.set_log_level(logging.ERROR)
    return nncf
