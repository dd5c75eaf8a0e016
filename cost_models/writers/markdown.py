"""The report as Markdown, for notes, issues and pull requests: every table with all of its rows.

Only formatting lives here; what is shown is said in `sections.py`. Plots are left to HTML.
"""

from collections.abc import Iterator

from elidir.cost_models.report import Report
from elidir.cost_models.writers.sections import request, sections, title
from elidir.cost_models.writers.tables import Section, Table, Width


def format_markdown(report: Report) -> str:
    """Return the Markdown of a report."""
    lines = [f"# {_escape(title(report))}", "", _escape(request(report))]
    for s in sections(report):
        lines += _section(s)
    return "\n".join(lines) + "\n"


def _section(s: Section) -> Iterator[str]:
    yield from ("", f"## {_escape(s.title)}")
    for t in s.tables:
        yield from _folded(t) if t.folded else _titled(t)
    if s.notes:
        yield ""
    yield from (f"- {_escape(note)}" for note in s.notes)


def _titled(t: Table) -> Iterator[str]:
    if t.title:
        yield from ("", f"### {_escape(t.title)}")
    yield from ("", *_table(t))


def _folded(t: Table) -> Iterator[str]:
    yield from ("", f"<details><summary>{_escape(t.title)}</summary>", "")
    yield from (*_table(t), "", "</details>")


def _table(t: Table) -> Iterator[str]:
    shown = t.shown(Width.PAGE)
    yield _row(c.title for c in shown)
    yield _row("---" if i == 0 or c.key == "source" else "---:" for i, c in enumerate(shown))
    yield from (_row(_escape(c.show(item)) for c in shown) for item in t.items)


def _row(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is."""
    for sign in "\\|<*_`":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")
