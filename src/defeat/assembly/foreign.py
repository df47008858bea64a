"""Networks from user code, named `package.module:factory` or `file.py:factory`, as teachers through taps."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from defeat.detector import TappedTeacher
from defeat.errors import InputError, unknown_name


def own_network(name: str) -> nn.Module:
    """Build a network by calling a function of user code; this runs that code.

    Args:
        name: `package.module:factory` or `file.py:factory`; the factory takes no argument and returns an `nn.Module`.

    Raises:
        InputError: the module or the function doesn't exist, fails, or doesn't return a network.
    """
    network = own_object(name)
    if not isinstance(network, nn.Module):
        raise InputError(f"{name} returns a {type(network).__name__}, not an nn.Module.")
    return network


def own_object(name: str) -> Any:
    """Build an object by calling a function of user code; this runs that code.

    Args:
        name: `package.module:factory` or `file.py:factory`; the factory takes no argument.

    Raises:
        InputError: the module or the function doesn't exist, or fails.
    """
    home, colon, factory = name.rpartition(":")
    if not colon or not factory.isidentifier():
        raise InputError(f"{name} names no function: give package.module:factory, or file.py:factory.")
    module = _imported(home)
    if not hasattr(module, factory):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise unknown_name(f"function of {home}", factory, known)
    try:
        return getattr(module, factory)()
    except Exception as error:  # raised by user code
        raise InputError(f"{name} failed: {type(error).__name__}: {error}") from error


def tapped_teacher(name: str, taps: str) -> TappedTeacher:
    """Make a teacher from a network of user code.

    Args:
        name: see `own_network`.
        taps: YAML file with arguments of `TappedTeacher`: `neck: {8: fpn.0, 16: fpn.1}`, and others with plain
            values, such as `classes` or `mean`. With `predict: true`, calling the network returns detections.

    Raises:
        InputError: the file is not valid, or the network does not fit it.
    """
    arguments = _taps(taps)
    network = own_network(name)
    if arguments.pop("predict", False):
        arguments["predict"] = network
    return TappedTeacher(network, **arguments)


def _taps(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--teacher-taps {path} can't be read.") from error
    except (yaml.YAMLError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("neck"), dict):
        raise InputError(f"--teacher-taps {path}: give lines such as `neck: {{8: fpn.0, 16: fpn.1}}`.")
    known = set(inspect.signature(TappedTeacher).parameters) - {"module", "preprocess"}
    for name in content:
        if name not in known:
            raise unknown_name("argument of a tapped teacher", str(name), known)
    for part in ("neck", "backbone"):
        levels = content.get(part) or {}
        if not all(isinstance(stride, int) and isinstance(tap, str) for stride, tap in levels.items()):
            raise InputError(f"--teacher-taps {path}: {part} must map strides to names, such as {{8: fpn.0}}.")
    return content


def _imported(home: str) -> Any:
    """Import the module of a file or of a dotted name."""
    if home.endswith(".py") and not Path(home).is_file():
        raise InputError(f"{home} does not exist.")
    try:
        if home.endswith(".py"):
            return _of_file(Path(home))
        sys.path.insert(0, "")  # modules in the current folder, as for `python -m`
        try:
            return importlib.import_module(home)
        finally:
            sys.path.remove("")
    except Exception as error:  # raised by user code
        raise InputError(f"{home} can't be imported: {type(error).__name__}: {error}") from error


def _of_file(path: Path) -> Any:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module  # so that its objects can be pickled
    specification.loader.exec_module(module)
    return module
