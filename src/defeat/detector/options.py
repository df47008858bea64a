"""Options of a detector family, whose types and ranges are validated: they may come from an untrusted `model.json`."""

import math
from collections.abc import Mapping
from dataclasses import field, fields, replace
from typing import Any, TypeVar, get_args, get_type_hints

from defeat.errors import InputError, quoted
from defeat.settings import AUTO

MAX_COUNT = 1_000_000

Options = TypeVar("Options")


def fitted_to_data(usual: Any, summary: str = "", from_teacher: bool = False, same_size: bool = False) -> Any:
    """Define a field of a family's options whose value is derived from the data by default.

    Args:
        usual: value without data, that of torchvision; checkpoints without the field use it, too.
        summary: text that shows the value to a user, with `{}` for the value; empty to omit it.
        from_teacher: whether a student uses the value of a teacher of the same family, so that it can inherit the
            teacher's weights, or be compared with its predictions.
        same_size: whether it does so only if both have the same input size.
    """
    metadata = {"usual": usual, "summary": summary, "from_teacher": from_teacher, "same_size": same_size}
    if isinstance(usual, int):
        metadata["bounds"] = (1, MAX_COUNT)
    return field(default=AUTO, metadata=metadata)


def bounded(default: float, least: float, most: float = MAX_COUNT) -> Any:
    """Define a numeric field of a family's options.

    Args:
        default: default value; an integer for an integer field.
        least: lower limit.
        most: upper limit.
    """
    return field(default=default, metadata={"bounds": (least, most)})


def with_usual_values(options: Options) -> Options:
    """Replace `auto` by the values without data."""
    given: Any = options
    usual = {entry.name: entry.metadata["usual"] for entry in fields(given) if _is_automatic(given, entry)}
    changed: Options = replace(given, **usual)
    return changed


def automatic(options: Any) -> list[str]:
    """Names of the options that are `auto`."""
    return [entry.name for entry in fields(options) if _is_automatic(options, entry)]


def with_teacher_values(options: Options, teacher: Options, same_size: bool) -> Options:
    """Replace `auto` by the values of a teacher in options that should be equal.

    Args:
        options: options of the student.
        teacher: options of a teacher of the same family, without `auto`.
        same_size: whether both have the same input size.
    """
    given: Any = options
    names = [
        entry.name
        for entry in fields(given)
        if _is_automatic(given, entry)
        and entry.metadata["from_teacher"]
        and (same_size or not entry.metadata["same_size"])
    ]
    changed: Options = replace(given, **{name: getattr(teacher, name) for name in names})
    return changed


def summaries(kind: Any, values: Mapping[str, Any]) -> list[str]:
    """Texts that show derived values to a user.

    Args:
        kind: dataclass of a family's options.
        values: values of some of its fields.
    """
    texts = []
    for entry in fields(kind):
        if entry.name in values and entry.metadata.get("summary"):
            value = values[entry.name]
            text = " ".join(f"{side:g}" for side in value) if isinstance(value, list | tuple) else str(value)
            texts.append(entry.metadata["summary"].format(text))
    return texts


def _is_automatic(options: Any, entry: Any) -> bool:
    return "usual" in entry.metadata and getattr(options, entry.name) == AUTO


def require_valid(options: Any) -> None:
    """Refuse invalid options of a family.

    Numbers must be within the bounds of their field (`bounded`, `fitted_to_data`), sides of anchors above zero, one per
    level, and names among those of the field's `Literal`. Options derived from the data may be `auto`.

    Args:
        options: a dataclass with a default for every field.

    Raises:
        InputError: the message names the first invalid option, its range and its value.
    """
    hints = get_type_hints(type(options))
    for entry in fields(options):
        if _is_automatic(options, entry):
            continue
        if entry.default_factory is dict:
            if not isinstance(getattr(options, entry.name), dict):
                raise InputError(f"--detector.{entry.name.replace('_', '-')} must be a map of settings.")
            continue
        value, usual = getattr(options, entry.name), entry.metadata.get("usual", entry.default)
        valid, expected = _validate(value, usual, entry.metadata.get("bounds"), hints[entry.name])
        if not valid:
            expected += ", or auto" * ("usual" in entry.metadata)
            raise InputError(f"--detector.{entry.name.replace('_', '-')} must be {expected}, not {quoted(value)}.")


def _validate(value: Any, usual: Any, bounds: tuple[float, float] | None, hint: Any) -> tuple[bool, str]:
    """Whether a value is valid for a field, and a description of valid values."""
    if bounds is not None:
        least, most = bounds
        integral = isinstance(usual, int)
        number = type(value) is int or (not integral and type(value) is float)
        valid = number and least <= value <= most
        return valid, f"a number from {least} to {most}" if integral else f"between {least:g} and {most:g}"
    if isinstance(usual, bool):
        return isinstance(value, bool), "true or false"
    if isinstance(usual, tuple):
        return _are_sides(value, len(usual)), f"{len(usual)} sides of 1 pixel or more"
    names = [name for name in get_args(hint) if name != AUTO]
    return isinstance(value, str) and value in names, f"one of {', '.join(names)}"


def _are_sides(value: Any, count: int) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        and all(type(side) in (int, float) and 1 <= side < math.inf for side in value)
    )
