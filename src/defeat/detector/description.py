"""Validation of `model.json`, an untrusted file: types and ranges are checked before a detector is built."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from defeat.errors import InputError, quoted

LEAST_WIDTH = 0.1  # share of the channels of a backbone that `--width` may keep
LARGEST_COLOUR = 1e6  # of means and deviations, whatever their unit
LARGEST_SIDE = 16_384  # pixels; a larger image would fill the memory of any device


def default_max_size(size: int) -> int:
    """Default upper limit of the long side of an image, in pixels: 5/3 of the short side, 1333 for 800."""
    return round(size * 5 / 3)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _integer(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_text, value)) and len(set(value)) == len(value)


def _colour(least: float) -> Callable[[Any], bool]:
    def accepts(value: Any) -> bool:
        numeric = isinstance(value, list) and all(type(channel) in (int, float) for channel in value)
        return numeric and len(value) == 3 and all(least <= channel <= LARGEST_COLOUR for channel in value)

    return accepts


@dataclass(frozen=True)
class Rule:
    """Valid values of a field.

    Attributes:
        accepts: whether a value is valid.
        expected: description of valid values, for messages.
    """

    accepts: Callable[[Any], bool]
    expected: str


def name_of(kind: str) -> Rule:
    """Rule for a name."""
    return Rule(_text, f"the name of a {kind}")


def integer(least: int, most: int, expected: str) -> Rule:
    """Rule for an integer in a range."""
    return Rule(_integer(least, most), expected)


SIDE = integer(1, LARGEST_SIDE, f"a number of pixels from 1 to {LARGEST_SIDE}")
NAMES = Rule(_names, "a list of unique names")
COLOUR = Rule(_colour(-LARGEST_COLOUR), "three numbers")
SHARE = Rule(
    lambda value: type(value) in (int, float) and LEAST_WIDTH <= value <= 1, f"a share from {LEAST_WIDTH} to 1"
)
POSITIVE_COLOUR = Rule(_colour(1e-6), "three numbers above zero")
SETTINGS = Rule(lambda value: isinstance(value, dict), "a map of settings")


def validated(rule: Rule, added: bool = False, **default: Any) -> Any:
    """Define a field of a dataclass that is read from an untrusted file.

    Args:
        rule: valid values.
        added: whether files of earlier versions lack it.
        default: `default` or `default_factory`, as of `dataclasses.field`.
    """
    return field(metadata={"rule": rule, "added": added}, **default)


def require_description(kind: Any, content: dict[str, Any], origin: object) -> None:
    """Refuse a description with invalid values.

    Args:
        kind: dataclass of the description, with a rule for each field.
        content: content of a `model.json`.
        origin: the file, for messages.

    Raises:
        InputError: the message names the field, its value and the valid values.
    """
    for entry in fields(kind):
        name, rule = entry.name, entry.metadata["rule"]
        if name not in content:
            if entry.metadata["added"]:
                continue
            raise InputError(f"{origin} does not describe a detector: the field {name!r} is missing.")
        if not rule.accepts(content[name]):
            raise InputError(f"{origin}: the field {name!r} is {quoted(content[name])}, not {rule.expected}.")
