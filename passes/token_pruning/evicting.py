"""Rebuilds `@step` so that its states evict: how a token leaves the cache.

Every cache becomes a placed state, which holds as many tokens as the others but not the same ones.
What the program knew of cached tokens from its caller it now asks each state: validity for masks,
positions for windows and ALiBi. Behind each attention stands a `kv.evict`. How tokens are scored is
the scorer's affair, whether they may be evicted the pass's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from elidir.ir import (
    KV,
    Attention,
    Body,
    Concat,
    Dim,
    Function,
    KvAppend,
    KvEvict,
    KvPositions,
    KvRead,
    Layer,
    MaskState,
    Op,
    Region,
    Value,
    make_body,
    symbol,
)
from elidir.passes.sizes import resized, with_sizes
from elidir.passes.token_pruning.scorers import EvictingError, Seen

N, S, HELD = symbol("N"), symbol("S"), symbol("S.0")

# Takes what stands at an attention and the list that new ops go to; returns the op that evicts.
Rule = Callable[[Seen, list[Op]], KvEvict | None]


@dataclass(eq=False)
class Evicting:
    """Builds one function.

    Args:
        region: of `@step`, or of a `@prefill` that another pass has made.
        rule: makes the op that evicts, and those that score.
        new: what stands for N.
        prompt: whether it reads a prompt.
        scored: whether the states keep scores.
    """

    region: Region
    rule: Rule
    new: Dim
    prompt: bool
    scored: bool
    front: list[Op] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    known: set[Value] = field(default_factory=set)
    bodies: dict[Any, Body] = field(default_factory=dict)

    def function(self, name: str) -> Function:
        """Return the function; raises `EvictingError`."""
        self.given = {p.name: p for p in self.region.params}
        values = {p: self._param(p) for p in self.region.params}
        params = tuple(values.values())
        self.known = set(params)
        first = next(v for v in params if isinstance(v.type, KV))
        values[self.given["mask"]] = self._emit(MaskState(values[self.given["mask"]], first))
        positional: dict[Value, Op | None] = {self.given["kpos"]: None}
        for op in self.region.ops:
            if isinstance(op, KvPositions):
                raise EvictingError("it asks one state for the positions of several")
            if isinstance(op, Layer):
                self._layer(op, values, positional)
            elif positional.keys() & set(op.operands()):
                positional.update(dict.fromkeys(op.results, op))
            else:
                made = op.clone(values.__getitem__, **resized(op, self.sizes))
                self.ops.append(made)
                values.update(zip(op.results, made.results, strict=True))
        if lost := [r for r in self.region.results if r in positional]:
            raise EvictingError(f"it yields {lost[0]!r}, which depends on cached positions")
        results = tuple(values[r] for r in self.region.results)
        return Function(name, Region(params, (*self.front, *self.ops), results))

    @property
    def sizes(self) -> dict[Any, Dim]:
        """What stands for the old sizes inside of the program."""
        return {N: self.new, S: HELD}

    def _param(self, old: Value) -> Value:
        kind = old.type
        if not isinstance(kind, KV):
            return Value(with_sizes(kind, {N: self.new}), old.name)
        length = with_sizes(kind.length, self.sizes)
        return Value(replace(kind, length=length, placed=True, scored=self.scored), old.name)

    def _emit(self, op: Op) -> Value:
        """Append an op, before all layers if it reads parameters alone."""
        early = self.known.issuperset(op.operands())
        (self.front if early else self.ops).append(op)
        self.known.update(op.results if early else ())
        return op.results[0]

    def _layer(
        self, op: Layer, values: dict[Value, Value], positional: dict[Value, Op | None]
    ) -> None:
        states = [v for v in op.inputs if isinstance(v.type, KV)]
        own: dict[Value, Value] = {}
        if positional.keys() & set(op.inputs):
            if len(states) != 1:
                raise EvictingError(f"{op.scope} has {len(states)} caches and reads positions")
            held = self._emit(KvPositions(values[states[0]]))
            pos = values[self.given["pos"]]
            own[self.given["kpos"]] = self._emit(Concat((held, pos), axis=1))

        def at(value: Value) -> Value:
            if value not in positional or value in own:
                return own.get(value) or values[value]
            source = positional[value]
            assert source is not None
            made = source.clone(at, **resized(source, self.sizes))
            self._emit(made)
            own.update(zip(source.results, made.results, strict=True))
            return own[value]

        inputs = tuple(map(at, op.inputs))
        names = tuple(r.name for r in op.results)
        new = Layer(self._body(op.body, inputs), inputs, scope=op.scope, loc=op.loc, names=names)
        self.ops.append(new)
        values.update(zip(op.results, new.results, strict=True))

    def _body(self, body: Body, inputs: tuple[Value, ...]) -> Body:
        """Return the body that evicts, shared by layers whose inputs have one type."""
        key = (id(body), tuple(v.type for v in inputs))
        if key not in self.bodies:
            old = body.region.params
            params = tuple(Value(v.type, p.name) for v, p in zip(inputs, old, strict=True))
            values = dict(zip(old, params, strict=True))
            ops: list[Op] = []
            for op in body.region.ops:
                ops.append(op.clone(values.__getitem__, **resized(op, self.sizes)))
                values.update(zip(op.results, ops[-1].results, strict=True))
            left = {a.result: self._evicted(a, ops) for a in _appends(ops)}
            results = tuple(left.get(values[r], values[r]) for r in body.region.results)
            self.bodies[key] = make_body(body.name, Region(params, tuple(ops), results))
        return self.bodies[key]

    def _evicted(self, append: KvAppend, ops: list[Op]) -> Value:
        reads = {o.results[0] for o in ops if isinstance(o, KvRead) and o.kv is append.result}
        readers = [o for o in ops if isinstance(o, Attention) and o.k in reads]
        if not readers:
            raise EvictingError(f"no attention reads the cache of {append.loc or 'a layer'}")
        op = self.rule(Seen(readers[0], append, self.prompt), ops)
        if op is None:
            return append.result
        ops.append(op)
        return op.result


def _appends(ops: list[Op]) -> list[KvAppend]:
    return [op for op in ops if isinstance(op, KvAppend)]
