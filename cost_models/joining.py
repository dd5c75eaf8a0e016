"""One report of two modules of which the one runs before the other reads what it made.

So a vision tower and its language model are one model: phases follow on each other, weights of both
are held all the time. Both reports are there already; nothing is costed here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from elidir.cost_models.report import (
    Memory,
    PhaseCost,
    Report,
    Snapshot,
    TargetReport,
    Total,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Earlier:
    """What runs before a prompt is read: its phase's name, its report, and the tokens it makes."""

    name: str
    report: Report
    tokens: int


def joined(earlier: Earlier, after: Report, falls: Iterable[Snapshot] = ()) -> Report:
    """Return a report in which what runs earlier, and once, is a phase before all others.

    Args:
        earlier: on the same targets.
        after: of what reads what it made.
        falls: the waterfall of both.
    """
    before = earlier.report
    formats = {
        f: before.formats.get(f, 0) + after.formats.get(f, 0)
        for f in sorted({*before.formats, *after.formats})
    }
    snapshots = tuple(falls)
    pairs = zip(before.targets, after.targets, strict=True)
    return replace(
        after,
        parameters=before.parameters + after.parameters,
        formats=formats,
        targets=tuple(_target(earlier, a, b, snapshots) for a, b in pairs),
        not_modelled=(*before.not_modelled, *after.not_modelled),
        notes=_each(before.notes, after.notes),
    )


def joined_snapshot(name: str, before: Snapshot, after: Snapshot) -> Snapshot:
    """Return the snapshot of a prompt that is read when both are done."""
    longer = max(before, after, key=lambda s: s.prefill_seconds)
    return replace(
        after,
        name=name,
        prefill_seconds=before.prefill_seconds + after.prefill_seconds,
        prefill_bound=longer.prefill_bound,
        confidence=min(before.confidence, after.confidence),
    )


def _target(
    earlier: Earlier, before: TargetReport, after: TargetReport, falls: tuple[Snapshot, ...]
) -> TargetReport:
    ours, theirs = (t.phases[0].memory.weights for t in (before, after))
    name = earlier.name
    first = replace(before.phases[0], name=name, tokens=earlier.tokens)
    first = replace(first, memory=_beside(first.memory, theirs))
    timeline = (
        replace(before.timeline[0], phase=name, tokens=0, memory=first.memory),
        *(
            replace(m, seconds=first.seconds + m.seconds, memory=_beside(m.memory, ours))
            for m in after.timeline
        ),
    )
    peak = max((m.memory for m in timeline), key=lambda m: m.total)
    known = {a.field: a for t in (before, after) for a in t.assumptions}
    return replace(
        after,
        phases=(first, *(replace(p, memory=_beside(p.memory, ours)) for p in after.phases)),
        total=_total(first, after.total, peak),
        timeline=timeline,
        measured=(*(replace(c, phase=name) for c in before.measured), *after.measured),
        roofs=_each(before.roofs, after.roofs),
        waterfall=tuple(s for s in falls if s.target == after.target),
        assumptions=tuple(known.values()),
        notes=_each(before.notes, after.notes),
    )


def _total(first: PhaseCost, rest: Total, peak: Memory) -> Total:
    """Return the answer, its first token being behind both."""
    sure = (first.joules_confidence, rest.joules_confidence)
    joules = (first.joules, rest.joules)
    return replace(
        rest,
        seconds=first.seconds + rest.seconds,
        bound=first.bound if first.seconds > rest.seconds else rest.bound,
        confidence=min(first.confidence, rest.confidence),
        joules=None if None in joules else sum(j for j in joules if j is not None),
        joules_confidence=None if None in sure else min(c for c in sure if c is not None),
        peak_bytes=peak.total,
        fits=peak.fits,
    )


def _beside(held: Memory, weights: int) -> Memory:
    """Return what is held when so many bytes of weights are held as well."""
    total = held.total + weights
    fits = None if held.capacity is None else total <= held.capacity
    return replace(held, weights=held.weights + weights, total=total, fits=fits)


def _each(first: Iterable[T], then: Iterable[T]) -> tuple[T, ...]:
    """Return the items of both, each once."""
    return tuple(dict.fromkeys((*first, *then)))
