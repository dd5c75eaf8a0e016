"""The report as data: what a module costs on some targets, and the numbers that this rests on.

Rows by layers and op kind, phases, layers, memory, waterfall, assumptions with their sources. Every
time carries its bound and its confidence. `costing.py` makes reports; `sections.py` arranges them
for readers, as text, Markdown, CSV and HTML.
"""

import json
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from elidir.cost_models.roofline import Bound, Confidence


@dataclass(frozen=True)
class Row:
    """The ops of one kind in `count` like layers: what they do and cost, all together."""

    path: str
    op: str
    count: int
    ops: int
    launches: int
    flops: int
    bytes: int
    seconds: float
    share: float
    bound: Bound
    confidence: Confidence
    joules: float | None


@dataclass(frozen=True)
class LayerTime:
    """One layer in one phase."""

    path: str
    seconds: float
    share: float
    bound: Bound
    confidence: Confidence


@dataclass(frozen=True)
class Memory:
    """Bytes held in a phase, of the target's capacity; `fits` is None where that is unknown."""

    weights: int
    kv: int
    activations: int
    total: int
    capacity: int | None
    fits: bool | None


@dataclass(frozen=True)
class Moment:
    """What is held when so many tokens are in the cache, and when that is, from the start."""

    phase: str
    tokens: int
    seconds: float
    bound: Bound
    confidence: Confidence
    memory: Memory


@dataclass(frozen=True)
class PhaseCost:
    """One phase: its totals, by what the time goes to, and its rows and layers."""

    name: str
    sizes: str
    tokens: int
    seconds: float
    launch_seconds: float
    memory_seconds: float
    compute_seconds: float
    bound: Bound
    confidence: Confidence
    joules: float | None
    joules_confidence: Confidence | None
    joules_unknown: str
    flops: int
    bytes: int
    memory: Memory
    rows: tuple[Row, ...]
    layers: tuple[LayerTime, ...]


@dataclass(frozen=True)
class Total:
    """The whole answer: the prompt, and each new token after the first, as the cache grows."""

    tokens: int
    seconds: float
    bound: Bound
    confidence: Confidence
    joules: float | None
    joules_confidence: Confidence | None
    peak_bytes: int
    fits: bool | None


@dataclass(frozen=True)
class Assumption:
    """A number that the costs rest on; None is unknown, and then counted as nothing."""

    field: str
    value: float | None
    kind: str
    source: str


@dataclass(frozen=True)
class Snapshot:
    """What the module cost on a target after a pass (the first one: before all of them)."""

    name: str
    target: str
    prefill_seconds: float
    prefill_bound: Bound
    decode_seconds: float
    decode_bound: Bound
    confidence: Confidence


@dataclass(frozen=True)
class Roof:
    """The most that a target reaches in one class of arithmetic, by path and by bandwidth."""

    arithmetic: str
    path: str
    flop_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Measured:
    """What a phase took on a target when it was run: the median of some runs, least and most."""

    target: str
    phase: str
    seconds: float
    least: float
    most: float
    runs: int
    how: str


@dataclass(frozen=True)
class Comparison:
    """A phase as it was measured, beside what is predicted for it."""

    phase: str
    measured_seconds: float
    least_seconds: float
    most_seconds: float
    runs: int
    how: str
    seconds: float
    bound: Bound
    confidence: Confidence

    @property
    def ratio(self) -> float:
        """Predicted time over measured time."""
        return self.seconds / self.measured_seconds


@dataclass(frozen=True)
class TargetReport:
    """Everything about one target."""

    target: str
    title: str
    phases: tuple[PhaseCost, ...]
    total: Total
    timeline: tuple[Moment, ...]
    roofs: tuple[Roof, ...]
    measured: tuple[Comparison, ...]
    waterfall: tuple[Snapshot, ...]
    assumptions: tuple[Assumption, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class NotModelled:
    """An op kind whose arithmetic is unknown: the bytes of its operands and results count alone."""

    op: str
    path: str
    count: int


@dataclass(frozen=True)
class Report:
    """Costs of one module for one request, target by target."""

    module: str
    parameters: int
    formats: dict[str, int]
    batch: int
    prompt: int
    new: int
    context: int
    dtype: str
    targets: tuple[TargetReport, ...]
    not_modelled: tuple[NotModelled, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: enums by name, floats to six digits."""
        data: dict[str, Any] = _plain(self)
        return data

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self) -> str:
        """Return the report as plain text, at most 100 columns wide."""
        from elidir.cost_models.writers import format_report

        return format_report(self)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        from elidir.cost_models.writers import format_markdown

        return format_markdown(self)

    def to_csv(self) -> str:
        """Return every row of every table as CSV, in seconds, bytes and joules."""
        from elidir.cost_models.writers import format_csv

        return format_csv(self)

    def to_html(self) -> str:
        """Return the report as one page that needs nothing else."""
        from elidir.cost_models.writers import format_html

        return format_html(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the figures of each target."""
        from elidir.cost_models.writers import format_excerpt

        return format_excerpt(self)


def _plain(item: Any) -> Any:
    if isinstance(item, Confidence):
        return item.name.lower()
    if isinstance(item, Enum):
        return item.value
    if is_dataclass(item):
        return {f.name: _plain(getattr(item, f.name)) for f in fields(item)}
    if isinstance(item, dict):
        return {k: _plain(v) for k, v in item.items()}
    if isinstance(item, tuple):
        return [_plain(i) for i in item]
    return float(f"{item:.6g}") if isinstance(item, float) else item
