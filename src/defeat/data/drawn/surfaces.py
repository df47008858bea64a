"""Backgrounds of drawn scenes: floorboards, tiles, cloth, marble, paper, sand."""

import colorsys
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_WOODS = ((181, 134, 84), (146, 98, 60), (206, 170, 122), (104, 70, 48), (164, 140, 116), (92, 88, 84))
_MARBLES = ((222, 218, 210), (168, 172, 176), (70, 74, 80), (196, 176, 156), (96, 112, 104))
_SANDS = ((206, 180, 136), (172, 158, 138), (150, 128, 100), (120, 128, 98), (98, 100, 106))
# Side of a surface over that of the scene, so that it can be rotated by any angle.
_MARGIN = 1.45


def surface(generator: np.random.Generator, side: int, scale: float) -> Floats:
    """Draw a surface, rotated by a random angle.

    Args:
        generator: source of random numbers.
        side: width and height of the scene in pixels.
        scale: `side` over 128, the scale of all lengths.

    Returns:
        (side, side, 3) float32 in 0..255.
    """
    extent = math.ceil(side * _MARGIN)
    draw = _SURFACES[int(generator.integers(len(_SURFACES)))]
    flat = np.clip(draw(generator, extent, scale), 0, 255).astype(np.uint8)
    angle = generator.uniform(0, 2 * math.pi)
    cosine, sine = math.cos(angle), math.sin(angle)
    # Each pixel of the scene samples the surface, which is rotated around the common centre.
    offsets = [extent / 2 - side / 2 * (cosine + other) for other in (-sine, sine)]
    rotated = Image.fromarray(flat).transform(
        (side, side),
        Image.Transform.AFFINE,
        (cosine, -sine, offsets[0], sine, cosine, offsets[1]),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(rotated, dtype=np.float32)


def noise(generator: np.random.Generator, extent: int, cells: tuple[int, int], octaves: int = 1) -> Floats:
    """Smooth noise of about -1..1; each octave has twice the frequency and 0.55 times the amplitude.

    Args:
        generator: source of random numbers.
        extent: width and height in pixels.
        cells: grid points of the first octave, down and across.
        octaves: number of octaves.

    Returns:
        (extent, extent) float32.
    """
    total = np.zeros((1, 1), dtype=np.float32)
    for octave in range(octaves):
        down, across = (min(count << octave, extent) for count in cells)
        grid = generator.random((down, across), dtype=np.float32) * 2 - 1
        total = _resized(total, down, across) + np.float32(0.55**octave) * grid
    return _resized(total, extent, extent)


def _resized(values: Floats, down: int, across: int) -> Floats:
    return np.asarray(Image.fromarray(values).resize((across, down), Image.Resampling.BICUBIC))


def muted_colour(generator: np.random.Generator) -> Floats:
    """A colour that is rarely saturated, like cloth and paint."""
    rgb = colorsys.hsv_to_rgb(generator.random(), 0.75 * generator.random() ** 1.3, generator.uniform(0.4, 0.95))
    return np.array(rgb, dtype=np.float32) * 255


def _boards(generator: np.random.Generator, extent: int, scale: float) -> Floats:
    colour = _varied(_WOODS, generator)
    width = generator.uniform(18, 52) * scale
    rows = np.arange(extent, dtype=np.float32) + np.float32(generator.uniform(0, width))
    board, within = np.divmod(rows, np.float32(width))
    tone = generator.uniform(-0.12, 0.12, int(board.max()) + 1).astype(np.float32)[board.astype(int)]
    shift = generator.integers(0, extent, int(board.max()) + 1)[board.astype(int)]
    columns = (np.arange(extent)[None] + shift[:, None]) % extent
    fine = max(8, round(extent / (1.6 * scale)))
    grain = 0.6 * noise(generator, extent, (fine, 5)) + noise(generator, extent, (fine // 4, 3))
    rings = np.sin(6 * noise(generator, extent, (9, 2)) + 3 * grain)
    pattern = np.take_along_axis(0.07 * grain + 0.05 * rings, columns, axis=1) + tone[:, None]
    joint = (columns < 1.2 * scale) | (within < 1.3 * scale)[:, None]
    return np.asarray((1 + pattern - 0.4 * joint)[..., None] * colour, dtype=np.float32)


def _tiles(generator: np.random.Generator, extent: int, scale: float) -> Floats:
    colour, grout = muted_colour(generator), muted_colour(generator) * 0.4 + 110
    height = generator.uniform(16, 44) * scale
    width = height * int(generator.integers(1, 4))
    position = np.arange(extent, dtype=np.float32)
    row, down = np.divmod(position, np.float32(height))
    offset = 0.5 * width * (row % 2) if width > height else np.zeros_like(row)
    column, across = np.divmod(position[None] + offset[:, None].astype(np.float32), np.float32(width))
    # A tone per tile.
    tones = generator.uniform(-1, 1, (int(row.max()) + 1, int(column.max()) + 1)) * generator.uniform(0.02, 0.16)
    tones[(np.indices(tones.shape).sum(axis=0) % 2) == 1] -= 0.35 * generator.integers(0, 2)
    tone = tones.astype(np.float32)[row[:, None].astype(int), column.astype(int)]
    down = np.minimum(down, height - down)[:, None]
    edge = np.minimum(down, np.minimum(across, width - across)) / scale
    glaze = 0.06 * noise(generator, extent, (6, 6), 3)
    body = (1 + tone + glaze - 0.12 * (edge < 2.6))[..., None] * colour
    share = np.clip(edge - 0.5, 0, 1)[..., None]
    return np.asarray(body * share + grout * (1 - share), dtype=np.float32)


def _cloth(generator: np.random.Generator, extent: int, scale: float) -> Floats:
    ground, second = muted_colour(generator), muted_colour(generator)
    position = np.arange(extent, dtype=np.float32) / np.float32(scale)
    period = np.float32(generator.uniform(10, 40))
    share = np.float32(generator.uniform(0.2, 0.6))
    down = ((position % period) < share * period).astype(np.float32)[:, None]
    across = down.T
    kind = int(generator.integers(4))
    if kind == 0:  # plain
        pattern = np.zeros((extent, extent), dtype=np.float32)
    elif kind == 1:  # stripes
        pattern = np.broadcast_to(down, (extent, extent))
    elif kind == 2:  # checks
        pattern = np.float32(0.5) * (down + across)
    else:  # dots
        centred = (position % period) - period / 2
        pattern = np.clip(share * period / 2 - np.hypot(centred[:, None], centred[None]) + 0.5, 0, 1)
    thread = np.sin(position * np.float32(2.2))
    weave = 0.035 * thread[:, None] * thread[None] + 0.05 * noise(generator, extent, (60, 60))
    folds = np.float32(generator.uniform(0, 0.16)) * noise(generator, extent, (4, 3))
    mixed = ground + (second - ground) * (generator.uniform(0.3, 1.0) * pattern)[..., None]
    return np.asarray((1 + weave + folds)[..., None] * mixed, dtype=np.float32)


def _marble(generator: np.random.Generator, extent: int, _: float) -> Floats:
    colour = _varied(_MARBLES, generator)
    cloud = noise(generator, extent, (3, 4), 4)
    veins = np.exp(-14 * np.abs(noise(generator, extent, (3, 3), 4)))
    tint = (muted_colour(generator) - 128) * np.float32(generator.uniform(0.2, 0.9))
    contrast = np.float32(0.35 if generator.random() < 0.5 else -0.35)
    return np.asarray(
        (1 + 0.08 * cloud + contrast * veins)[..., None] * colour + veins[..., None] * 0.3 * tint, dtype=np.float32
    )


def _paper(generator: np.random.Generator, extent: int, scale: float) -> Floats:
    colour, ink = muted_colour(generator), muted_colour(generator)
    fibre = 0.02 * noise(generator, extent, (100, 100)) + 0.03 * noise(generator, extent, (4, 4), 2)
    sheet = (1 + fibre)[..., None] * colour
    if generator.random() < 0.5:
        return sheet
    period = np.float32(generator.uniform(7, 20) * scale)
    position = np.arange(extent, dtype=np.float32)
    line = ((position % period) < 1.2 * scale).astype(np.float32)
    strong = ((position % (4 * period)) < 1.2 * scale).astype(np.float32)
    line = (0.25 * line + 0.45 * strong)[:, None]
    grid = np.maximum(line, line.T if generator.random() < 0.7 else 0)[..., None]
    return np.asarray(sheet * (1 - grid) + ink * grid, dtype=np.float32)


def _sand(generator: np.random.Generator, extent: int, scale: float) -> Floats:
    colour = _varied(_SANDS, generator)
    rows = np.arange(extent, dtype=np.float32)[:, None] / np.float32(scale)
    waves = np.sin(rows * np.float32(generator.uniform(0.25, 0.8)) + 5 * noise(generator, extent, (3, 3), 2))
    grains = generator.standard_normal((extent, extent), dtype=np.float32)
    ripples = np.float32(generator.uniform(0.0, 0.12)) * waves
    patches = 0.08 * noise(generator, extent, (5, 5), 3)
    return np.asarray(
        (1 + ripples + patches + np.float32(generator.uniform(0.02, 0.08)) * grains)[..., None] * colour,
        dtype=np.float32,
    )


def _varied(colours: tuple[tuple[int, int, int], ...], generator: np.random.Generator) -> Floats:
    colour = np.array(colours[int(generator.integers(len(colours)))], dtype=np.float32)
    return colour * generator.uniform(0.85, 1.12, 3).astype(np.float32)


_SURFACES = (_boards, _tiles, _cloth, _marble, _paper, _sand)
