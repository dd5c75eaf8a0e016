"""Makes reports: walks a module once, and costs its phases on each target.

`report` is for users, `waterfall` follows a pipeline, `snapshot` is one step of it. The work is
symbolic and counted once; a phase only evaluates it. Nothing here formats or knows a formula.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path

from elidir.cost_models.describe import Description, describe
from elidir.cost_models.energy import power_field, power_of, why_unknown
from elidir.cost_models.formats import storage_format
from elidir.cost_models.memory import Footprint, footprint, parameters
from elidir.cost_models.phases import (
    Line,
    Phase,
    Request,
    decode,
    describe_sizes,
    evaluate_lines,
    has_cache,
    lines,
    prefill,
)
from elidir.cost_models.report import (
    Assumption,
    LayerTime,
    Memory,
    NotModelled,
    PhaseCost,
    Report,
    Row,
    Snapshot,
    TargetReport,
    Total,
)
from elidir.cost_models.roofline import Confidence, Cost, Model
from elidir.cost_models.schema import Provenance
from elidir.cost_models.target import Target, TargetLike, load_target
from elidir.cost_models.work import Arithmetic, Precision, sum_work
from elidir.ir import Function, Module, free_symbols, product


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
        bindings: values of symbols beyond B, T, N, S and R.

    Raises:
        CostError: a target, description, dtype or size is wrong.
    """
    subject = module if isinstance(module, Module) else describe(module)
    request = Request(batch, prompt, new, context, bindings or {})
    costing = _Costing(subject, request, Precision.of(dtype))
    return _report(costing, _load(targets), tuple(waterfall), dtype)


def _report(
    costing: "_Costing",
    targets: Iterable[Target],
    waterfall: Sequence[Snapshot],
    dtype: str | None,
) -> Report:
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
        targets=tuple(_target(costing, t, waterfall) for t in targets),
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


def _snapshot(name: str, costing: "_Costing", model: Model) -> Snapshot:
    module, request = costing.module, costing.request
    first = costing.cost(prefill(module, request), model)
    token = costing.cost(decode(module, request, request.cached), model)
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
    steps = [(name, _Costing(module, request, Precision.of(dtype))) for name, module in history]
    return tuple(_snapshot(name, c, Model(t)) for name, c in steps for t in loaded)


class _Costing:
    """A module's work, walked once, and what it costs at any size on any target."""

    def __init__(self, module: Module, request: Request, precision: Precision) -> None:
        self.module, self.request, self.precision = module, request, precision
        self.function: Function = prefill(module, request).function
        self.lines = lines(module, self.function, precision)
        self.evaluated: dict[str, list[Line]] = {}
        self.footprints: dict[str, Footprint] = {}

    def at(self, phase: Phase) -> list[Line]:
        """Return the lines in numbers; each size is evaluated once for all targets."""
        key = repr(phase.bindings)
        if key not in self.evaluated:
            self.evaluated[key] = evaluate_lines(self.lines, phase)
        return self.evaluated[key]

    def held(self, phase: Phase) -> Footprint:
        """Return what a phase holds in memory; each size is walked once for all targets."""
        key = repr(phase.bindings)
        if key not in self.footprints:
            self.footprints[key] = footprint(self.module, phase, self.precision)
        return self.footprints[key]

    def costs(self, phase: Phase, model: Model) -> list[Cost]:
        """Return the cost of each line, all of its layers together."""
        return [_line_cost(line, model) for line in self.at(phase)]

    def cost(self, phase: Phase, model: Model) -> Cost:
        """Return the cost of a phase."""
        return model.phase(self.costs(phase, model))

    def arithmetics(self) -> set[Arithmetic]:
        """Return every class of arithmetic that the module does."""
        return {a for line in self.lines for w in line.works for a in w.flops}

    def not_modelled(self) -> tuple[NotModelled, ...]:
        """Return the ops whose arithmetic is unknown."""
        unknown = [line for line in self.lines if not line.modelled]
        return tuple(NotModelled(i.kind, i.path, len(i.works) * i.count) for i in unknown)

    def notes(self, dtype: str | None) -> tuple[str, ...]:
        """Return what holds on every target."""
        held = "read as stored" if dtype is None else f"counted in {dtype}, however stored"
        held += ", or in fewer bits if stored so" if self.precision.products else ""
        notes = [
            f"weights are {held}; unpacking them costs no arithmetic",
            "attention is fused and counts every query-key pair; other ops pass values via memory",
            "efficiencies are not fitted to these ops: a roofline, right to its order of magnitude",
        ]
        if not has_cache(self.module):
            notes.append("there is no @step: without a cache each new token runs the whole forward")
        return (*notes, *self._guessed())

    def _guessed(self) -> Iterator[str]:
        """Yield a sentence for each symbol of the work that nobody gave a value."""
        work = sum_work(w for line in self.lines for w in line.works)
        entries = (work.total_flops, work.total_bytes, work.launches)
        used = set().union(*(free_symbols(d) for d in entries))
        first = prefill(self.module, self.request)
        for name in sorted(used & first.guessed):
            yield f"{name} = {first.bindings[name]}, as long as the prompt: else give bindings"


