"""A report arranged for readers: which tables, plots and notes there are, and in which order.

Each form (text, Markdown, CSV, HTML) writes these sections; none has tables of its own. Every table
of times has a column for the bound and one for the confidence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from elidir.cost_models.report import Assumption, PhaseCost, Report, Row, TargetReport
from elidir.cost_models.roofline import Bound, Confidence
from elidir.cost_models.writers import plots
from elidir.cost_models.writers.figures import (
    count,
    digits,
    joules,
    known,
    rate,
    seconds,
    share,
    size,
    times,
    unit_of,
    word,
)
from elidir.cost_models.writers.tables import Column, Plot, Section, Table, Tile, Width, column

ROWS = 8
"""So many rows of ops has plain text."""


def sections(report: Report) -> list[Section]:
    """Return the parts of a report, in the order of reading."""
    overview = [_overview(report)] if len(report.targets) > 1 else []
    return [*overview, *(_target(t) for t in report.targets), _limits(report)]


def title(r: Report) -> str:
    """Return the first line: which model it is."""
    formats = ", ".join(f"{f} {count(n)}" for f, n in r.formats.items())
    return f"{r.module}: {count(r.parameters)} parameters (stored: {formats})"


def request(r: Report) -> str:
    """Return what was asked of the model."""
    dtype = f", in {r.dtype}" if r.dtype else ""
    new = f"{r.new} new token{'s' if r.new != 1 else ''}"
    return f"batch {r.batch}, prompt {r.prompt}, {new}, context {r.context}{dtype}"


# ---- the main figures, a line each


@dataclass(frozen=True)
class Line:
    """A phase or the whole answer on a target."""

    target: str
    phase: str
    seconds: float
    tokens_per_s: float | None
    bound: Bound
    confidence: Confidence
    joules: float | None
    joules_confidence: Confidence | None
    memory_bytes: int
    fits: bool | None
    flops: int | None = None
    bytes: int | None = None
    launch_seconds: float | None = None
    memory_seconds: float | None = None
    compute_seconds: float | None = None


def figure_lines(t: TargetReport) -> list[Line]:
    """Return the phases of a target, and the whole answer."""
    return [*(_phase_line(t, p) for p in t.phases), _answer_line(t)]


def _phase_line(t: TargetReport, p: PhaseCost) -> Line:
    speed = p.tokens / p.seconds if p.seconds else None
    sure = (p.bound, p.confidence, p.joules, p.joules_confidence)
    parts = (p.launch_seconds, p.memory_seconds, p.compute_seconds)
    held = (p.memory.total, p.memory.fits)
    return Line(t.target, p.name, p.seconds, speed, *sure, *held, p.flops, p.bytes, *parts)


def _answer_line(t: TargetReport) -> Line:
    total = t.total
    sure = (total.bound, total.confidence, total.joules, total.joules_confidence)
    held = (total.peak_bytes, total.fits)
    return Line(t.target, "answer", total.seconds, None, *sure, *held)


def _fits(fits: bool | None) -> str:
    return {True: "fits", False: "DOES NOT FIT", None: "unknown"}[fits]


def _energy(line: Line) -> str:
    if line.joules is None or line.joules_confidence is None:
        return "unknown"
    return f"{joules(line.joules)} ({word(line.joules_confidence)})"


def _launches(value: float) -> str:
    return seconds(value) if value else "not counted"


PAGE, DATA = Width.PAGE, Width.DATA
TARGET = column("target")
BOUND = (column("bound", write=word), column("confidence", write=word))
FIGURES = (
    column("phase"),
    column("seconds", "time", seconds),
    column("tokens_per_s", "tokens/s", known(count, "")),
    *BOUND,
    Column("joules", "energy", attrgetter("joules"), _energy),
    column("joules_confidence", "energy confidence", known(word, ""), DATA),
    column("memory_bytes", "memory", size),
    column("fits", "fits", _fits),
    column("flops", write=known(count, ""), width=PAGE),
    column("bytes", write=known(size, ""), width=PAGE),
    column("launch_seconds", "in launches", known(_launches, ""), PAGE),
    column("memory_seconds", "in memory", known(seconds, ""), PAGE),
    column("compute_seconds", "in arithmetic", known(seconds, ""), PAGE),
)


def figures(report: Report) -> Table:
    """Return the main figures of every target as one table."""
    lines = [line for t in report.targets for line in figure_lines(t)]
    return Table("figures", "", (TARGET, *FIGURES), lines)


PROMPT, TOKEN = ("Prefill", "the prompt"), ("Each new token", "a step")
PHASES = {
    "pictures": ("Pictures", "their features"),
    "decode": TOKEN,
    "decode without a cache": TOKEN,
}
"""What a phase is called over all targets, and what its time is of."""


def _overview(report: Report) -> Section:
    names = min((tuple(p.name for p in t.phases) for t in report.targets), key=len)
    shown = (PHASES.get(name, PROMPT) for name in names)
    return Section(
        anchor="at-a-glance",
        title="At a glance",
        plots=tuple(
            Plot(title, partial(plots.compare, report, i), f"Time of {what}; a log scale.")
            for i, (title, what) in enumerate(shown)
        ),
        tables=(figures(report),),
    )


# ---- one target


def _target(t: TargetReport) -> Section:
    return Section(
        anchor=t.target,
        title=f"{t.target}: {t.title}",
        tiles=tuple(_tiles(t)),
        plots=tuple(_plots(t)),
        tables=tuple(_tables(t)),
        notes=(*_why_unknown(t), *t.notes),
    )


def _why_unknown(t: TargetReport) -> Iterator[str]:
    for p in t.phases:
        if p.joules_unknown:
            yield f"{p.name}: energy unknown, {p.joules_unknown}"


def _tiles(t: TargetReport) -> Iterator[Tile]:
    for line in figure_lines(t):
        speed = f"{count(line.tokens_per_s)} tokens/s" if line.tokens_per_s else ""
        sure = (word(line.bound), word(line.confidence))
        yield Tile(line.phase, seconds(line.seconds), speed, *sure)
    total, capacity = t.total, t.phases[0].memory.capacity
    of = f"of {size(capacity)}, {_fits(total.fits)}" if capacity else "capacity unknown"
    bad = total.fits is False
    yield Tile("peak memory", size(total.peak_bytes), of, confidence="at least", warns=bad)
    if total.joules is None or total.joules_confidence is None:
        yield Tile("energy", "unknown", "no source gives the power")
    else:
        sure = (word(total.bound), word(total.joules_confidence))
        yield Tile("energy", joules(total.joules), "of the whole answer", *sure)


def _plots(t: TargetReport) -> Iterator[Plot]:
    for p in t.phases:
        caption = (
            "A point is a row of the table of ops, its area the share of the time; those under "
            "0.2 % are left out. Launches, and parts that add, keep points below the roof."
        )
        yield Plot(f"Roofline, {p.name}", partial(plots.roofline, t, p), caption)
    held = "Weights stay; keys and values grow with the sequence. Counted, not measured."
    yield Plot("Memory over time", partial(plots.memory, t), held)
    parts = "What the time goes to. Where parts overlap they sum to more than the time."
    yield Plot("Parts of the time", partial(plots.parts, t), parts)
    if t.measured:
        beside = "The median of the runs; the line goes from the least to the most."
        yield Plot("Measured and predicted", partial(plots.measured, t), beside)
    if t.waterfall:
        yield Plot("By pass", partial(plots.waterfall, t), "Predicted time after each pass.")


def _tables(t: TargetReport) -> Iterator[Table]:
    here = {"target": t.target}
    yield Table("figures", "", FIGURES, figure_lines(t), here)
    if t.measured:
        yield Table("measured", "Measured here, and predicted", MEASURED, t.measured, here)
    yield Table("memory", "Memory over time", MEMORY, t.timeline, here)
    for p in t.phases:
        at = here | {"phase": p.name}
        ordered = sorted(p.rows, key=lambda r: -r.seconds)
        yield Table("ops", f"Ops of {p.name} at {p.sizes}", OPS, ordered, at, ROWS, _rest)
    if t.waterfall:
        yield Table("waterfall", "By pass", _waterfall_columns(t), t.waterfall, here)
    for p in t.phases:
        at = here | {"phase": p.name}
        yield Table("layers", f"Layers of {p.name}", LAYERS, p.layers, at, brief=0, folded=True)
    yield Table("numbers", "Rests on", NUMBERS, t.assumptions, here, prose=True)


MEASURED = (
    column("phase"),
    column("measured_seconds", "measured", seconds),
    column("least_seconds", "least", seconds),
    column("most_seconds", "most", seconds),
    column("runs"),
    column("seconds", "predicted", seconds),
    column("ratio", "ratio", times),
    *BOUND,
    column("how", width=PAGE),
)
MEMORY = (
    column("phase"),
    column("tokens"),
    column("seconds", "at", seconds),
    *BOUND,
    column("weights_bytes", "weights", size, of="memory.weights"),
    column("kv_bytes", "kv", size, of="memory.kv"),
    column("activations_bytes", "activations", size, of="memory.activations"),
    column("memory_bytes", "in all", size, of="memory.total"),
    column("capacity_bytes", "of", known(size), PAGE, of="memory.capacity"),
    column("fits", "fits", _fits, PAGE, of="memory.fits"),
)


def _intensity(row: Row) -> float | None:
    return row.flops / row.bytes if row.bytes else None


def _speed(row: Row) -> float | None:
    return row.flops / row.seconds if row.seconds else None


OPS = (
    column("path", "layers"),
    column("op"),
    column("ops"),
    column("seconds", "time", seconds),
    column("share", write=share),
    *BOUND,
    column("flops", write=count),
    column("bytes", write=size),
    Column(
        "flops_per_byte", "flops/byte", _intensity, lambda r: known(digits)(_intensity(r)), PAGE
    ),
    Column("flop_per_s", "reached", _speed, lambda r: known(rate("FLOP/s"))(_speed(r)), PAGE),
    column("launches", width=PAGE),
    column("joules", "energy", known(joules), PAGE),
)
LAYERS = (
    column("path", "layer"),
    column("seconds", "time", seconds),
    column("share", write=share),
    *BOUND,
)
NUMBERS = (
    column("field", "number"),
    column("value", write=known("{:g}".format)),
    Column("unit", "unit", lambda a: unit_of(a.field), lambda a: _unit(a)),
    column("kind"),
    column("source"),
)


def _unit(number: Assumption) -> str:
    return unit_of(number.field) if number.value is not None else ""


def _rest(rows: Sequence[Row]) -> str:
    part = sum(r.share for r in rows)
    bounds = ", ".join(sorted({r.bound.value for r in rows}))
    low = word(min(r.confidence for r in rows))
    what = f"{len(rows)} other row{'s' if len(rows) > 1 else ''}, {part:.1%} of the time"
    return f"{what}, bound by {bounds}, confidence {low}"


def _waterfall_columns(t: TargetReport) -> tuple[Column, ...]:
    first = t.waterfall[0]
    return (
        column("name", "after"),
        column("prefill_seconds", "prefill", seconds),
        _ratio("prefill_seconds", first.prefill_seconds),
        column("prefill_bound", "bound", word),
        column("decode_seconds", "decode", seconds),
        _ratio("decode_seconds", first.decode_seconds),
        column("decode_bound", "bound", word),
        column("confidence", write=word),
    )


def _ratio(name: str, first: float) -> Column:
    get = attrgetter(name)

    def ratio(item: object) -> float | None:
        return float(get(item)) / first if first else None

    key = name.replace("seconds", "ratio")
    return Column(key, "ratio", ratio, lambda item: known(times, "")(ratio(item)))


# ---- what the figures do not say


UNKNOWN = (column("op"), column("path", "in"), column("count", "times"))


def _limits(report: Report) -> Section:
    unknown = "Not modelled: only the bytes of operands and results are counted, no arithmetic"
    table = Table("not modelled", unknown, UNKNOWN, report.not_modelled)
    return Section(
        anchor="not-modelled",
        title="What is not modelled",
        tables=(table,) if report.not_modelled else (),
        notes=(*report.notes, *NOT_MODELLED),
    )


NOT_MODELLED = (
    "time to load a model, compile kernels and choose tokens; other programs; heat and clocks",
    "caches of the processor: what an op reads comes from memory, also what the last one wrote",
    "memory of allocators, workspaces and the code: a backend needs what is counted at least",
)
