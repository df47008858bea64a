"""The outlines of the things in a drawn scene, as signed distances: from them follow coverage, relief and shadow."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Of single or double precision: an outline keeps that of the coordinates.
Floats = NDArray[np.floating]

# Radius of the inner corners of a star, half the width of the arms of a cross, half that of the band of a ring.
_STAR_WAIST = 0.42
_CROSS_ARM = 0.3
_RING_BAND = 0.22


@dataclass(frozen=True)
class Outline:
    """A closed outline in the scene.

    Attributes:
        name: a key of `DISTANCES`.
        x: column of the centre, in pixels.
        y: row of the centre, in pixels.
        size: diameter of the circle around it, in pixels; of a stick, its length.
        angle: by how much it is turned, in radians.
        stretch: extent across the axis at `angle` over that along it, 0..1.
        roundness: radius of its corners over half its size, 0..1.
    """

    name: str
    x: float
    y: float
    size: float
    angle: float
    stretch: float = 1.0
    roundness: float = 0.0

    def distance(self, columns: Floats, rows: Floats) -> Floats:
        """Distance from the outline in pixels, negative within it; exact on the outline alone where it is stretched.

        Args:
            columns: (1, W) coordinates in pixels.
            rows: (H, 1) coordinates in pixels.

        Returns:
            (H, W), of the precision of the coordinates.
        """
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        half = self.size / 2
        x, y = (columns - self.x) / half, (rows - self.y) / half
        u = x * cosine + y * sine
        v = y * (cosine / self.stretch) - x * (sine / self.stretch)
        return np.asarray(half * DISTANCES[self.name](u, v, self.roundness))


def _disc(u: Floats, v: Floats, _: float) -> Floats:
    return np.hypot(u, v) - 1


def _ring(u: Floats, v: Floats, _: float) -> Floats:
    return np.abs(np.hypot(u, v) - (1 - _RING_BAND)) - _RING_BAND


def _stick(u: Floats, v: Floats, roundness: float) -> Floats:
    """A line with round ends; its width is its roundness."""
    return np.hypot(np.maximum(np.abs(u) - (1 - roundness), 0), v) - roundness


def _square(u: Floats, v: Floats, roundness: float) -> Floats:
    return _radial(u, v, 4, math.cos(math.pi / 4), roundness)


def _triangle(u: Floats, v: Floats, roundness: float) -> Floats:
    return _radial(u, v, 3, math.cos(math.pi / 3), roundness)


def _star(u: Floats, v: Floats, roundness: float) -> Floats:
    return _radial(u, v, 5, _STAR_WAIST, roundness)


def _cross(u: Floats, v: Floats, roundness: float) -> Floats:
    u, v = _fold(u, v, 4)
    tip, arm = 0.95 - roundness, _CROSS_ARM - roundness
    outside = np.hypot(np.maximum(u - tip, 0), np.maximum(v - arm, 0))
    inside = np.minimum(tip - u, np.hypot(np.maximum(arm - u, 0), arm - v))
    return np.asarray(np.where((u < tip) & (v < arm), -inside, outside) - roundness)


def _radial(u: Floats, v: Floats, corners: int, waist: float, roundness: float) -> Floats:
    """A polygon whose corners lie on the unit circle, and at `waist` halfway between two of them."""
    u, v = _fold(u, v, corners)
    scale = 1 - roundness
    half = math.pi / corners
    # In the folded plane its outline is one straight edge, from an outer corner to the middle between two.
    edge_u, edge_v = scale * (waist * math.cos(half) - 1), scale * waist * math.sin(half)
    from_u = u - scale
    along = np.clip((from_u * edge_u + v * edge_v) / (edge_u**2 + edge_v**2), 0, 1)
    distance = np.hypot(from_u - along * edge_u, v - along * edge_v)
    return np.asarray(np.where(edge_u * v > edge_v * from_u, -distance, distance) - roundness)


def _fold(u: Floats, v: Floats, corners: int) -> tuple[Floats, Floats]:
    """Turn and mirror all points into the sector between the first corner and the middle of the first side."""
    sector = 2 * math.pi / corners
    angle = np.abs((np.arctan2(v, u) + sector / 2) % sector - sector / 2)
    radius = np.hypot(u, v)
    return radius * np.cos(angle), radius * np.sin(angle)


# Outlines of half size 1 around the origin: (u, v, roundness) to the distance.
DISTANCES: dict[str, Callable[[Floats, Floats, float], Floats]] = {
    "cross": _cross,
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "stick": _stick,
    "triangle": _triangle,
}
