"""Layout of a drawn scene: flat shapes of six classes and various sizes that overlap.

All random numbers come from generators that the caller seeds. `painting` renders the scene.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defeat.data.drawn.outlines import Outline

CLASSES = ("cross", "disc", "ring", "square", "star", "triangle")
# Sizes below refer to a scene of this side in pixels, and scale with it.
REFERENCE_SIDE = 128
_MIN_SIZE, _MAX_SIZE = 16.0, 72.0
# Smallest visible fraction of a shape.
_MIN_VISIBLE = 0.3

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Shape:
    """A shape of a scene.

    Attributes:
        outline: its form and position.
        solid: (side, side) bool, pixels whose centres it covers.
        box: x1 y1 x2 y2 around those pixels, ends exclusive.
    """

    outline: Outline
    solid: Mask
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """Name of its class."""
        return self.outline.name


def lay_out(generator: np.random.Generator, side: int) -> list[Shape]:
    """Choose the shapes of a scene, from back to front; one scene in twenty is empty."""
    count = 0 if generator.random() < 0.05 else int(generator.integers(1, 9))
    shapes: list[Shape] = []
    visible: list[Mask] = []
    areas: list[float] = []
    for _ in range(4 * count):
        if len(shapes) == count:
            break
        shape, area = _propose(generator, side)
        remaining = [mask & ~shape.solid for mask in visible]
        fractions = [mask.sum() / full for mask, full in zip([*remaining, shape.solid], [*areas, area], strict=True)]
        if min(fractions) >= _MIN_VISIBLE:
            shapes.append(shape)
            visible = [*remaining, shape.solid]
            areas.append(area)
    return shapes


def _propose(generator: np.random.Generator, side: int) -> tuple[Shape, float]:
    """A random shape, and the number of pixels that it would cover without the border of the scene."""
    # Log-uniform: as many small shapes as large ones.
    size = math.exp(generator.uniform(math.log(_MIN_SIZE), math.log(_MAX_SIZE))) * side / REFERENCE_SIDE
    x, y = generator.uniform(0.3 * size, side - 0.3 * size, 2)
    outline = Outline(
        CLASSES[int(generator.integers(len(CLASSES)))],
        x=float(x),
        y=float(y),
        size=size,
        angle=generator.uniform(0, 2 * math.pi),
        stretch=generator.uniform(0.8, 1.0),
        roundness=generator.uniform(0.0, 0.1),
    )
    half = math.ceil(size / 2) + 1
    left, top, width = math.floor(x) - half, math.floor(y) - half, 2 * half + 1
    centres = np.arange(width) + 0.5
    patch = outline.distance(left + centres[None], top + centres[:, None]) <= 0
    # A margin around the scene, so that shapes across its border need no special case.
    framed = np.zeros((side + 2 * width, side + 2 * width), dtype=np.bool_)
    framed[top + width : top + 2 * width, left + width : left + 2 * width] = patch
    solid = framed[width:-width, width:-width]
    return Shape(outline, solid, _extent(solid)), float(patch.sum())


def _extent(mask: Mask) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
