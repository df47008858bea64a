"""A font with the letters of some words: the one that Pillow brings has those of English alone."""

from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO

from PIL import ImageFont

# Names under which systems have them, those with the most of the usual letters first.
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
NO_LETTER = "\uffff"  # what a font draws for it, it draws for every letter that it lacks
SCORES = "0123456789. "  # looked for always, so that pictures with other scores share what was found
TRIED = 32  # size at which letters are looked at


def font_for(words: Iterable[str]) -> str | BytesIO:
    """The first of the system's fonts that has all letters of some words, else the one that has the most.

    Returns:
        Its name or its content, as Pillow opens it.
    """
    name = _best(frozenset("".join([*words, SCORES])))
    return name or BytesIO(_own_font().font_bytes)


@lru_cache(maxsize=256)
def _best(letters: frozenset[str]) -> str | None:
    found = {name: _missing(letters, font) for name in NAMES if (font := _opened(name)) is not None}
    own = _missing(letters, _own_font())
    best = min(found, key=lambda name: found[name], default=None)  # of several the first
    return best if best is not None and found[best] <= own else None


@lru_cache
def _opened(name: str) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, TRIED)
    except OSError:
        return None


@lru_cache
def _own_font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(TRIED)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _missing(letters: frozenset[str], font: ImageFont.FreeTypeFont) -> int:
    nothing = _drawn(NO_LETTER, font)
    return sum(_drawn(letter, font) == nothing for letter in letters)


def _drawn(letter: str, font: ImageFont.FreeTypeFont) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
