"""Synthetic scenes: shapes of different classes, scales, colours and contrasts on textured backgrounds.

Three shapes of four wear the usual colour of their class, the fourth any colour: colour is a hint that is learned soon,
and form what is left to learn. Size and texture say nothing. Everything is drawn from generators that the caller seeds.
"""

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

CLASSES = ("cross", "disc", "ring", "square", "star", "triangle")
# Sizes are given for a scene of this side, in pixels, and scale with it.
_REFERENCE_SIDE = 128
_MIN_SIZE, _MAX_SIZE = 16.0, 72.0
# How often a shape wears the usual colour of its class.
_USUAL = 0.75
# Less than this part of a shape in sight, and it is not drawn at all.
_MIN_VISIBLE = 0.3
_SUPERSAMPLING = 4

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Shape:
    """A shape of a scene.

    Attributes:
        name: its class.
        coverage: (side, side) 0..1, how much of each pixel of the scene it covers.
        box: x1 y1 x2 y2 around the pixels that it covers at least half, ends exclusive.
    """

    name: str
    coverage: Floats
    box: tuple[int, int, int, int]

    @property
    def solid(self) -> Mask:
        """(side, side) bool, the pixels that it covers at least half."""
        return self.coverage >= 0.5


def lay_out(generator: np.random.Generator, side: int) -> list[Shape]:
    """Place the shapes of a scene, from back to front; one scene in twenty is empty."""
    wanted = 0 if generator.random() < 0.05 else int(generator.integers(1, 9))
    shapes: list[Shape] = []
    visible: list[Mask] = []
    areas: list[float] = []
    for _ in range(4 * wanted):
        if len(shapes) == wanted:
            break
        shape, area = _propose(generator, side)
        solid = shape.solid
        remaining = [mask & ~solid for mask in visible]
        seen = [mask.sum() / whole for mask, whole in zip([*remaining, solid], [*areas, area], strict=True)]
        if min(seen) >= _MIN_VISIBLE:
            shapes.append(shape)
            visible = [*remaining, solid]
            areas.append(area)
    return shapes


def paint(shapes: list[Shape], generator: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """Draw a scene: (side, side, 3) uint8."""
    scene = _add_clutter(_background(generator, side), generator, int(generator.integers(0, 9)))
    for shape in shapes:
        behind = scene[shape.solid].mean(axis=0)
        usual = generator.random() < _USUAL
        colour = _usual_colour(shape.name, generator) if usual else _contrasting(behind, generator)
        texture = _texture(generator, side)[..., None] * generator.uniform(0.0, 14.0)
        coverage = shape.coverage[..., None]
        scene = scene * (1 - coverage) + (colour + texture) * coverage
    if generator.random() < 0.25:
        scene = _add_clutter(scene, generator, 2, lines_only=True)
    scene += generator.normal(0.0, generator.uniform(1.0, 7.0), scene.shape)
    image = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    if generator.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(0.7))
    return np.array(image)


