"""The report as plain text, at most 100 columns wide: one table a target, the greatest rows first.

Only formatting lives here; every figure comes from the report, with its bound and its confidence.
"""

import textwrap
from collections.abc import Iterable, Sequence

from elidir.cost_models.report import Memory, PhaseCost, Report, Snapshot, TargetReport

WIDTH = 100
ROWS = 8


def format_report(report: Report) -> str:
    """Return the text of a report."""
    parts = [_head(report)]
    parts += [_target(t) for t in report.targets]
    notes = [*report.notes, *_not_modelled(report)]
    parts.append("\n".join(["Notes", *_bullets(notes)]))
    return "\n\n".join(parts) + "\n"


def _head(r: Report) -> str:
    formats = ", ".join(f"{f} {count(n)}" for f, n in r.formats.items())
    dtype = f", in {r.dtype}" if r.dtype else ""
    return (
        f"{r.module}: {count(r.parameters)} parameters (stored: {formats})\n"
        f"batch {r.batch}, prompt {r.prompt}, {r.new} new tokens, context {r.context}{dtype}"
    )


def _target(t: TargetReport) -> str:
    total = t.total
    lines = [f"{t.target}: {t.title}", *_phases(t.phases)]
    fits = _fits(total.fits)
    lines.append(
        f"  whole answer: {seconds(total.seconds)} ({total.bound.value}-bound, "
        f"confidence {total.confidence.name.lower()}), peak memory {size(total.peak_bytes)}{fits}"
    )
    for phase in t.phases:
        lines += ["", *_rows(phase)]
    if t.waterfall:
        lines += ["", *_waterfall(t.waterfall)]
    lines += ["", "  rests on", *_assumptions(t)]
    return "\n".join([*lines, *_bullets(t.notes)])


def _phases(phases: Sequence[PhaseCost]) -> list[str]:
    head = ("", "time", "tokens/s", "bound", "confidence", "energy", "flops", "bytes")
    table = [head]
    table += [
        (
            p.name,
            seconds(p.seconds),
            f"{p.tokens / p.seconds:.3g}" if p.seconds else "",
            p.bound.value,
            p.confidence.name.lower(),
            _energy(p),
            count(p.flops),
            size(p.bytes),
        )
        for p in phases
    ]
    lines = columns(table)
    for p in phases:
        lines += _wrap(f"{p.name} at {p.sizes}: {_memory(p.memory)}")
        if p.joules_unknown:
            lines += _wrap(f"{p.name}: energy unknown, {p.joules_unknown}")
    return lines


def _energy(p: PhaseCost) -> str:
    if p.joules is None or p.joules_confidence is None:
        return "unknown"
    return f"{p.joules:.3g} J ({p.joules_confidence.name.lower()})"


def _memory(m: Memory) -> str:
    of = f" of {size(m.capacity)}" if m.capacity else ""
    parts = f"weights {size(m.weights)}, kv {size(m.kv)}, activations {size(m.activations)}"
    return f"memory {size(m.total)}{of} ({parts}){_fits(m.fits)}"


def _fits(fits: bool | None) -> str:
    return {True: ", fits", False: ", DOES NOT FIT", None: ", capacity unknown"}[fits]


def _rows(p: PhaseCost) -> list[str]:
    ordered = sorted(p.rows, key=lambda r: -r.seconds)
    shown, rest = ordered[:ROWS], ordered[ROWS:]
    table = [(p.name, "op", "ops", "time", "share", "bound", "confidence", "flops", "bytes")]
    table += [
        (
            r.path,
            r.op,
            str(r.ops),
            seconds(r.seconds),
            f"{r.share:.1%}",
            r.bound.value,
            r.confidence.name.lower(),
            count(r.flops),
            size(r.bytes),
        )
        for r in shown
    ]
    lines = columns(table)
    if rest:
        share = sum(r.share for r in rest)
        bounds = ", ".join(sorted({r.bound.value for r in rest}))
        low = min(r.confidence for r in rest).name.lower()
        what = f"{len(rest)} other rows, {share:.1%} of the time"
        lines.append(f"  {what}, bound by {bounds}, confidence {low}")
    return lines


def _waterfall(snapshots: Sequence[Snapshot]) -> list[str]:
    first = snapshots[0]
    table = [("after", "prefill", "", "bound", "decode", "", "bound", "confidence")]
    table += [
        (
            s.name,
            seconds(s.prefill_seconds),
            _ratio(s.prefill_seconds, first.prefill_seconds),
            s.prefill_bound.value,
            seconds(s.decode_seconds),
            _ratio(s.decode_seconds, first.decode_seconds),
            s.decode_bound.value,
            s.confidence.name.lower(),
        )
        for s in snapshots
    ]
    return columns(table)


def _ratio(new: float, old: float) -> str:
    return f"x{new / old:.2f}" if old else ""


def _assumptions(t: TargetReport) -> list[str]:
    lines = []
    for a in t.assumptions:
        value = f"{a.value:g}" if a.value is not None else "unknown"
        text = f"{a.field} = {value} [{a.kind}] {a.source}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="      ")
    return lines


def _not_modelled(report: Report) -> list[str]:
    return [
        f"not modelled: {n.count} {n.op} in {n.path}; their operands' bytes count, no arithmetic"
        for n in report.not_modelled
    ]


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _bullets(items: Iterable[str]) -> list[str]:
    lines = []
    for item in items:
        lines += textwrap.wrap(item, WIDTH, initial_indent="  - ", subsequent_indent="    ")
    return lines


# ---- figures


def columns(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Return lines with aligned columns: the first two to the left, the others to the right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    widths[0] = min(widths[0], 30)
    lines = []
    for row in table:
        cells = [
            c[:w].ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def seconds(value: float) -> str:
    """Return a time with its unit: `1.23 s`, `45.6 ms`, `7.89 us`."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1000 else f"{value:.0f} s"
    return f"{value * 1e9:.3g} ns"


def size(value: int) -> str:
    """Return bytes with their unit, in powers of a thousand."""
    return f"{_scaled(value)}B"


def count(value: int) -> str:
    """Return a number with its prefix, in powers of a thousand."""
    return _scaled(value).rstrip()


def _scaled(value: float) -> str:
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:g} "
