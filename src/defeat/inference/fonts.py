"""Finds a font for class names: Pillow's built-in font has only the letters of English."""

from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO

from PIL import ImageFont

# File names of common system fonts, in order of preference.
NAMES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "PingFang.ttc",
    "msyh.ttc",
    "malgun.ttf",
)
NO_LETTER = "\uffff"  # drawn with the glyph that a font uses for every missing letter
SCORES = "0123456789. "  # always included, so that the cache does not depend on the scores
SIZE = 32  # pixels at which glyphs are compared


def font_for(texts: Iterable[str]) -> str | BytesIO:
    """The system font that lacks the fewest letters of some texts, or Pillow's font if that lacks even fewer.

    Returns:
        The name or the content of the font, as Pillow opens it.
    """
    name = _best(frozenset("".join([*texts, SCORES])))
    return name or BytesIO(_pillow_font().font_bytes)


@lru_cache(maxsize=256)
def _best(letters: frozenset[str]) -> str | None:
    missing = {name: _missing(letters, font) for name in NAMES if (font := _open(name)) is not None}
    best = min(missing, key=lambda name: missing[name], default=None)  # the first of several
    return best if best is not None and missing[best] <= _missing(letters, _pillow_font()) else None


@lru_cache
def _open(name: str) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, SIZE)
    except OSError:
        return None


@lru_cache
def _pillow_font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _missing(letters: frozenset[str], font: ImageFont.FreeTypeFont) -> int:
    """Number of letters that a font lacks."""
    placeholder = _drawn(NO_LETTER, font)
    return sum(_drawn(letter, font) == placeholder for letter in letters)


def _drawn(letter: str, font: ImageFont.FreeTypeFont) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
