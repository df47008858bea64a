"""Tables that notebooks show for objects at the end of a cell (`_repr_html_`)."""

from collections.abc import Mapping
from html import escape


def html_table(caption: str, rows: Mapping[str, object]) -> str:
    """A table of names and values as HTML; both are escaped."""
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f'<table><caption style="text-align:left">{escape(caption)}</caption>{cells}</table>'