def _propose(generator: np.random.Generator, side: int) -> tuple[Shape, float]:
    """A random shape, and the pixels that it would cover if the scene did not end."""
    name = CLASSES[int(generator.integers(len(CLASSES)))]
    # Evenly spread on a logarithmic scale: as many small shapes as large ones.
    size = math.exp(generator.uniform(math.log(_MIN_SIZE), math.log(_MAX_SIZE))) * side / _REFERENCE_SIDE
    centre = generator.uniform(0.3 * size, side - 0.3 * size, 2)
    angle, stretch = generator.uniform(0, 2 * math.pi), generator.uniform(0.8, 1.0)
    half = math.ceil(size / 2) + 1
    left, top = math.floor(centre[0]) - half, math.floor(centre[1]) - half
    width = 2 * half + 1
    canvas = Image.new("L", (width * _SUPERSAMPLING, width * _SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    for outline, fill in _outlines(name):
        points = (outline * (size / 2) * np.array([1.0, stretch])) @ turn.T + centre - (left, top)
        pen.polygon([(float(x), float(y)) for x, y in points * _SUPERSAMPLING], fill=fill)
    patch = np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float64) / 255
    # A frame around the scene, so that shapes across its border need no special case.
    framed = np.zeros((side + 2 * width, side + 2 * width))
    framed[top + width : top + 2 * width, left + width : left + 2 * width] = patch
    coverage = framed[width:-width, width:-width]
    return Shape(name, coverage, _extent(coverage >= 0.5)), float((patch >= 0.5).sum())


def _outlines(name: str) -> list[tuple[Floats, int]]:
    """Polygons within the unit circle, each filled (255) or cut out (0)."""
    if name == "disc":
        return [(_regular(40), 255)]
    if name == "ring":
        return [(_regular(40), 255), (0.55 * _regular(40), 0)]
    if name == "square":
        return [(_regular(4), 255)]
    if name == "triangle":
        return [(_regular(3), 255)]
    if name == "star":
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
        return [(_regular(10) * radii[:, None], 255)]
    arm, tip = 0.3, 0.95
    quarter = np.array([(arm, arm), (arm, tip), (-arm, tip)])
    turns = [np.array([[c, -s], [s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return [(np.concatenate([quarter @ turn.T for turn in turns]), 255)]


def _regular(corners: int) -> Floats:
    angles = 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _extent(mask: Mask) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _background(generator: np.random.Generator, side: int) -> Floats:
    scene = np.broadcast_to(generator.uniform(40, 215, 3), (side, side, 3)).copy()
    for _ in range(int(generator.integers(1, 3))):
        tint = generator.uniform(0.4, 1.0, 3) * generator.uniform(6.0, 32.0)
        scene += _texture(generator, side)[..., None] * tint
    return scene


def _texture(generator: np.random.Generator, side: int) -> Floats:
    """(side, side) about -1..1: stripes, a gradient, or noise of several octaves."""
    kind = generator.choice(["stripes", "gradient", "noise"])
    if kind == "noise":
        return _noise(generator, side)
    angle, phase = generator.uniform(0, 2 * math.pi, 2)
    y, x = np.mgrid[:side, :side] / side
    along = x * math.cos(angle) + y * math.sin(angle)
    if kind == "gradient":
        return np.asarray(2 * (along - along.mean()))
    return np.asarray(np.sin(2 * math.pi * generator.uniform(2, 16) * along + phase))


def _noise(generator: np.random.Generator, side: int) -> Floats:
    total = np.zeros((side, side))
    weight = 1.0
    for cells in (3, 6, 12, 24):
        grid = Image.fromarray(generator.uniform(-1, 1, (cells, cells)).astype(np.float32))
        total += weight * np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))
        weight *= 0.6
    return total


def _usual_colour(name: str, generator: np.random.Generator) -> Floats:
    """A colour near the hue of a class; the hues are spread evenly."""
    hue = CLASSES.index(name) / len(CLASSES) + generator.uniform(-0.04, 0.04)
    rgb = colorsys.hsv_to_rgb(hue % 1, generator.uniform(0.6, 1.0), generator.uniform(0.6, 1.0))
    return 255 * np.array(rgb)


def _contrasting(behind: Floats, generator: np.random.Generator) -> Floats:
    """A colour at a random distance from the one behind: from hardly visible to glaring."""
    distance = generator.uniform(35, 150)
    direction = generator.normal(0, 1, 3)
    direction /= np.linalg.norm(direction)
    candidates = [np.clip(behind + sign * distance * direction, 0, 255) for sign in (1, -1)]
    return max(candidates, key=lambda colour: float(np.linalg.norm(colour - behind)))


def _add_clutter(scene: Floats, generator: np.random.Generator, count: int, lines_only: bool = False) -> Floats:
    """Lines, and blobs smaller than any shape: things that are no object."""
    side = len(scene)
    image = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(count):
        x, y, far_x, far_y = (int(value) for value in generator.integers(0, side, 4))
        red, green, blue = (int(value) for value in generator.integers(0, 256, 3))
        radius = int(generator.integers(1, 3))
        if lines_only or generator.random() < 0.5:
            pen.line((x, y, far_x, far_y), fill=(red, green, blue), width=1)
        else:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(red, green, blue))
    return np.asarray(image, dtype=np.float64)
