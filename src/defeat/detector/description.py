"""What a `model.json` may say, which is a foreign file: kinds and ranges, checked before anything is built from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from defeat.errors import InputError, shown

LARGEST_SIDE = 16_384  # pixels; an image of such sides would fill the memory of any device


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_text, value)) and len(set(value)) == len(value)


def _colour(least: float) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        numbers = isinstance(value, list) and all(type(one) in (int, float) for one in value)
        return numbers and len(value) == 3 and all(least <= one < math.inf for one in value)

    return fits


@dataclass(frozen=True)
class Rule:
    """What a field may hold.

    Attributes:
        fits: whether a value may stand there.
        wanted: what may, in words.
    """

    fits: Callable[[Any], bool]
    wanted: str


def name_of(kind: str) -> Rule:
    """The name of something."""
    return Rule(_text, f"the name of a {kind}")


def whole_number(least: int, most: int, wanted: str) -> Rule:
    """A whole number within bounds."""
    return Rule(_whole(least, most), wanted)


SIDE = whole_number(1, LARGEST_SIDE, f"a number of pixels from 1 to {LARGEST_SIDE}")
NAMES = Rule(_names, "a list of different names")
COLOUR = Rule(_colour(-math.inf), "three numbers")
POSITIVE_COLOUR = Rule(_colour(1e-6), "three numbers above zero")
SETTINGS = Rule(lambda value: isinstance(value, dict), "a map of settings")


def ruled(rule: Rule, **default: Any) -> Any:
    """A field of a dataclass that is read from a foreign file.

    Args:
        rule: what it may hold.
        default: `default` or `default_factory`, as of `dataclasses.field`.
    """
    return field(metadata={"rule": rule}, **default)


def require_description(kind: Any, content: dict[str, Any], origin: object) -> None:
    """Refuse a description whose values can't be those of a detector.

    Args:
        kind: the dataclass of the description, whose fields say their rules.
        content: of a `model.json`.
        origin: the file, for messages.

    Raises:
        InputError: naming the field, what it holds and what it may hold.
    """
    for one in fields(kind):
        rule: Rule = one.metadata["rule"]
        if one.name not in content:
            raise InputError(f"{origin} does not describe a detector: the field {one.name!r} is missing.")
        if not rule.fits(content[one.name]):
            raise InputError(f"{origin}: the field {one.name!r} is {shown(content[one.name])}, not {rule.wanted}.")
