"""The files of a trained detector: its description `model.json` and its weights `model.safetensors`."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from defeat.detector.base import Detector, DetectorSpec
from defeat.detector.description import require_description
from defeat.detector.slimming import fit_shapes
from defeat.detector.weights import first_not_finite, mismatches
from defeat.errors import InputError, first_line
from defeat.files import write_atomically

FORMAT = 1


def save_model(detector: Detector, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a detector into a folder; each file is complete or missing.

    Args:
        detector: detector to save.
        folder: an existing folder.
        state: state dict to save; by default that of the detector.
    """
    description = asdict(detector.spec)
    description["mean"], description["std"] = list(detector.info.mean), list(detector.info.std)
    text = json.dumps({"format": FORMAT, **description}, indent=2)
    state = detector.state_dict() if state is None else state
    weights: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, tensor in state.items():
        copied = tensor.detach().cpu().contiguous()
        address = copied.untyped_storage().data_ptr()
        weights[name] = copied.clone() if address in stored else copied  # layers may share their weights
        stored.add(address)
    write_atomically(folder / "model.safetensors", save(weights))
    write_atomically(folder / "model.json", (text + "\n").encode())


def load_model(folder: Path, build: Callable[[dict[str, Any]], Detector]) -> Detector:
    """Load a detector written by `save_model`.

    Args:
        folder: a run directory.
        build: builds a detector with random weights from its description.

    Raises:
        InputError: a file is missing or damaged.
    """
    description = read_description(folder)
    json_path = folder / "model.json"
    if description.pop("format") != FORMAT:
        raise InputError(f"{json_path} was written by another version of this program.")
    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(f"{path} is missing: the run has no trained model yet.")
    require_description(DetectorSpec, description, json_path)
    try:
        weights = load_file(path)
        # Built without memory first: an untrusted description may be too large, and the weights show its real size.
        with torch.device("meta"):
            expected = _as_narrow(build(description), weights).state_dict()
        if names := mismatches(expected, weights):
            raise RuntimeError(f"{len(names)} tensors are missing, unknown or of another shape, e.g. {names[0]}")
        detector = _as_narrow(build(description), weights)
        detector.load_state_dict(weights)
    except InputError as error:
        raise InputError(f"{json_path} does not describe a valid detector: {error}") from error
    except Exception as error:  # of any type, raised by modules with untrusted arguments
        reason = first_line(error)
        raise InputError(f"{path} is damaged or does not belong to {json_path} ({reason}).") from error
    if (name := first_not_finite(weights)) is not None:
        raise InputError(f"{path} contains weights that are not finite ({name}).")
    return detector


def _as_narrow(detector: Detector, weights: Mapping[str, Tensor]) -> Detector:
    """Give a detector whose description says that channels were removed the shapes of its weights."""
    if detector.spec.width < 1:
        fit_shapes(detector, weights)
    return detector


def read_description(folder: Path) -> dict[str, Any]:
    """Read the `model.json` of a run directory.

    Raises:
        InputError: the file is missing or invalid.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise InputError(f"{folder} is not a run directory with a trained model: {path.name} is missing.")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(description, dict) or "format" not in description:
        raise InputError(f"{path} does not describe a detector: the field 'format' is missing.")
    return description
