"""The report as CSV: a line for each row of each table, numbers in seconds, bytes and joules.

The column `table` says what a line is of, and columns that a kind of line has not are empty: so the
file is one frame, to be filtered. Only formatting lives here.
"""

import csv
import io
from collections.abc import Iterator
from enum import Enum
from typing import Any

from elidir.cost_models.report import Report
from elidir.cost_models.writers.figures import word
from elidir.cost_models.writers.sections import sections
from elidir.cost_models.writers.tables import Section, Table

Record = dict[str, Any]


def format_csv(report: Report) -> str:
    """Return the CSV of a report."""
    records = [r for s in sections(report) for t in _distinct(s) for r in _records(t)]
    names = list(dict.fromkeys(name for r in records for name in r))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _distinct(s: Section) -> Iterator[Table]:
    """Yield the tables that no other section repeats."""
    yield from (t for t in s.tables if s.anchor != "at-a-glance")


def _records(t: Table) -> Iterator[Record]:
    for item in t.items:
        yield {"table": t.key, **t.context} | {c.key: _plain(c.get(item)) for c in t.columns}


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.9g}"
    return word(value) if isinstance(value, bool | Enum) else value
