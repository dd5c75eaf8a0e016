"""Blame: which layer of a changed function adds the error.

A function is cut into stretches, each from one layer to the next. A stretch of the changed function
is run on what reaches it in the good one, so that no error but its own is seen, and what it hands
on is compared. Where the two are not cut alike nobody is blamed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from elidir.frontends.numerics import Oracle, distance
from elidir.ir import KV, Function, Layer, Module, Op, Region, Value

SHARE = 0.1
"""A layer is hit if its error is at least this share of the greatest one."""


@dataclass(frozen=True)
class Blame:
    """The layers that an error comes from: the one that adds most, how much, and which are hit.

    `error` is of the greatest value that the layer hands on; `layers` counts all there are.
    """

    layer: str
    error: float
    hit: tuple[str, ...]
    layers: int

    def __str__(self) -> str:
        if len(self.hit) == 1:
            return f"layer {self.layer}"
        return f"{len(self.hit)} of {self.layers} layers, {self.layer} the most"


@dataclass(frozen=True, eq=False)
class _Stretch:
    """The ops from a layer up to the next: what enters the layer, and what they hand on."""

    layer: str
    ops: tuple[Op, ...]
    entry: tuple[Value, ...]
    exits: tuple[Value, ...]

    @property
    def reads(self) -> tuple[Value, ...]:
        """What comes from outside."""
        own = {r for op in self.ops for r in op.results}
        read = dict.fromkeys(v for op in self.ops for v in op.operands())
        return tuple(v for v in read if v not in own)

    @property
    def handed_on(self) -> dict[int, Value]:
        """What is made here and handed on, by place."""
        own = {r for op in self.ops for r in op.results}
        return {i: v for i, v in enumerate(self.exits) if v in own}


def blame(good: Module, bad: Module, name: str, oracle: Oracle) -> Blame | None:
    """Return the layer of a function that adds most error, None where that cannot be told."""
    if name not in good.functions or name not in bad.functions:
        return None
    pairs = list(zip(_cut(good[name]), _cut(bad[name]), strict=False))
    if len(pairs) < 2 or any(a.layer != b.layer for a, b in pairs):
        return None
    known = _trace(good, good[name], [v for a, _ in pairs for v in (*a.entry, *a.exits)], oracle)
    seen = _trace(bad, bad[name], [v for _, b in pairs for v in b.reads], oracle)
    errors = {b.layer: _error(a, b, bad, known, seen, oracle) for a, b in pairs[1:]}
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] > 0:
        return None
    hit = tuple(n for n, error in errors.items() if error >= SHARE * errors[worst])
    return Blame(worst, errors[worst], hit, len(errors))


def _cut(function: Function) -> Iterator[_Stretch]:
    """Yield what comes before the layers, and a stretch for each layer."""
    ops = function.region.ops
    starts = [i for i, op in enumerate(ops) if isinstance(op, Layer)]
    ends = [*starts, len(ops)]
    exits = [*(ops[i].inputs for i in starts), function.region.results]  # type: ignore[attr-defined]
    yield _Stretch("", ops[: ends[0]], (), exits[0])
    for at, (start, end) in enumerate(zip(starts, ends[1:], strict=True)):
        layer: Any = ops[start]
        yield _Stretch(layer.loc or layer.scope, ops[start:end], layer.inputs, exits[at + 1])


def _trace(
    module: Module, function: Function, wanted: Sequence[Value], oracle: Oracle
) -> dict[Value, Any]:
    """Return what each of some values is when a function runs."""
    values = tuple(dict.fromkeys(wanted))
    region = replace(function.region, results=values)
    found = oracle.run(Function(function.name, region), module, oracle.inputs(function))
    return dict(zip(values, found, strict=True))


def _error(
    good: _Stretch,
    bad: _Stretch,
    module: Module,
    known: Mapping[Value, Any],
    seen: Mapping[Value, Any],
    oracle: Oracle,
) -> float:
    """Return the greatest error in what a stretch hands on, if it is given what is right."""
    given = {
        b: known[a]
        for a, b in zip(good.entry, bad.entry, strict=False)
        if str(a.type) == str(b.type)
    }
    handed = bad.handed_on
    region = Region(bad.reads, bad.ops, tuple(handed.values()))
    inputs = [given.get(v, seen[v]) for v in bad.reads]
    found = oracle.run(Function("stretch", region), module, inputs)
    errors = [0.0]
    for place, value in zip(handed, found, strict=True):
        if place < len(good.exits) and not isinstance(good.exits[place].type, KV):
            errors.append(distance(value, known[good.exits[place]]))
    return max(errors)
