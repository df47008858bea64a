"""Renders HTML pages with the templates in `templates/`, which escape every text that is not `Markup`."""

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

SHADES = 6  # colours of series in the style sheet


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: its content.
        title: tooltip.
        style: value of the attribute `style`.
    """

    text: str
    title: str = ""
    style: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: content of its first cell, a heading.
        cells: the other cells.
        notes: lines of small text under the name.
        marked: whether the row is shaded.
    """

    name: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()
    marked: bool = False


def row(name: str, cells: Iterable[str | Cell], notes: tuple[str, ...] = (), marked: bool = False) -> Row:
    """A row of texts or cells."""
    return Row(name, tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in cells), notes, marked)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        heads: titles of the columns.
        rows: its rows.
        kind: CSS class: `sortable`, `heat`, or empty.
        label: what the table shows, for screen readers.
    """

    heads: Sequence[str]
    rows: Sequence[Row]
    kind: str = ""
    label: str = "table"


class Macros(Protocol):
    """The macros of a template, as functions."""

    def __getattr__(self, name: str) -> Callable[..., Markup]: ...


def page(title: str, sections: Iterable[Markup]) -> str:
    """Render a page of sections; empty ones are left out.

    Its only script is the page's own, `templates/page.js`: its hash in the page's security policy keeps browsers from
    running another.
    """
    script = _source("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            style=Markup(_source("style.css")),  # noqa: S704 (a file of this package)
            script=Markup(script),  # noqa: S704
            script_hash=f"sha256-{digest}",
            sections=[section for section in sections if section],
        )
    )


def bar(text: str, percent: float, shade: int) -> Markup:
    """A text beside a bar of `percent` of the full length, in the colour of a series."""
    return parts.bar(text, f"{percent:.1f}", shade % SHADES)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("defeat.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _source(name: str) -> str:
    """Text of a file that is inserted as it is."""
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


parts = cast(Macros, _environment().get_template("parts.html").module)
