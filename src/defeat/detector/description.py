"""Whether a `model.json`, which may come from anyone, says something that a detector can be built from."""

import math
from collections.abc import Mapping
from dataclasses import fields
from reprlib import repr as repr_of  # of bounded length
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from defeat.detector.base import DetectorSpec
from defeat.errors import InputError

LARGEST_SIDE = 1 << 14  # of an image, in pixels


def spec_of(description: Mapping[str, Any], options: type | None) -> DetectorSpec:
    """What to build.

    Args:
        description: the fields of a `DetectorSpec`, lists where it has tuples.
        options: the dataclass of the family's settings; None where the family is unknown.

    Raises:
        InputError: naming the first field whose value can't be one.
        TypeError: a field is missing, or none of a `DetectorSpec`.
    """
    _check_types(description, DetectorSpec)
    fields: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in description.items()}
    spec = DetectorSpec(**fields)
    if options is not None:
        _check_types(spec.options, options)
        _check_lengths(spec.options, options)
    if len(set(spec.classes)) < len(spec.classes) or not all(spec.classes):
        raise InputError("a name of 'classes' is empty or there twice")
    for name in ("size", "max_size"):
        if not 1 <= getattr(spec, name) <= LARGEST_SIDE:
            raise InputError(f"'{name}' must be from 1 to {LARGEST_SIDE}, not {repr_of(getattr(spec, name))}")
    if spec.neck_channels < 1:
        raise InputError(f"'neck_channels' must be at least 1, not {spec.neck_channels}")
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if values is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
            raise InputError(f"'{name}' must be three numbers{', each above 0' if name == 'std' else ''}")
    return spec


def _check_types(values: Mapping[str, Any], kind: type) -> None:
    for name, hint in get_type_hints(kind).items():
        if name in values and not _fits(values[name], hint):
            raise InputError(f"'{name}' can't be {repr_of(values[name])}")


def _check_lengths(values: Mapping[str, Any], options: type) -> None:
    """One value a level, as in the defaults: fewer would fail at the first image."""
    for one in fields(options):
        if isinstance(one.default, tuple) and len(values.get(one.name, one.default)) != len(one.default):
            raise InputError(f"'{one.name}' must be {len(one.default)} numbers")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from a JSON file is of an annotated type; numbers must be finite."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is UnionType:
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(one, arguments[0]) for one in value)
    if origin is float:
        return _is_number(value, int | float) and math.isfinite(value)
    if origin is int:
        return _is_number(value, int)
    return isinstance(value, NoneType if origin is None else origin)


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < 1 << 31
