"""Boxes around the shapes that annotation tools draw, in pixels."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from defeat.data.dataset import finite
from defeat.errors import InputError, quoted

Corners = tuple[float, float, float, float]


def around_points(points: Sequence[tuple[float, float]]) -> Corners:
    """Box around points."""
    columns, rows = zip(*points, strict=True)
    return min(columns), min(rows), max(columns), max(rows)


def around_ellipse(x: float, y: float, radius_x: float, radius_y: float, angle: float = 0.0) -> Corners:
    """Box around an ellipse.

    Args:
        x: column of the centre.
        y: row of the centre.
        radius_x: half the axis that is horizontal at an angle of 0.
        radius_y: half the other axis.
        angle: rotation in radians.
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    half_width = math.hypot(radius_x * cosine, radius_y * sine)
    half_height = math.hypot(radius_x * sine, radius_y * cosine)
    return x - half_width, y - half_height, x + half_width, y + half_height


def around_rotated(corners: Corners, angle: float) -> Corners:
    """Upright box around a box that is rotated about its centre by an angle in radians."""
    x1, y1, x2, y2 = corners
    x, y, half_width, half_height = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    width, height = half_width * cosine + half_height * sine, half_width * sine + half_height * cosine
    return x - width, y - height, x + width, y + height


def numbers(values: object, where: str) -> list[float]:
    """A list of numbers from a JSON file.

    Raises:
        InputError: it is something else, or a number is not finite.
    """
    if not isinstance(values, list) or not all(_is_number(value) for value in values):
        raise InputError(f"{where}: {quoted(values)} is not a list of numbers.")
    finite(values, where)
    return [float(value) for value in values]


def number(element: Mapping[str, object], key: str, where: str) -> float:
    """A number from a JSON object; raises InputError where it is missing or something else."""
    value = element.get(key)
    if not _is_number(value):
        raise InputError(f"{where}: its {key} is {quoted(value)}, not a number.")
    (result,) = numbers([value], where)
    return result


def dropped_shapes(kinds: Iterable[str]) -> list[str]:
    """A phrase about the shapes that were dropped because they have no area, given the kind of each."""
    counts = Counter(kinds)
    if not counts:
        return []
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return [f"{counts.total()} shapes dropped that are not the outline of an object ({listed})"]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
