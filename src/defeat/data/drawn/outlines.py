"""Outlines of shapes as signed distances, from which coverage, relief and shadow are computed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Single or double precision, as that of the coordinates.
Floats = NDArray[np.floating]

# Radius of a star's inner corners, half the width of a cross's arms, half the width of a ring's band.
_STAR_WAIST = 0.42
_CROSS_ARM = 0.3
_RING_BAND = 0.22


@dataclass(frozen=True)
class Outline:
    """A closed outline in the scene.

    Attributes:
        name: a key of `DISTANCES`.
        x: column of the centre in pixels.
        y: row of the centre in pixels.
        size: diameter of the circumscribed circle in pixels; length of a stick.
        angle: rotation in radians.
        stretch: ratio of the extents across and along the axis at `angle`, 0..1.
        roundness: radius of the corners over half the size, 0..1.
    """

    name: str
    x: float
    y: float
    size: float
    angle: float
    stretch: float = 1.0
    roundness: float = 0.0

    def distance(self, columns: Floats, rows: Floats) -> Floats:
        """Signed distance from the outline in pixels, negative inside; if stretched, exact only on the outline.

        Args:
            columns: (1, W) coordinates in pixels.
            rows: (H, 1) coordinates in pixels.

        Returns:
            (H, W) in the precision of the coordinates.
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
    """Line with round ends; roundness is its width."""
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
    """Polygon or star with corners on the unit circle, and at radius `waist` halfway between them."""
    u, v = _fold(u, v, corners)
    scale = 1 - roundness
    half = math.pi / corners
    # In the folded plane the outline is one straight edge, from an outer corner to the middle between two corners.
    edge_u, edge_v = scale * (waist * math.cos(half) - 1), scale * waist * math.sin(half)
    from_u = u - scale
    along = np.clip((from_u * edge_u + v * edge_v) / (edge_u**2 + edge_v**2), 0, 1)
    distance = np.hypot(from_u - along * edge_u, v - along * edge_v)
    return np.asarray(np.where(edge_u * v > edge_v * from_u, -distance, distance) - roundness)


def _fold(u: Floats, v: Floats, corners: int) -> tuple[Floats, Floats]:
    """Rotate and reflect all points into the sector between the first corner and the middle of the first side."""
    sector = 2 * math.pi / corners
    angle = np.abs((np.arctan2(v, u) + sector / 2) % sector - sector / 2)
    radius = np.hypot(u, v)
    return radius * np.cos(angle), radius * np.sin(angle)


# Distance functions (u, v, roundness) of outlines with half size 1 around the origin.
DISTANCES: dict[str, Callable[[Floats, Floats, float], Floats]] = {
    "cross": _cross,
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "stick": _stick,
    "triangle": _triangle,
}
