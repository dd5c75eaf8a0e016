"""An evaluation: quality on text and the results of tasks, in one run, as data and as tables.

It only holds what `quality` and `trials` measured. The command line draws the same rows.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from elidir.frontends.evaluation.intervals import Estimate, number
from elidir.frontends.evaluation.quality import Quality
from elidir.frontends.evaluation.tables import Row, html, plain
from elidir.frontends.evaluation.trials import TaskResult


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a compiled model beside the original, in one run."""

    quality: Quality | None = None
    tasks: tuple[TaskResult, ...] = ()

    @property
    def metrics(self) -> dict[str, Estimate]:
        """The figures that a bound may name: those of text, and each task's share of right ones."""
        found: Mapping[str, Estimate] = {} if self.quality is None else self.quality.metrics
        return {**found, **{t.task: t.compiled for t in self.tasks}}

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain data."""
        quality = None if self.quality is None else self.quality.to_dict()
        return {"quality": quality, "tasks": [t.to_dict() for t in self.tasks]}

    def to_json(self) -> str:
        """Return all figures as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def rows(self) -> Iterator[Row]:
        """Yield the table: what, the original's, the compiled model's, and the comparison."""
        if self.quality is not None:
            yield from self.quality.rows()
        for result in self.tasks:
            yield from _task_rows(result)

    @property
    def notes(self) -> list[str]:
        """How it was measured."""
        told = [] if self.quality is None else [self.quality.note]
        return [*told, *(_note(t) for t in self.tasks)]

    def to_text(self) -> str:
        """Return the figures as a plain table."""
        return plain(self.rows(), self.notes)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        """Return a table for a notebook."""
        return html(self.rows(), self.notes)


def _task_rows(result: TaskResult) -> Iterator[Row]:
    name = result.task
    yield f"{name}, right", str(result.original), str(result.compiled), f"{result.change}"
    yield f"{name}, same words", "", "", str(result.same)
    for group, (count, old, new) in result.groups.items():
        yield f"  {group}", f"{old} of {count}", f"{new} of {count}", ""
    for what, (label, unit, scale) in _SPEEDS.items():
        ratio, values = result.ratio(what), result.usual(what)
        cells = (f"{number(v * scale)} {unit}" if v else "" for v in values)
        yield f"{name}, {label}", *cells, f"x{ratio}" if ratio else ""


_SPEEDS = {
    "first_seconds": ("time to first token", "ms", 1e3),
    "token_seconds": ("a further token", "ms", 1e3),
    "kv_bytes": ("cache", "MB", 1e-6),
}


def _note(result: TaskResult) -> str:
    lengths = [t.prompt_tokens for t in result.trials]
    return (
        f"{result.task}: {len(lengths)} questions of {min(lengths)} to {max(lengths)} tokens, "
        "answered greedily; intervals of 95 % by resampling questions"
    )
