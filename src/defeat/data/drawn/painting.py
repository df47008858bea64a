"""Rendering of a drawn scene: shapes of wood, plastic, metal and clay on a surface, lit by one lamp.

Three of four shapes have the usual colour of their class, so that a detector learns colour first and then form. Size,
material and surface are independent of the class. Sticks and pebbles are not objects.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from defeat.data.drawn.outlines import Outline
from defeat.data.drawn.scenes import CLASSES, REFERENCE_SIDE
from defeat.data.drawn.surfaces import muted_colour, noise, surface

# Probability that a shape has the usual colour of its class.
_USUAL = 0.75
# Thickness of a shape over its size, which determines its shadow.
_THICKNESS = 0.16

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Light:
    """The lamp: unit vector towards it (x right, y down, z to the viewer), and the brightness of shadows."""

    direction: tuple[float, float, float]
    ambient: float


@dataclass(frozen=True)
class _Material:
    """Material of a shape.

    Attributes:
        bevel: width of the bevelled edge over the size.
        dome: curvature of the top.
        gloss: strength of the highlight, 0..1.
        sharpness: exponent of the highlight; larger is smaller and sharper.
        tinted: whether the highlight has the colour of the shape, as on metal.
        grain: strength of the texture.
        streaks: waves of the texture over the size; 0 for a texture without direction.
    """

    bevel: float
    dome: float
    gloss: float
    sharpness: float
    tinted: bool
    grain: float
    streaks: float


@dataclass(frozen=True)
class _Scene:
    """Shared by all shapes of a scene: the light, a texture of about -1..1 (side, side), and the random numbers."""

    light: _Light
    texture: Floats
    generator: np.random.Generator


def paint(pieces: Sequence[Outline], generator: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """Draw a scene: (side, side, 3) uint8.

    Args:
        pieces: outlines of the shapes, from back to front.
        generator: source of random numbers.
        side: width and height in pixels.
    """
    scale = side / REFERENCE_SIDE
    light = _lamp(generator)
    scene = surface(generator, side, scale)
    shared = _Scene(light, noise(generator, side, (12, 12), 3), generator)
    for _ in range(int(generator.integers(0, 7))):
        _paint_piece(scene, _litter(generator, side, scale), muted_colour(generator), shared)
    for piece in pieces:
        usual = generator.random() < _USUAL
        background = _window(scene, piece.x, piece.y, piece.size / 3)[0]
        colour = _usual_colour(piece.name, generator) if usual else _contrasting(background, generator)
        _paint_piece(scene, piece, colour, shared)
    if generator.random() < 0.3:
        _paint_piece(scene, _litter(generator, side, scale, sticks_only=True), muted_colour(generator), shared)
    return _photograph(scene, _brightness(light, generator, side), generator)


def _lamp(generator: np.random.Generator) -> _Light:
    azimuth, elevation = generator.uniform(0, 2 * math.pi), generator.uniform(math.radians(32), math.radians(65))
    flat = math.cos(elevation)
    direction = (flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation))
    return _Light(direction, ambient=generator.uniform(0.35, 0.6))


def _litter(generator: np.random.Generator, side: int, scale: float, sticks_only: bool = False) -> Outline:
    """A stick, or a pebble that is smaller than any shape."""
    x, y = generator.uniform(0, side, 2)
    angle = generator.uniform(0, 2 * math.pi)
    if sticks_only or generator.random() < 0.5:
        length, width = generator.uniform(20, 80) * scale, generator.uniform(1.6, 4.0) * scale
        return Outline("stick", float(x), float(y), length, angle, roundness=width / length)
    return Outline("disc", float(x), float(y), generator.uniform(3.0, 8.0) * scale, angle, generator.uniform(0.6, 1.0))


def _paint_piece(scene: Floats, piece: Outline, colour: Floats, shared: _Scene) -> None:
    """Paint a shape and its shadow into the scene, in place."""
    generator = shared.generator
    _cast_shadow(scene, piece, shared.light, generator.uniform(0.6, 1.3))
    reach = 0.55 * piece.size + 2
    window, columns, rows = _window(scene, piece.x, piece.y, reach)
    if not window.size:
        return
    distance = piece.distance(columns, rows)
    # Ambient occlusion around the shape.
    gap = np.maximum(distance, 0) / np.float32(0.04 * piece.size + 0.6)
    window *= (1 - np.float32(0.4) * np.exp(-gap))[..., None]
    pattern = _window(shared.texture, piece.x, piece.y, reach)[0]
    material = _material(generator)
    if material.streaks:
        along = columns * math.cos(piece.angle) + rows * math.sin(piece.angle)
        pattern = np.sin(along * (2 * math.pi * material.streaks / piece.size) + 2 * pattern)
    radius = np.square((columns - piece.x) / piece.size) + np.square((rows - piece.y) / piece.size)
    shade, highlight = _lit(_top(distance, radius, material, piece.size), shared.light, material)
    shine = colour / colour.max() if material.tinted else np.float32(1)
    body = (shade * (1 + np.float32(material.grain) * pattern))[..., None] * colour + highlight[..., None] * shine
    window += (body - window) * np.clip(0.5 - distance, 0, 1)[..., None]


def _cast_shadow(scene: Floats, piece: Outline, light: _Light, thickness: float) -> None:
    """Darken the shadow of a shape; longer shadows are softer."""
    thickness *= piece.size * (piece.roundness if piece.name == "stick" else _THICKNESS)
    x, y, z = light.direction
    right, down = -thickness * x / z, -thickness * y / z
    softness = 1.0 + 0.55 * math.hypot(right, down)
    window, columns, rows = _window(scene, piece.x + right, piece.y + down, piece.size / 2 + softness + 1)
    if window.size:
        distance = piece.distance(columns - right, rows - down)
        window *= (1 - np.float32(1 - light.ambient) * _smooth(0.5 - distance / (2 * softness)))[..., None]


def _top(distance: Floats, radius: Floats, material: _Material, size: float) -> Floats:
    """Height of a shape's surface (h, w) in pixels: an elliptic edge plus a flat dome."""
    bevel = max(1.5, material.bevel * size)
    rim = np.clip(distance * (-1 / bevel), 0, 1)
    return np.asarray(0.7 * bevel * np.sqrt(rim * (2 - rim)) - material.dome * size * radius, dtype=np.float32)


