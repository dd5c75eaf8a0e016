"""The plots of a report as SVG: targets, roofline, memory, parts of the time, passes, measured.

Each is as wide as a phone, since pages put several beside each other where there is room. Colours
say the bound and hollow shapes a low confidence; the page's style sheet gives them. What a plot
shows is also in a table, with its figures.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from elidir.cost_models.report import PhaseCost, Report, Roof, Row, Snapshot, TargetReport
from elidir.cost_models.roofline import Bound, Confidence
from elidir.cost_models.writers import svg
from elidir.cost_models.writers.figures import count, digits, seconds, share, size, times, word
from elidir.cost_models.writers.svg import Box, Scale, line, rect, text

WIDTH = 360.0
EDGE = 4.0
ROW = 40.0
BAR = 12.0


def _class(bound: Bound, confidence: Confidence) -> str:
    """Return the classes of a shape that stands for a time."""
    return f"{bound.value} {word(confidence)}"


def _sure(bound: Bound, confidence: Confidence) -> str:
    return f"{bound.value}, {word(confidence)}"


def _heading(y: float, left: str, right: str) -> str:
    """Return the line above a bar: what it is, and its figures."""
    room = int((WIDTH - 2 * EDGE - svg.width_of(right)) / svg.LETTER) - 1
    name = left if len(left) <= room else f"{left[: max(room - 2, 1)]}.."
    return text(EDGE, y, name, "name") + text(WIDTH - EDGE, y, right, "figure", "end")


def _track(y: float, width: float = WIDTH - 2 * EDGE) -> str:
    return rect(Box(EDGE, y, width, BAR), "track")


# ---- all targets


def compare(report: Report, phase: int) -> str:
    """Return the time of one phase on each target, on a log scale."""
    found = [(t, t.phases[phase]) for t in report.targets if len(t.phases) > phase]
    lo, hi = svg.around((p.seconds for _, p in found), 1.2)
    scale = Scale(lo, hi, EDGE + 8, WIDTH - EDGE - 8, log=True)
    height = ROW * len(found) + 24
    grid = [line(scale(v), 4, scale(v), height - 18, "grid") for v in scale.ticks(6)]
    words = [_tick(scale, v, height - 4, seconds) for v in scale.ticks(5)]
    rows = [_dot(scale, ROW * i + 14, t, p) for i, (t, p) in enumerate(found)]
    return svg.picture(WIDTH, height, "time by target", *grid, *words, *rows)


def _tick(scale: Scale, value: float, y: float, write: Callable[[float], str]) -> str:
    """Return the words under a tick, kept inside of the picture."""
    words = write(value)
    half = svg.width_of(words) / 2
    return text(min(max(scale(value), half), WIDTH - half), y, words, "tick", "middle")


def _dot(scale: Scale, y: float, t: TargetReport, p: PhaseCost) -> str:
    figure = f"{seconds(p.seconds)}, {_sure(p.bound, p.confidence)}"
    x, middle = scale(p.seconds), y + 14
    tip = svg.title(f"{t.target}: {figure}")
    dot = svg.element("circle", tip, cx=x, cy=middle, r=6, class_=_class(p.bound, p.confidence))
    return _heading(y, t.target, figure) + line(EDGE, middle, WIDTH - EDGE, middle, "axis") + dot


# ---- the roofline

PLOT = Box(42, 8, WIDTH - 50, 240)
LABELLED = 7
LEAST = 0.002
"""Ops of a smaller share of the time are left out, since they would stretch the axes."""


def roofline(t: TargetReport, p: PhaseCost) -> str:
    """Return the ops of a phase under the roofs of a target, both axes logarithmic."""
    rows = [r for r in p.rows if r.flops and r.bytes and r.share >= LEAST]
    roofs = _distinct(t.roofs)
    ridges = [r.flop_per_s / r.bytes_per_s for r in roofs]
    points = [(r.flops / r.bytes, r.flops / r.seconds) for r in rows]
    x = Scale(*svg.around([i for i, _ in points] + ridges, 1.5), PLOT.x, PLOT.x + PLOT.width, True)
    speeds = [s for _, s in points] + [r.flop_per_s for r in roofs]
    y = Scale(*svg.around(speeds, 2), PLOT.y + PLOT.height, PLOT.y, log=True)
    lines = [_roof(x, y, roof) for roof in roofs]
    shapes = [_point(x, y, r) for r in sorted(rows, key=lambda r: -r.share)]
    names = _labels(x, y, rows, roofs)
    axes = _axes(x, y, "flops per byte", "FLOP/s")
    label = f"roofline of {p.name} on {t.target}"
    return svg.picture(WIDTH, PLOT.y + PLOT.height + 34, label, *axes, *lines, *shapes, *names)


def _distinct(roofs: Sequence[Roof]) -> list[Roof]:
    """Return one roof for each path, the highest first."""
    by_path = {r.path: r for r in roofs}
    return sorted(by_path.values(), key=lambda r: -r.flop_per_s)


def _axes(x: Scale, y: Scale, across: str, up: str) -> Iterator[str]:
    bottom, left = PLOT.y + PLOT.height, PLOT.x
    for v in x.ticks():
        yield line(x(v), PLOT.y, x(v), bottom, "grid")
        yield text(x(v), bottom + 14, f"{v:g}" if v < 1e4 else count(v), "tick", "middle")
    for v in y.ticks():
        yield line(left, y(v), left + PLOT.width, y(v), "grid")
        yield text(left - 5, y(v) + 4, count(v), "tick", "end")
    yield text(left + PLOT.width, bottom + 29, across, "tick", "end")
    yield text(EDGE, bottom + 29, up, "tick")


def _roof(x: Scale, y: Scale, roof: Roof) -> str:
    """Return a roof from the left edge (or where it comes up from below) over its ridge."""
    ridge = roof.flop_per_s / roof.bytes_per_s
    start = max(x.lo, y.lo / roof.bytes_per_s)
    corners = [(x(start), y(start * roof.bytes_per_s)), (x(ridge), y(roof.flop_per_s))]
    return svg.path([*corners, (x(x.hi), y(roof.flop_per_s))], "roof")


def _point(x: Scale, y: Scale, row: Row) -> str:
    at_x, at_y = _place(x, y, row)
    shape = _class(row.bound, row.confidence)
    return svg.element(
        "circle", svg.title(_about(row)), cx=at_x, cy=at_y, r=_radius(row), class_=shape
    )


def _place(x: Scale, y: Scale, row: Row) -> tuple[float, float]:
    return x(row.flops / row.bytes), y(row.flops / row.seconds)


def _radius(row: Row) -> float:
    return 2.5 + 11 * math.sqrt(row.share)


def _about(row: Row) -> str:
    """Return all about a point in words."""
    speed = f"{digits(row.flops / row.bytes)} flops/byte, {count(row.flops / row.seconds)}FLOP/s"
    took = f"{seconds(row.seconds)} ({share(row.share)}), {_sure(row.bound, row.confidence)}"
    return f"{row.op} in {row.path}: {took}; {speed}"


def _labels(x: Scale, y: Scale, rows: Sequence[Row], roofs: Sequence[Roof]) -> Iterator[str]:
    """Yield the names of roofs and of the greatest ops, each where it covers no other.

    A name that has no such place is left out: it is in the tip of its point.
    """
    ordered = sorted(rows, key=lambda r: -r.share)
    taken = [_around(*_place(x, y, r), _radius(r)) for r in ordered[:LABELLED]]
    wanted = [(_roof_name(r), "roofname", list(_roof_spots(y, r))) for r in roofs]
    for row in ordered[:LABELLED]:
        spots = _spots(*_place(x, y, row), _radius(row), svg.width_of(_name(row)))
        wanted.append((_name(row), "opname", list(spots)))
    for words, class_, places in wanted:
        if found := next((b for b in places if _free(b, taken)), None):
            taken.append(found)
            yield text(found.x, found.y + 9, words, class_)


def _roof_name(roof: Roof) -> str:
    return f"{roof.path} {count(roof.flop_per_s)}FLOP/s"


def _roof_spots(y: Scale, roof: Roof) -> Iterator[Box]:
    """Yield places over and under the flat part of a roof, from its right end on."""
    width, at = svg.width_of(_roof_name(roof)), y(roof.flop_per_s)
    for left in (0.0, 60.0, 120.0):
        for top in (at - 13, at + 3):
            yield Box(PLOT.x + PLOT.width - 2 - width - left, top, width, 11)


def _around(x: float, y: float, r: float) -> Box:
    return Box(x - r, y - r, 2 * r, 2 * r)


def _name(row: Row) -> str:
    return row.op if not row.path.startswith("@") else f"{row.op} (outside)"


def _free(box: Box, taken: Iterable[Box]) -> bool:
    return box.within(PLOT) and not any(box.meets(t) for t in taken)


def _spots(x: float, y: float, r: float, width: float) -> Iterator[Box]:
    """Yield places for a name beside a point, the best first."""
    for far in (3.0, 9.0, 18.0):
        yield Box(x + r + far, y - 6, width, 11)
        yield Box(x - r - far - width, y - 6, width, 11)
        yield Box(x - width / 2, y - r - far - 10, width, 11)
        yield Box(x - width / 2, y + r + far, width, 11)


# ---- memory


def memory(t: TargetReport) -> str:
    """Return the peak beside the capacity, and keys, values and activations over time."""
    peak = max((m.memory for m in t.timeline), key=lambda m: m.total)
    parts = (("weights", peak.weights), ("kv", peak.kv), ("activations", peak.activations))
    whole = float(max(peak.total, peak.capacity or 0))
    of = f" of {size(peak.capacity)}" if peak.capacity else ", capacity unknown"
    head = _heading(14, "peak", f"{size(peak.total)}{of}")
    bar = _stack(22, [(n, size(v), v / whole) for n, v in parts])
    words = [f"{n} {size(v)}" for n, v in parts]
    legend = _legend(52, [n for n, _ in parts], words)
    limit = ""
    if peak.capacity and peak.capacity < whole:
        limit = line(*_upright(EDGE + (WIDTH - 2 * EDGE) * peak.capacity / whole), "limit")
    return svg.picture(
        WIDTH, 228, f"memory on {t.target}", head, *bar, limit, *legend, *_growth(t, 74, 196)
    )


def _upright(x: float) -> tuple[float, float, float, float]:
    return x, 18.0, x, 38.0


def _stack(y: float, parts: Sequence[tuple[str, str, float]]) -> Iterator[str]:
    """Yield a bar of parts, each with its class, its figure and its share of the width."""
    at, width = EDGE, WIDTH - 2 * EDGE
    yield _track(y)
    for name, figure, part in parts:
        yield rect(Box(at, y, width * part, BAR), name, f"{name}: {figure}")
        at += width * part


def _legend(y: float, classes: Sequence[str], words: Sequence[str]) -> Iterator[str]:
    at = EDGE
    for name, said in zip(classes, words, strict=True):
        yield rect(Box(at, y - 8, 8, 8), name)
        yield text(at + 12, y, said, "tick")
        at += 12 + svg.width_of(said) + 12


def _growth(t: TargetReport, top: float, bottom: float) -> Iterator[str]:
    """Yield the areas of keys and values, and of activations above them, over time."""
    stops = t.timeline
    highest = max(m.memory.kv + m.memory.activations for m in stops)
    x = Scale(0.0, stops[-1].seconds, 46.0, WIDTH - 8)
    y = Scale(0.0, highest * 1.05, bottom, top)
    for v in y.ticks(4):
        yield line(46, y(v), WIDTH - 8, y(v), "grid")
        yield text(41, y(v) + 4, size(v), "tick", "end")
    low, high = _outline(t)
    under = [(x(s), y(v)) for s, v in low]
    yield svg.path([*((x(s), y(v)) for s, v in high), *reversed(under)], "activations", closed=True)
    yield svg.path([*under, (x(stops[-1].seconds), bottom)], "kv", closed=True)
    yield from _times_below(t, x, bottom)


_Points: TypeAlias = list[tuple[float, float]]


def _outline(t: TargetReport) -> tuple[_Points, _Points]:
    """Return seconds and bytes of keys and values, and of activations on top of them.

    While the prompt is read the cache fills, and activations are those of the prompt; behind it
    they are those of one token.
    """
    first, *later = t.timeline
    low: _Points = [(0.0, 0.0), *((m.seconds, float(m.memory.kv)) for m in t.timeline)]
    high: _Points = [(s, v + first.memory.activations) for s, v in low[:2]]
    if later:
        high.append((first.seconds, float(first.memory.kv + later[0].memory.activations)))
    high += [(m.seconds, float(m.memory.kv + m.memory.activations)) for m in later]
    return low, high


def _times_below(t: TargetReport, x: Scale, y: float) -> Iterator[str]:
    first, last = t.timeline[0], t.timeline[-1]
    end = f"{last.tokens} tokens, {seconds(last.seconds)}, {_sure(last.bound, last.confidence)}"
    start = f"prompt read: {seconds(first.seconds)}, {_sure(first.bound, first.confidence)}"
    yield line(x(first.seconds), 74, x(first.seconds), y, "axis")
    yield text(46, y + 13, start, "tick")
    if last is not first:
        yield text(WIDTH - 8, y + 27, f"end: {end}", "tick", "end")


# ---- bars with a line of words above each


def parts(t: TargetReport) -> str:
    """Return what the time of each phase goes to."""
    inside: list[str] = []
    for i, p in enumerate(t.phases):
        y = ROW * i + 14
        found = {"launch": p.launch_seconds, "memory": p.memory_seconds}
        found["compute"] = p.compute_seconds
        whole = sum(found.values())
        figure = f"{seconds(p.seconds)}, {_sure(p.bound, p.confidence)}"
        shares = [(n, seconds(v), v / whole if whole else 0.0) for n, v in found.items()]
        inside += [_heading(y, p.name, figure), *_stack(y + 8, shares)]
    bottom = ROW * len(t.phases) + 12
    names = ("launch", "memory", "compute")
    legend = _legend(bottom, names, ("launches", "memory", "arithmetic"))
    return svg.picture(WIDTH, bottom + 6, f"parts of the time on {t.target}", *inside, *legend)


def waterfall(t: TargetReport) -> str:
    """Return the times after each pass, with what each saved or added."""
    inside: list[str] = []
    y = 12.0
    for name in ("prefill", "decode"):
        inside.append(text(EDGE, y, name, "strong"))
        inside += _falls(y + 18, name, t.waterfall)
        y += 18 + (ROW - 6) * len(t.waterfall) + 12
    return svg.picture(WIDTH, y - 12, f"time after each pass on {t.target}", *inside)


def _falls(y: float, phase: str, steps: Sequence[Snapshot]) -> Iterator[str]:
    values: list[float] = [getattr(s, f"{phase}_seconds") for s in steps]
    most, before = max(values) or 1.0, values[0]
    for i, (step, value) in enumerate(zip(steps, values, strict=True)):
        bound: Bound = getattr(step, f"{phase}_bound")
        ratio = times(value / values[0]) if values[0] else ""
        figure = f"{seconds(value)} {ratio}, {_sure(bound, step.confidence)}"
        at = y + (ROW - 6) * i
        yield _heading(at, step.name, figure)
        yield from _fall(at + 6, before / most, value / most, _class(bound, step.confidence))
        before = value


def _fall(y: float, before: float, now: float, class_: str) -> Iterator[str]:
    """Yield a bar, and beside it what it lost, or on it what it gained."""
    width = WIDTH - 2 * EDGE
    low, high = sorted((before, now))
    yield rect(Box(EDGE, y, width * low, BAR), class_)
    name = "saved" if now < before else "added"
    yield rect(Box(EDGE + width * low, y, width * (high - low), BAR), name, name)


def measured(t: TargetReport) -> str:
    """Return measured times and predicted ones, a pair for each phase."""
    inside: list[str] = []
    for i, m in enumerate(t.measured):
        y = 2 * ROW * i + 14
        scale = Scale(0.0, max(m.most_seconds, m.seconds), EDGE, WIDTH - EDGE)
        runs = f"{seconds(m.measured_seconds)}, median of {m.runs}"
        figure = f"{seconds(m.seconds)} {times(m.ratio)}, {_sure(m.bound, m.confidence)}"
        inside += [_heading(y, f"{m.phase}, measured", runs), _track(y + 8)]
        inside.append(rect(Box(EDGE, y + 8, scale(m.measured_seconds) - EDGE, BAR), "seen"))
        inside.append(line(scale(m.least_seconds), y + 14, scale(m.most_seconds), y + 14, "spread"))
        inside += [_heading(y + ROW, f"{m.phase}, predicted", figure), _track(y + ROW + 8)]
        shape = Box(EDGE, y + ROW + 8, scale(m.seconds) - EDGE, BAR)
        inside.append(rect(shape, _class(m.bound, m.confidence)))
    height = 2 * ROW * len(t.measured)
    return svg.picture(WIDTH, height, f"measured and predicted on {t.target}", *inside)
