"""Settings of a family may come from a command line or from a foreign `model.json`: kinds and ranges are checked."""

import math
from collections.abc import Mapping
from dataclasses import field, fields, replace
from typing import Any, TypeVar, get_args, get_type_hints

from defeat.errors import InputError, shown
from defeat.settings import AUTO

MOST = 1_000_000  # of anything that is counted

Options = TypeVar("Options")


def fitted_to_data(usual: Any, shown: str = "", as_teacher: bool = False, same_size: bool = False) -> Any:
    """A field of a family's options whose value follows from the data by default.

    Args:
        usual: its value where there are no data: torchvision's, which checkpoints without the field were made with.
        shown: how its value is named to a user, with `{}` for the value; empty for not at all.
        as_teacher: whether a student takes over the value of a teacher of the same family, so that it can begin with
            the teacher's weights, or be compared with it prediction by prediction.
        same_size: whether it does so only where both resize images to the same size.
    """
    about = {"usual": usual, "shown": shown, "as_teacher": as_teacher, "same_size": same_size}
    if isinstance(usual, int):
        about["bounds"] = (1, MOST)
    return field(default=AUTO, metadata=about)


def bounded(default: float, least: float, most: float = MOST) -> Any:
    """A field of a family's options that holds a number.

    Args:
        default: its value where none is given; a whole number for a field of whole numbers.
        least: the least value that can work.
        most: the greatest.
    """
    return field(default=default, metadata={"bounds": (least, most)})


def settled(options: Options) -> Options:
    """The same options, with usual values where they would follow from data."""
    found: Any = options
    usual = {one.name: one.metadata["usual"] for one in fields(found) if _is_automatic(found, one)}
    changed: Options = replace(found, **usual)
    return changed


def automatic(options: Any) -> list[str]:
    """Names of the options that are to follow from the data."""
    return [one.name for one in fields(options) if _is_automatic(options, one)]


def taken_over(options: Options, teacher: Options, same_size: bool) -> Options:
    """The same options, with a teacher's values where they are to be equal.

    Args:
        options: of the student.
        teacher: of a teacher of the same family, settled.
        same_size: whether both resize images to the same size.
    """
    found: Any = options
    names = [
        one.name
        for one in fields(found)
        if _is_automatic(found, one) and one.metadata["as_teacher"] and (same_size or not one.metadata["same_size"])
    ]
    changed: Options = replace(found, **{name: getattr(teacher, name) for name in names})
    return changed


def described(kind: Any, values: Mapping[str, Any]) -> list[str]:
    """How values that followed from the data are named to a user.

    Args:
        kind: the dataclass of a family's options.
        values: some of its fields.
    """
    texts = []
    for one in fields(kind):
        if one.name in values and one.metadata.get("shown"):
            value = values[one.name]
            text = " ".join(f"{side:g}" for side in value) if isinstance(value, list | tuple) else str(value)
            texts.append(one.metadata["shown"].format(text))
    return texts


def _is_automatic(options: Any, one: Any) -> bool:
    return "usual" in one.metadata and getattr(options, one.name) == AUTO


def require_valid(options: Any) -> None:
    """Refuse settings of a family that can't work.

    Numbers lie within the bounds of their field (`bounded`, `fitted_to_data`), sides of anchors are above zero, one for
    each level, and names are those of the field's `Literal`. What is fitted to the data may be `auto`.

    Args:
        options: a dataclass with a default for every field.

    Raises:
        InputError: naming the first such setting, its range and its value.
    """
    hints = get_type_hints(type(options))
    for one in fields(options):
        if _is_automatic(options, one):
            continue
        value, usual = getattr(options, one.name), one.metadata.get("usual", one.default)
        fits, wanted = _judged(value, usual, one.metadata.get("bounds"), hints[one.name])
        if not fits:
            wanted += ", or auto" * ("usual" in one.metadata)
            raise InputError(f"--detector.{one.name.replace('_', '-')} must be {wanted}, not {shown(value)}.")


def _judged(value: Any, usual: Any, bounds: tuple[float, float] | None, hint: Any) -> tuple[bool, str]:
    """Whether a value fits a field, and what would."""
    if bounds is not None:
        least, most = bounds
        whole = isinstance(usual, int)
        number = type(value) is int or (not whole and type(value) is float)
        fits = number and least <= value <= most
        return fits, f"a number from {least} to {most}" if whole else f"between {least:g} and {most:g}"
    if isinstance(usual, bool):
        return isinstance(value, bool), "true or false"
    if isinstance(usual, tuple):
        return _sides(value, len(usual)), f"{len(usual)} sides of 1 pixel or more"
    names = [name for name in get_args(hint) if name != AUTO]
    return isinstance(value, str) and value in names, f"one of {', '.join(names)}"


def _sides(value: Any, count: int) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        and all(type(side) in (int, float) and 1 <= side < math.inf for side in value)
    )