def _line_cost(line: Line, model: Model) -> Cost:
    cost = reduce(add, (model.cost(w) for w in line.works), Cost()) * line.count
    return cost if line.modelled else cost.trusted(Confidence.LOW)


def _formats(module: Module) -> dict[str, int]:
    """Return how many parameters are stored in each format."""
    counts: dict[str, int] = {}
    for name, entry in module.weights.items():
        size = product(entry.type.dims)
        if entry.expr is None and isinstance(size, int):
            key = storage_format(name, module.weights)
            counts[key] = counts.get(key, 0) + size
    return dict(sorted(counts.items()))


def _target(costing: _Costing, target: Target, waterfall: Iterable[Snapshot]) -> TargetReport:
    model, request = Model(target), costing.request
    phases = [_phase(costing, model, prefill(costing.module, request), request.prompt)]
    if request.new > 1 or request.context is not None:
        one = decode(costing.module, request, request.cached)
        phases.append(_phase(costing, model, one, 1))
    quantities = model.quantities(costing.arithmetics())
    for field in sorted({power_field(p.bound.value) for p in phases}):
        quantities[f"power.{field}"] = getattr(target.power, field)
    return TargetReport(
        target=target.name,
        title=target.title,
        phases=tuple(phases),
        total=_total(costing, model),
        waterfall=tuple(s for s in waterfall if s.target == target.name),
        assumptions=tuple(
            Assumption(f, q.value, q.kind.value, q.source) if q else _unknown(f)
            for f, q in quantities.items()
        ),
        notes=tuple(_target_notes(costing, model, phases)),
    )


def _unknown(field: str) -> Assumption:
    return Assumption(field, None, "unknown", "no source gives it; nothing is counted for it")


def _target_notes(costing: _Costing, model: Model, phases: Sequence[PhaseCost]) -> list[str]:
    notes = model.stand_ins(costing.arithmetics())
    limit, peak = model.target.agent.addressable_gb, max(p.memory.total for p in phases)
    if limit and peak > limit.value * 1e9:
        notes.append(
            f"one graph addresses {limit.value:g} GB and this needs {peak / 1e9:.1f} GB: cut it"
        )
    return notes


def _phase(costing: _Costing, model: Model, phase: Phase, tokens: int) -> PhaseCost:
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


def _total(costing: _Costing, model: Model) -> Total:
    """Add up the answer: the prompt gives the first token, each other one is a decoded one.

    A decoded token's time is almost linear in the context, so the mean of first and last is taken.
    """
    module, request = costing.module, costing.request
    phases = [prefill(module, request)]
    cost = costing.cost(phases[0], model)
    if steps := max(request.new - 1, 0):
        last = request.prompt + steps - 1
        phases += [decode(module, request, request.prompt), decode(module, request, last)]
        both = costing.cost(phases[1], model) + costing.cost(phases[2], model)
        cost = cost + both * (steps / 2)
    held = [_memory(costing.held(p), model.target) for p in phases]
    peak = max(held, key=lambda m: m.total)
    tokens = (request.prompt + request.new) * request.batch
    totals = (cost.seconds, cost.bound, cost.confidence, cost.joules, peak.total, peak.fits)
    return Total(tokens, *totals)
