"""The tables of evaluation: rows of four cells as plain text and as HTML.

Nothing here knows what the cells say.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TypeAlias

Row: TypeAlias = tuple[str, str, str, str]

HEAD: Row = ("", "original", "compiled", "compiled to original")


def plain(rows: Iterable[Row], notes: Sequence[str]) -> str:
    """Return rows in columns, and the notes below."""
    table = [HEAD, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table)
    return "\n".join([*(line.rstrip() for line in lines), *notes]) + "\n"


def html(rows: Iterable[Row], notes: Sequence[str]) -> str:
    """Return rows as a small table for a notebook, the notes as its caption."""
    note = "<br>".join(escape(n) for n in notes)
    caption = f"<caption style='caption-side:bottom;text-align:left'>{note}</caption>"
    body = "".join(_row(cells, "td") for cells in rows)
    return f"<table>{caption}<thead>{_row(HEAD, 'th')}</thead><tbody>{body}</tbody></table>"


def _row(cells: Row, tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(c)}</{tag}>" for c in cells) + "</tr>"
