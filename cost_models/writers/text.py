"""The report as plain text, at most 100 columns wide: one table a target, the greatest rows first.

Only formatting lives here; what is shown is said in `sections.py`.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from elidir.cost_models.report import Report
from elidir.cost_models.writers.sections import request, sections, title
from elidir.cost_models.writers.tables import Section, Table, Width

WIDTH = 100
FIRST = 30
"""The widest that the first column gets."""
NAME = 8
"""The least that is left of a name."""


def format_report(report: Report) -> str:
    """Return the text of a report."""
    head = f"{title(report)}\n{request(report)}"
    parts = [head, *("\n".join(_section(s)) for s in sections(report))]
    return "\n\n".join(parts) + "\n"


def _section(s: Section) -> Iterator[str]:
    yield s.title
    for at, table in enumerate(t for t in s.tables if t.brief != 0):
        if at:
            yield ""
        yield from _table(table)
    yield from _bullets(s.notes)


def _table(t: Table) -> Iterator[str]:
    if t.title:
        yield from textwrap.wrap(t.title, WIDTH, initial_indent="  ", subsequent_indent="    ")
    shown, others = t.items[: t.brief], t.items[len(t.items[: t.brief]) :]
    cells = t.shown(Width.TEXT)
    if t.prose:
        yield from _prose([tuple(c.show(item) for c in cells) for item in shown])
        return
    head = tuple(c.title for c in cells)
    yield from columns([head, *(tuple(c.show(item) for c in cells) for item in shown)])
    if others and t.rest:
        yield f"  {t.rest(others)}"


def _prose(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a sentence for each row, the last cell being long."""
    for name, *cells, last in rows:
        text = f"{name} = {' '.join(c for c in cells if c)}: {last}"
        yield from textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="      ")


def _bullets(items: Iterable[str]) -> Iterator[str]:
    for item in items:
        yield from textwrap.wrap(item, WIDTH, initial_indent="  - ", subsequent_indent="    ")


def columns(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Return lines with aligned columns: the first to the left, the others to the right."""
    widths = _fitting([max(len(row[i]) for row in table) for i in range(len(table[0]))])
    lines = []
    for row in table:
        cells = [
            c[:w].ljust(w) if i == 0 else c[:w].rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def _fitting(widths: list[int]) -> list[int]:
    """Return widths that fit a line: names, which come first, are cut before figures are."""
    first, *others = widths
    fitting = [min(first, FIRST), *others]
    for at in (1, 0):
        over = sum(fitting) + 2 * len(fitting) - WIDTH
        if over > 0 and at < len(fitting):
            fitting[at] = max(fitting[at] - over, NAME)
    return fitting
