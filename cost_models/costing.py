"""Makes reports: walks a module once, and costs its phases on each target.

`report` is for users, `waterfall` follows a pipeline, `snapshot` is one step of it. The work is
symbolic and counted once; a phase only evaluates it. Nothing here formats or knows a formula.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from elidir.cost_models.counted import Costing
from elidir.cost_models.describe import Description, describe
from elidir.cost_models.energy import power_field, power_of, why_unknown
from elidir.cost_models.formats import storage_format
from elidir.cost_models.memory import Footprint, parameters
from elidir.cost_models.phases import (
    Line,
    Phase,
    Request,
    decode,
    describe_sizes,
    has_cache,
    prefill,
)
from elidir.cost_models.report import (
    Assumption,
    Comparison,
    LayerTime,
    Measured,
    Memory,
    Moment,
    PhaseCost,
    Report,
    Roof,
    Row,
    Snapshot,
    TargetReport,
    Total,
)
from elidir.cost_models.roofline import Confidence, Cost, Model
from elidir.cost_models.schema import Provenance
from elidir.cost_models.target import Target, TargetLike, load_target
from elidir.cost_models.work import Arithmetic, Precision
from elidir.ir import Module, product

STOPS = 4
"""So many times of decoding does the timeline show."""


def report(
    module: Module | Description | str | Path,
    targets: TargetLike | Sequence[TargetLike],
    *,
    batch: int = 1,
    prompt: int = 512,
    new: int = 128,
    context: int | None = None,
    dtype: str | None = None,
    waterfall: Iterable[Snapshot] = (),
    measured: Iterable[Measured] = (),
    bindings: Mapping[str, int] | None = None,
) -> Report:
    """Return what a module (or a description of one) costs on each target.

    Args:
        module: a module, a description, or a description's name or path.
        targets: names, paths, overrides or targets; one, or several.
        batch: rows.
        prompt: tokens of each prompt.
        new: tokens to make after it.
        context: tokens cached when one decoded token is costed; the prompt by default.
        dtype: count floats in this dtype; `i8` means int8 products with weights, f16 else. By
            default weights are as stored and values as typed.
        waterfall: snapshots of the module between passes, see `waterfall`.
        measured: phases that were run, to stand beside what is predicted for them.
        bindings: values of symbols beyond B, T, N, S and R.

    Raises:
        CostError: a target, description, dtype or size is wrong.
    """
    subject = module if isinstance(module, Module) else describe(module)
    request = Request(batch, prompt, new, context, bindings or {})
    costing = Costing(subject, request, Precision.of(dtype))
    seen = _Seen(tuple(waterfall), tuple(measured))
    return _report(costing, _load(targets), seen, dtype)


@dataclass(frozen=True)
class _Seen:
    """What was noted of the module elsewhere, on all targets."""

    waterfall: tuple[Snapshot, ...]
    measured: tuple[Measured, ...]


def _report(costing: Costing, targets: Iterable[Target], seen: _Seen, dtype: str | None) -> Report:
    module, request = costing.module, costing.request
    return Report(
        module=module.name,
        parameters=parameters(module, costing.function),
        formats=_formats(module),
        batch=request.batch,
        prompt=request.prompt,
        new=request.new,
        context=request.cached,
        dtype=dtype or "",
        targets=tuple(_target(costing, t, seen) for t in targets),
        not_modelled=costing.not_modelled(),
        notes=costing.notes(dtype),
    )


def _load(targets: TargetLike | Sequence[TargetLike]) -> list[Target]:
    if isinstance(targets, str | Path | Mapping | Target):
        return [load_target(targets)]
    return [load_target(t) for t in targets]


def snapshot(
    name: str,
    module: Module,
    target: TargetLike,
    *,
    batch: int = 1,
    prompt: int = 512,
    context: int | None = None,
    dtype: str | None = None,
    bindings: Mapping[str, int] | None = None,
) -> Snapshot:
    """Return what a module costs now, for the waterfall; `name` is the pass that made it so."""
    history = [(name, module)]
    (only,) = waterfall(
        history,
        [target],
        batch=batch,
        prompt=prompt,
        context=context,
        dtype=dtype,
        bindings=bindings,
    )
    return only


def _snapshot(name: str, costing: Costing, model: Model) -> Snapshot:
    module, request = costing.module, costing.request
    first = costing.cost(prefill(module, request), model)
    past = request.cached if has_cache(module) else request.cached - 1  # the longest may be asked
    token = costing.cost(decode(module, request, past), model)
    sure = min(first.confidence, token.confidence)
    seconds = (first.seconds, first.bound, token.seconds, token.bound)
    return Snapshot(name, model.target.name, *seconds, sure)


def waterfall(
    history: Iterable[tuple[str, Module]],
    targets: TargetLike | Sequence[TargetLike],
    *,
    batch: int = 1,
    prompt: int = 512,
    context: int | None = None,
    dtype: str | None = None,
    bindings: Mapping[str, int] | None = None,
) -> tuple[Snapshot, ...]:
    """Return a snapshot on each target of each module that a pipeline made, named by its pass.

    `history` starts with the input, as the rows of the `History` instrument do.
    """
    loaded, request = _load(targets), Request(batch, prompt, 1, context, bindings or {})
    steps = [(name, Costing(module, request, Precision.of(dtype))) for name, module in history]
    return tuple(_snapshot(name, c, Model(t)) for name, c in steps for t in loaded)


def _formats(module: Module) -> dict[str, int]:
    """Return how many parameters are stored in each format."""
    counts: dict[str, int] = {}
    for name, entry in module.weights.items():
        size = product(entry.type.dims)
        if entry.expr is None and isinstance(size, int):
            key = storage_format(name, module.weights)
            counts[key] = counts.get(key, 0) + size
    return dict(sorted(counts.items()))


def _target(costing: Costing, target: Target, seen: _Seen) -> TargetReport:
    model, request = Model(target), costing.request
    phases = [_phase(costing, model, prefill(costing.module, request), request.prompt)]
    if request.new > 1 or request.context is not None:
        one = decode(costing.module, request, request.cached)
        phases.append(_phase(costing, model, one, 1))
    course = list(_course(costing, model))
    return TargetReport(
        target=target.name,
        title=target.title,
        phases=tuple(phases),
        total=_total(costing, model, course),
        timeline=tuple(_moment(costing, model, *stop) for stop in course),
        roofs=tuple(_roofs(model, costing.arithmetics())),
        measured=tuple(_compared(seen.measured, target, phases)),
        waterfall=tuple(s for s in seen.waterfall if s.target == target.name),
        assumptions=tuple(_assumptions(costing, model, phases)),
        notes=tuple(_target_notes(costing, model, phases)),
    )


def _assumptions(
    costing: Costing, model: Model, phases: Sequence[PhaseCost]
) -> Iterator[Assumption]:
    quantities = model.quantities(costing.arithmetics())
    for field in sorted({power_field(p.bound.value) for p in phases}):
        quantities[f"power.{field}"] = getattr(model.target.power, field)
    quantities["memory_gb"] = model.target.memory_gb
    for name, q in quantities.items():
        yield Assumption(name, q.value, q.kind.value, q.source) if q else _unknown(name)


def _roofs(model: Model, arithmetics: Iterable[Arithmetic]) -> Iterator[Roof]:
    for arithmetic in sorted(arithmetics):
        choice = model.choose(arithmetic)
        yield Roof(str(arithmetic), choice.name, choice.flop_per_s, model.bytes_per_s)


def _compared(
    measured: Iterable[Measured], target: Target, phases: Iterable[PhaseCost]
) -> Iterator[Comparison]:
    predicted = {p.name: p for p in phases}
    for m in measured:
        if m.target == target.name and (p := predicted.get(m.phase)):
            timed = (m.phase, m.seconds, m.least, m.most, m.runs, m.how)
            yield Comparison(*timed, p.seconds, p.bound, p.confidence)


def _unknown(field: str) -> Assumption:
    return Assumption(field, None, "unknown", "no source gives it; nothing is counted for it")


def _target_notes(costing: Costing, model: Model, phases: Sequence[PhaseCost]) -> list[str]:
    notes = model.stand_ins(costing.arithmetics())
    limit, peak = model.target.agent.addressable_gb, max(p.memory.total for p in phases)
    if limit and peak > limit.value * 1e9:
        notes.append(
            f"one graph addresses {limit.value:g} GB and this needs {peak / 1e9:.1f} GB: cut it"
        )
    return notes


def _phase(costing: Costing, model: Model, phase: Phase, tokens: int) -> PhaseCost:
    items, costs = costing.at(phase), costing.costs(phase, model)
    whole = model.phase(costs)
    rows = tuple(_row(i, c, whole) for i, c in zip(items, costs, strict=True))
    return PhaseCost(
        name=phase.name,
        sizes=describe_sizes(phase),
        tokens=tokens * costing.request.batch,
        seconds=whole.seconds,
        launch_seconds=whole.launch,
        memory_seconds=whole.memory,
        compute_seconds=whole.compute,
        bound=whole.bound,
        confidence=whole.confidence,
        joules=whole.joules,
        joules_confidence=_sure_of_energy(model.target, whole),
        joules_unknown=why_unknown(model.target, whole.bound.value),
        flops=sum(row.flops for row in rows),
        bytes=sum(row.bytes for row in rows),
        memory=_memory(costing.held(phase), model.target),
        rows=rows,
        layers=_layers(items, costs, whole),
    )


def _sure_of_energy(target: Target, whole: Cost) -> Confidence | None:
    power = power_of(target, whole.bound.value)
    if power is None:
        return None
    return Confidence.LOW if power.kind is Provenance.ASSUMED else whole.confidence


def _row(line: Line, cost: Cost, whole: Cost) -> Row:
    flops, moved, launches = (
        sum(int(getattr(w, name)) for w in line.works) * line.count
        for name in ("total_flops", "total_bytes", "launches")
    )
    share = cost.seconds / whole.seconds if whole.seconds else 0.0
    return Row(
        path=line.path,
        op=line.kind,
        count=line.count,
        ops=len(line.works) * line.count,
        launches=launches,
        flops=flops,
        bytes=moved,
        seconds=cost.seconds,
        share=share,
        bound=cost.bound,
        confidence=cost.confidence,
        joules=None if whole.joules is None else whole.joules * share,
    )


def _layers(items: Sequence[Line], costs: Sequence[Cost], whole: Cost) -> tuple[LayerTime, ...]:
    """Return one entry for each layer, in the order of the function."""
    by_scope: dict[str, Cost] = {}
    for line, cost in zip(items, costs, strict=True):
        for scope in line.scopes:
            by_scope[scope] = by_scope.get(scope, Cost()) + cost * (1 / line.count)
    return tuple(
        LayerTime(path, c.seconds, c.seconds / whole.seconds, c.bound, c.confidence)
        for path, c in by_scope.items()
    )


def _memory(held: Footprint, target: Target) -> Memory:
    capacity = int(target.memory_gb.value * 1e9) if target.memory_gb else None
    fits = None if capacity is None else held.total <= capacity
    return Memory(held.weights, held.kv, held.activations, held.total, capacity, fits)


_Stop: TypeAlias = tuple[Phase, int, Cost]
"""A phase, the tokens that are cached at its end, and the cost up to there."""


def _course(costing: Costing, model: Model) -> Iterator[_Stop]:
    """Yield the prompt's end and some tokens after it, evenly spaced, the last one included.

    A decoded token's time is almost linear in the context, so it is costed at the first and the
    last only, and taken between them.
    """
    module, request = costing.module, costing.request
    start = prefill(module, request)
    whole = costing.cost(start, model)
    yield start, request.prompt, whole
    steps = max(request.new - 1, 0)
    if not steps:
        return
    first, last = (
        costing.cost(decode(module, request, request.prompt + n), model) for n in (0, steps - 1)
    )
    for n in sorted({max(1, round(steps * i / STOPS)) for i in range(1, STOPS + 1)}):
        late = n * n / (2 * steps)
        so_far = whole + first * (n - late) + last * late
        yield decode(module, request, request.prompt + n - 1), request.prompt + n, so_far


def _moment(costing: Costing, model: Model, phase: Phase, tokens: int, cost: Cost) -> Moment:
    held = _memory(costing.held(phase), model.target)
    return Moment(phase.name, tokens, cost.seconds, cost.bound, cost.confidence, held)


def _total(costing: Costing, model: Model, course: Sequence[_Stop]) -> Total:
    """Return the answer: the prompt gives the first token, each other one is a decoded one."""
    request, cost = costing.request, course[-1][2]
    held = [_memory(costing.held(phase), model.target) for phase, _, _ in course]
    peak = max(held, key=lambda m: m.total)
    parts = [_sure_of_energy(model.target, costing.cost(p, model)) for p, _, _ in course]
    sure = None if cost.joules is None else min(c for c in parts if c is not None)
    tokens = (request.prompt + request.new) * request.batch
    figures = (cost.seconds, cost.bound, cost.confidence, cost.joules, sure)
    return Total(tokens, *figures, peak.total, peak.fits)
