"""Settings of a family may come from a command line or from a foreign `model.json`: kinds and ranges are checked."""

import math
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from defeat.errors import InputError, shown

MOST = 1_000_000  # of anything that is counted


def require_valid(options: Any) -> None:
    """Refuse settings of a family that can't work; the kind of each follows from its default.

    Counts are 1 or more (or from the field's metadata `least` on), numbers with a fraction are parts or scores in 0..1,
    and sides of anchors are above zero, one for each level.

    Args:
        options: a dataclass with a default for every field.

    Raises:
        InputError: naming the first such setting, its range and its value.
    """
    hints = get_type_hints(type(options))
    for one in fields(options):
        value, usual = getattr(options, one.name), one.default
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(usual, bool):
            fits, wanted = isinstance(value, bool), "true or false"
        elif isinstance(usual, int):
            least = one.metadata.get("least", 1)
            fits, wanted = type(value) is int and least <= value <= MOST, f"a number from {least} to {MOST}"
        elif isinstance(usual, float):
            fits, wanted = number and 0 <= value <= 1, "between 0 and 1"
        elif isinstance(usual, tuple):
            fits, wanted = _sides(value, len(usual)), f"{len(usual)} sides of 1 pixel or more"
        else:
            names = get_args(hints[one.name])
            fits, wanted = isinstance(value, str) and value in names, f"one of {', '.join(names)}"
        if not fits:
            raise InputError(f"--detector.{one.name.replace('_', '-')} must be {wanted}, not {shown(value)}.")


def _sides(value: Any, count: int) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        and all(type(side) in (int, float) and 1 <= side < math.inf for side in value)
    )
