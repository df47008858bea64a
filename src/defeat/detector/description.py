"""What a `model.json` may say, which is a foreign file: kinds and ranges, checked before anything is built from it."""

import math
from collections.abc import Callable
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


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "family": (_text, "the name of a detector"),
    "backbone": (_text, "the name of a backbone"),
    "classes": (_names, "a list of different names"),
    "size": (_whole(1, LARGEST_SIDE), f"a number of pixels from 1 to {LARGEST_SIDE}"),
    "max_size": (_whole(1, LARGEST_SIDE), f"a number of pixels from 1 to {LARGEST_SIDE}"),
    "norm": (_text, "the name of a normalisation"),
    "neck_channels": (_whole(1, 8192), "a number of channels from 1 to 8192"),
    "frozen_stages": (_whole(0, 99), "a number of stages, 0 or more"),
    "mean": (_colour(-math.inf), "three numbers"),
    "std": (_colour(1e-6), "three numbers above zero"),
    "options": (lambda value: isinstance(value, dict), "a map of settings"),
}


def require_description(content: dict[str, Any], origin: object) -> None:
    """Refuse a description whose values can't be those of a detector.

    Args:
        content: of a `model.json`.
        origin: the file, for messages.

    Raises:
        InputError: naming the field, what it holds and what it may hold.
    """
    for name, (fits, wanted) in RULES.items():
        if name not in content:
            raise InputError(f"{origin} does not describe a detector: the field {name!r} is missing.")
        if not fits(content[name]):
            raise InputError(f"{origin}: the field {name!r} is {shown(content[name])}, not {wanted}.")
