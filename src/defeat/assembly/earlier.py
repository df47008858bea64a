"""Runs of earlier versions: what their files do not name has the value that it had then."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from defeat.assembly.settings import DistillSettings, settings_class
from defeat.detector import make_options
from defeat.detector.options import with_usual_values
from defeat.distillation import method_defaults
from defeat.errors import InputError
from defeat.settings import usual_value

# Method options whose default was another in version 0.1.
_ADAPTATION = {"initialisation": "default", "adaptation_kernel": 3}
VERSION_0_1: dict[str, dict[str, Any]] = {
    "defeat": {"object_weight": 4.0, **_ADAPTATION},
    "fgfi": {"object_weight": 16.0, **_ADAPTATION},
    "imitation": {"map_weight": 16.0, **_ADAPTATION},
    "tadf": {"object_weight": 16.0, **_ADAPTATION},
}


def earlier_defaults() -> dict[str, Any]:
    """Every setting that has a default, with what it amounted to in a run whose file does not name it."""
    values = {field.name: usual_value(field) for field in fields(DistillSettings)}
    return {name: value for name, value in values.items() if value is not MISSING}


def earlier_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method, given those that a file names.

    Args:
        method: name of the method; one that is not known has no other options than those given.
        options: that the file names.

    Returns:
        By name, with lists for tuples, as files have them.
    """
    try:
        defaults = method_defaults(method)
    except ValueError:  # an object of Python
        defaults = {}
    return _as_in_files({**defaults, **VERSION_0_1.get(method, {}), **options})


def earlier_detector_options(family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a detector family, given those that a file names; the others have their values without data.

    Args:
        family: name of the family; one that is not known has no other options than those given.
        options: that the file names.

    Returns:
        By name, with lists for tuples, as files have them.
    """
    try:
        defaults = asdict(with_usual_values(make_options(family, {})))
    except InputError:  # an object of Python
        defaults = {}
    return _as_in_files({**defaults, **options})


def _as_in_files(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def recorded_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run, given the content of its `config.yaml`, with `command`."""
    command = content.get("command", "train")
    usual = earlier_defaults()
    names = [field.name for field in fields(settings_class(command))]
    values = {name: usual[name] for name in names if name in usual} | dict(content)
    options = values["detector_options"] if isinstance(values["detector_options"], Mapping) else {}  # else damaged
    values["detector_options"] = earlier_detector_options(str(values["detector"]), options)
    if command == "distill":
        values["method_options"] = earlier_options(str(values["method"]), values["method_options"] or {})
    return values | {"command": command}
