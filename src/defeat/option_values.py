"""Converts the texts of the command line, and the values of YAML files, to the types of options."""

import re
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml

from defeat.errors import InputError


def converted(value: Any, kind: Any, flag: str) -> Any:
    """Convert a value to a type.

    Args:
        value: a text, or a value of a YAML file.
        kind: the type; the alternatives of a union are tried in turn.
        flag: name of the option in messages.

    Raises:
        InputError: the value is not valid for the type.
    """
    for alternative in alternatives(kind):
        try:
            return _READERS.get(get_origin(alternative) or alternative, _unchanged)(value, alternative)
        except (ValueError, TypeError, yaml.YAMLError):
            continue
    expected = " or ".join(_described(alternative) for alternative in alternatives(kind))
    raise InputError(f"{flag}: {value!r} is not valid (expected {expected}).")


def alternatives(kind: Any) -> list[Any]:
    """The alternatives of a type; text comes last, because every value is valid text."""
    kinds = list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]
    return sorted(kinds, key=lambda alternative: alternative in (str, Path))


def is_list(kind: Any) -> bool:
    """Whether a type is a list or a tuple."""
    return get_origin(kind) in (list, tuple)


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    names = {NoneType: "null", str: "text", Path: "path", int: "integer", float: "number", bool: "true or false"}
    if is_list(kind):
        return f"list of {_described(get_args(kind)[0])}"
    return names.get(kind, "map" if get_origin(kind) is dict else str(kind))


def _literal(value: Any, kind: Any) -> Any:
    return value if value in get_args(kind) else _refuse()


def _none(value: Any, _: Any) -> None:
    if value is not None and value not in ("null", "~"):
        raise ValueError


def _bool(value: Any, _: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = _text(value).lower()
    return text == "true" if text in ("true", "false") else _refuse()


def _refuse() -> NoReturn:
    raise ValueError


def _int(value: Any, _: Any) -> int:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[+-]?\d{1,4000}", value.strip()) else _refuse()
    return value if type(value) is int else _refuse()


def _float(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    return float(value)


def _text(value: Any, _: Any = None) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    return str(value)


def _path(value: Any, _: Any) -> Path:
    return Path(_text(value))


def _list(value: Any, kind: Any) -> Any:
    """A list: `[a, b]`, or several arguments; names may also be separated by commas."""
    item = get_args(kind)[0]
    if isinstance(value, str):
        names = item is str or get_origin(item) is Literal
        value = value.split(",") if names and value[:1] not in ("[", "{") else yaml.safe_load(value)
    if not isinstance(value, list | tuple) or (item is str and not all(isinstance(part, str) for part in value)):
        raise ValueError
    try:
        items = [converted(part, item, "") for part in value]
    except InputError as error:
        raise ValueError from error
    return tuple(items) if get_origin(kind) is tuple else items


def _dict(value: Any, _: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = yaml.safe_load(value) if value.lstrip().startswith("{") else None
    return value if isinstance(value, dict) else _refuse()


def _unchanged(value: Any, _: Any) -> Any:
    return value


_READERS: dict[Any, Callable[[Any, Any], Any]] = {
    Literal: _literal,
    NoneType: _none,
    bool: _bool,
    int: _int,
    float: _float,
    str: _text,
    Path: _path,
    list: _list,
    tuple: _list,
    dict: _dict,
}
