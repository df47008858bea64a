"""Functions whose keyword arguments are the fields of a dataclass, which types and documents them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from os import PathLike
from typing import Any, ParamSpec, TypeVar

from defeat.errors import InputError, unknown_name
from defeat.settings import field_docs

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def with_arguments_of(
    kind: Callable[Parameters, Any],
) -> Callable[[Callable[..., Result]], Callable[Parameters, Result]]:
    """Give a function the signature of a dataclass, and document its arguments with the docstrings of the fields."""

    def decorated(function: Callable[..., Result]) -> Callable[Parameters, Result]:
        assert isinstance(kind, type)
        docs = field_docs(kind)
        arguments = "\n".join(f"    {field.name}: {docs.get(field.name, '')}" for field in fields(kind) if field.init)
        function.__doc__ = f"{inspect.getdoc(function)}\n\nArgs:\n{arguments}"
        result = inspect.signature(function).return_annotation
        function.__signature__ = inspect.signature(kind).replace(return_annotation=result)  # type: ignore[attr-defined]
        return function

    return decorated


def checked_arguments(kind: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check the names of arguments, and convert paths to text.

    Args:
        kind: the dataclass.
        arguments: values by name.

    Raises:
        InputError: an argument is unknown, with the nearest name, or a required one is missing.
    """
    known = inspect.signature(kind).parameters
    for name in arguments:
        if name not in known:
            raise unknown_name("argument", name, known)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise InputError(f"The argument {name} is missing.")
    return {name: str(value) if isinstance(value, PathLike) else value for name, value in arguments.items()}
