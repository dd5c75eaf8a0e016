"""What a report is made of, whatever it is written as: sections of tables, plots and notes.

A table is a list of items and columns that say what of each item to show: so one definition gives
the text, the Markdown, the CSV and the HTML of it. Nothing here knows a report or a format.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from operator import attrgetter
from typing import Any


class Width(IntEnum):
    """How much room a form has, and a column needs: plain text, pages, or files of data."""

    TEXT = 0
    PAGE = 1
    DATA = 2


@dataclass(frozen=True)
class Column:
    """One property of the items; `key` is its name in data, with the unit that the value has."""

    key: str
    title: str
    get: Callable[[Any], Any]
    show: Callable[[Any], str]
    width: Width = Width.TEXT


def column(
    key: str,
    title: str = "",
    write: Callable[[Any], str] = str,
    width: Width = Width.TEXT,
    *,
    of: str = "",
) -> Column:
    """Return a column of the attribute `of` (by default the one that the column is named after)."""
    get = attrgetter(of or key)
    return Column(key, title or key, get, lambda item: write(get(item)), width)


@dataclass(frozen=True)
class Table:
    """Rows of one kind.

    Args:
        key: the kind, for data.
        title: what a reader is told above it, "" if its section says so.
        columns: what each row shows.
        items: what the rows are of; the order is that of reading.
        context: values that are the same in all rows, for data.
        brief: rows in plain text; `rest` is the sentence about the others.
        prose: whether the last column is long text.
        folded: whether a page shows it only when asked.
    """

    key: str
    title: str
    columns: tuple[Column, ...]
    items: Sequence[Any]
    context: dict[str, str] = field(default_factory=dict)
    brief: int | None = None
    rest: Callable[[Sequence[Any]], str] | None = None
    prose: bool = False
    folded: bool = False

    def shown(self, width: Width) -> list[Column]:
        """Return the columns that a form has room for."""
        return [c for c in self.columns if c.width <= width]


@dataclass(frozen=True)
class Plot:
    """A picture, drawn as SVG when a form can show one, and what it says in words."""

    title: str
    draw: Callable[[], str]
    caption: str


@dataclass(frozen=True)
class Tile:
    """A figure to see first, with what bounds it and how sure it is; `warns` if it is a problem."""

    label: str
    figure: str
    detail: str
    bound: str = ""
    confidence: str = ""
    warns: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a report with a heading; `anchor` is its name in links."""

    anchor: str
    title: str
    lead: str = ""
    tiles: tuple[Tile, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