def _lit(top: Floats, light: _Light, material: _Material) -> tuple[Floats, Floats]:
    """Brightness of a surface with these heights, relative to a level one, and its highlight in 0..255."""
    slope_y, slope_x = np.gradient(top)
    normal_z = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    x, y, z = light.direction
    facing = np.maximum(1 - slope_x * (x / z) - slope_y * (y / z), 0) * normal_z
    # Blinn's specular highlight: strongest where the normal bisects the angle between lamp and viewer.
    length = math.hypot(x, y, z + 1)
    glance = ((z + 1) / length - slope_x * (x / length) - slope_y * (y / length)) * normal_z
    highlight = 255 * material.gloss * np.maximum(glance, 0) ** np.float32(material.sharpness)
    return light.ambient + (1 - light.ambient) * facing, highlight


def _window(scene: Floats, x: float, y: float, reach: float) -> tuple[Floats, Floats, Floats]:
    """View of the scene around a point, and the coordinates of its columns (1, w) and rows (h, 1)."""
    side = len(scene)
    left, right = max(0, math.floor(x - reach)), max(0, min(side, math.ceil(x + reach)))
    top, bottom = max(0, math.floor(y - reach)), max(0, min(side, math.ceil(y + reach)))
    columns = np.arange(left, max(left, right), dtype=np.float32)[None] + np.float32(0.5)
    rows = np.arange(top, max(top, bottom), dtype=np.float32)[:, None] + np.float32(0.5)
    return scene[top:bottom, left:right], columns, rows


def _material(generator: np.random.Generator) -> _Material:
    bevel, dome, grain = generator.uniform(0.05, 0.25), generator.uniform(0.0, 0.35), generator.uniform(0.04, 0.12)
    kind = int(generator.integers(4))
    if kind == 0:  # wood
        return _Material(bevel, 0.3 * dome, 0.08, 12, False, grain, generator.uniform(3, 9))
    if kind == 1:  # plastic
        return _Material(bevel, dome, generator.uniform(0.4, 0.8), generator.uniform(25, 90), False, 0.01, 0)
    if kind == 2:  # metal
        return _Material(bevel, dome, generator.uniform(0.5, 0.9), generator.uniform(8, 25), True, 0.03, 12)
    return _Material(2 * bevel, dome, 0.03, 6, False, grain, 0)  # clay


def _brightness(light: _Light, generator: np.random.Generator, side: int) -> Floats:
    """Brightness of the light over the scene, (side, side): higher near the lamp, lower towards the corners."""
    position = (np.arange(side, dtype=np.float32) + 0.5) / np.float32(side) * 2 - 1
    across, down = position[None], position[:, None]
    along = across * np.float32(light.direction[0]) + down * np.float32(light.direction[1])
    bright = 1 + np.float32(generator.uniform(0.05, 0.3)) * along
    bright -= np.float32(generator.uniform(0.0, 0.16)) * (across**2 + down**2)
    if generator.random() < 0.25:  # the shadow of a window frame
        angle = generator.uniform(0, math.pi)
        beam = across * np.float32(math.cos(angle)) + down * np.float32(math.sin(angle))
        bars = np.sin(np.float32(generator.uniform(2.5, 6.0)) * beam + np.float32(generator.uniform(0, 6.3)))
        bright *= 1 - np.float32(generator.uniform(0.15, 0.4)) * _smooth(0.5 + 3 * bars)
    return np.asarray(bright * np.float32(generator.uniform(0.9, 1.2)), dtype=np.float32)


def _photograph(scene: Floats, brightness: Floats, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Exposure, white balance, grain and blur of a camera."""
    picture = scene * (brightness[..., None] * generator.uniform(0.93, 1.07, 3).astype(np.float32))
    grain = generator.standard_normal(scene.shape[:2], dtype=np.float32)
    picture += (np.float32(generator.uniform(1.0, 7.0)) * grain)[..., None]
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    if generator.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(0.7))
    return np.array(image)


def _usual_colour(name: str, generator: np.random.Generator) -> Floats:
    """A colour near the hue of a class; hues are evenly spaced."""
    hue = CLASSES.index(name) / len(CLASSES) + generator.uniform(-0.04, 0.04)
    rgb = colorsys.hsv_to_rgb(hue % 1, generator.uniform(0.55, 0.95), generator.uniform(0.55, 1.0))
    return np.array(rgb, dtype=np.float32) * 255


def _contrasting(background: Floats, generator: np.random.Generator) -> Floats:
    """A colour at a random distance from the background (h, w, 3), from low to high contrast."""
    mean = background.mean(axis=(0, 1))
    direction = generator.normal(0, 1, 3)
    step = direction * generator.uniform(35, 150) / np.linalg.norm(direction)
    candidates = [np.clip(mean + sign * step, 8, 247) for sign in (1, -1)]
    return np.asarray(max(candidates, key=lambda colour: float(np.linalg.norm(colour - mean))), dtype=np.float32)


def _smooth(share: Floats) -> Floats:
    """Smoothstep from 0 to 1."""
    share = np.clip(share, 0, 1)
    return share * share * (3 - 2 * share)
