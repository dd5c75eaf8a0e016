"""Rebuilds `@step` so that later layers hold fewer tokens than the first: the dropping of tokens.

Layers between two cuts are a *group* over the same tokens. Group 0 holds all and shares positions
and mask with the caller; the states of group g keep their own, and hold `S.g` tokens. `Narrowing`
writes two programs over such states: the step that drops nothing, and with a `Choice` the one that
reads a prompt and drops tokens of it before each cut. How tokens are scored is the scorer's affair,
whether they may be dropped the pass's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy

from elidir.ir import (
    KV,
    Attention,
    Body,
    Concat,
    Dim,
    DType,
    ElidirError,
    Function,
    KvAppend,
    KvPositions,
    Layer,
    MaskKeep,
    MaskState,
    Op,
    Reduce,
    Region,
    Slice,
    Tensor,
    TokenSet,
    TokensFind,
    TokensSelect,
    TokensTake,
    TokensValid,
    TokensWithin,
    Value,
    as_dim,
    free_symbols,
    make_body,
    symbol,
)
from elidir.passes.sizes import resized, with_sizes
from elidir.passes.token_pruning.scorers import Scorer

N, S, P = symbol("N"), symbol("S"), symbol("P")


def cached(group: int) -> sympy.Symbol:
    """Return the symbol of how many tokens the states of a group hold before a step."""
    return symbol(f"S.{group}") if group else S


class NarrowingError(ElidirError):
    """What stands in the way of dropping tokens."""


@dataclass(frozen=True)
class Choice:
    """Which tokens go on: by which score, what part at each cut, and at least how many."""

    scorer: Scorer
    keep: tuple[float, ...]
    at_least: int


@dataclass
class _Group:
    """Layers over the same tokens: sizes for N and S, and what stands for the old values.

    `tokens` are those of the step that are left, `inner` the same as a set of the group before;
    None where nothing is dropped. `mask` is the caller's over them.
    """

    number: int
    sizes: Mapping[sympy.Expr, Dim]
    mask: Value
    values: dict[Value, Value]
    valid: Value | None = None
    state: Value | None = None
    inner: Value | None = None
    tokens: Value | None = None

    def axis(self, value: Value) -> int | None:
        """Return the axis of a tensor that runs over the group's tokens."""
        dims = value.type.dims if isinstance(value.type, Tensor) else ()
        return next((i for i, d in enumerate(dims) if d == self.sizes[N]), None)

    def has_tokens(self, value: Value) -> bool:
        """Whether a value has a dimension that depends on the number of tokens."""
        tokens = free_symbols(self.sizes[N])
        return any(free_symbols(d) & tokens for d in value.type.dims)


@dataclass(eq=False)
class Narrowing:
    """Builds one function; without a choice, the one that drops nothing.

    Args:
        step: the region of `@step`, whose layers are `layer` ops.
        cuts: the layers before which tokens are dropped, rising, none the first.
        choice: which tokens go on.
    """

    step: Region
    cuts: Sequence[int]
    choice: Choice | None = None
    front: list[Op] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    known: set[Value] = field(default_factory=set)
    groups: list[_Group] = field(default_factory=list)
    bodies: dict[Any, Body] = field(default_factory=dict)

    def function(self, name: str) -> Function:
        """Return the function; where tokens are dropped, `valid` bool[B, N] is behind the mask."""
        self.named = {p.name: p for p in self.step.params}
        new = P if self.choice else N
        values = {p: self._param(p, {N: new}) for p in self.step.params}
        valid = Value(Tensor((values[self.named["ids"]].type.dims[0], new), DType.BOOL), "valid")
        params = list(values.values())
        if self.choice:
            params.insert(list(self.named).index("mask") + 1, valid)
        self.known = set(params)
        mask = values[self.named["mask"]]
        self.groups = [_Group(0, {N: new, S: S}, mask, values, valid)]
        layers = 0
        for op in self.step.ops:
            if isinstance(op, Layer):
                self._layer(op, layers)
                layers += 1
            else:
                made = self._emit(self._clone(op))
                self.groups[-1].values.update(zip(op.results, made.results, strict=True))
        results = tuple(self.at(r) for r in self.step.results)
        return Function(name, Region(tuple(params), (*self.front, *self.ops), results))

    def _param(self, old: Value, sizes: Mapping[sympy.Expr, Dim]) -> Value:
        if not isinstance(old.type, KV):
            return Value(with_sizes(old.type, sizes), old.name)
        layers = [op for op in self.step.ops if isinstance(op, Layer)]
        number = next((i for i, op in enumerate(layers) if old in op.inputs), 0)
        group = sum(cut <= number for cut in self.cuts)
        return Value(replace(old.type, length=cached(group), placed=group > 0), old.name)

    def _clone(self, op: Op) -> Op:
        return op.clone(self.at, **resized(op, self.groups[-1].sizes))

    def _emit(self, op: Op, *, early: bool = False) -> Op:
        """Append an op; with `early`, before all layers if it reads parameters alone."""
        early = early and self.known.issuperset(op.operands())
        (self.front if early else self.ops).append(op)
        self.known.update(op.results if early else ())
        return op

    # ---- what stands for a value of the old step

    def at(self, old: Value, group: int = -1) -> Value:
        """Return what stands for an old value in a group, the last by default."""
        found = self.groups[group]
        if old not in found.values:
            found.values[old] = self._brought(old, found)
        return found.values[old]

    def _brought(self, old: Value, group: _Group) -> Value:
        """Bring an earlier group's value along: made anew over positions, taken, or as it is."""
        if old is self.named["mask"]:
            assert group.state is not None
            return self._emit(MaskState(group.mask, group.state), early=True).results[0]
        if old is self.named["kpos"]:
            assert group.state is not None
            held = self._emit(KvPositions(group.state), early=True).results[0]
            pos = self.at(self.named["pos"], group.number)
            return self._emit(Concat((held, pos), axis=1), early=True).results[0]
        if old is self.named["rows"] and group.tokens is not None:
            return self._emit(TokensFind(group.tokens, self.at(old, 0))).results[0]
        state = isinstance(old.type, KV)
        if not state and any("S" in free_symbols(d) for d in old.type.dims):
            made = next(op for op in self.step.ops if old in op.results)
            sizes = resized(made, group.sizes)
            new = self._emit(made.clone(lambda v: self.at(v, group.number), **sizes), early=True)
            return new.results[made.results.index(old)]
        before = self.at(old, group.number - 1)
        last = self.groups[group.number - 1]
        axis = last.axis(before)
        if group.inner is None or state or not last.has_tokens(before):
            return before
        if axis is None:
            raise NarrowingError(f"{before!r} has tokens in a dimension of other things too")
        return self._emit(TokensTake(before, group.inner, axis)).results[0]

    # ---- layers

    def _layer(self, op: Layer, number: int) -> None:
        if self.choice is None and number in self.cuts:
            self._next(None, {})
        group = self.groups[-1]
        scored = self.choice is not None and number + 1 in self.cuts
        extra = [] if group.tokens is None else [group.tokens]
        extra += [self.at(self.named["rows"]), self._valid(group)] if scored else []
        inputs = (*(self.at(v) for v in op.inputs), *extra)
        body = self._body(op.body, inputs, group, scored)
        names = tuple(r.name for r in op.results)
        new = self._emit(Layer(body, inputs, scope=op.scope, loc=op.loc, names=names))
        results = dict(zip(op.results, new.results, strict=False))
        group.values.update(results)
        if scored:
            self._next(new.results[-1], results)

    def _next(self, inner: Value | None, results: Mapping[Value, Value]) -> None:
        """Begin the group behind the next cut, over the tokens of a set of the last group's."""
        last, number = self.groups[-1], len(self.groups)
        layers = [op for op in self.step.ops if isinstance(op, Layer)]
        first = layers[self.cuts[number - 1]]
        state = self.at(next(v for v in first.inputs if isinstance(v.type, KV)), 0)
        new = _Group(number, {N: last.sizes[N], S: cached(number)}, last.mask, {}, state=state)
        if inner is not None:
            assert isinstance(inner.type, TokenSet)
            new.sizes = {N: inner.type.length, S: cached(number)}
            new.inner = new.tokens = inner
            if last.tokens is not None:
                new.tokens = self._emit(TokensWithin(inner, last.tokens)).results[0]
            new.mask = self._emit(MaskKeep(last.mask, inner)).results[0]
            new.values = {v: r for v, r in results.items() if new.axis(r) is not None}
        self.groups.append(new)

    def _valid(self, group: _Group) -> Value:
        if group.valid is None:
            assert group.tokens is not None
            group.valid = self._emit(TokensValid(group.tokens)).results[0]
        return group.valid

    def _body(self, body: Body, inputs: Sequence[Value], group: _Group, scored: bool) -> Body:
        """Return the body over the group's tokens, shared by layers whose inputs have one type."""
        key = (id(body), tuple(v.type for v in inputs), scored)
        if key not in self.bodies:
            old = body.region.params
            names = [*(p.name for p in old), *("tokens", "rows", "valid")[group.tokens is None :]]
            params = [Value(v.type, n) for v, n in zip(inputs, names, strict=False)]
            values = dict(zip(old, params, strict=False))
            ops = self._inner(body.region, values, params[len(old) :], group)
            results = [values[r] for r in body.region.results]
            if scored:
                results = self._scored(results, ops, params[-2], params[-1], group)
            region = Region(tuple(params), tuple(ops), tuple(results))
            self.bodies[key] = make_body(f"{body.name}.{group.number}", region)
        return self.bodies[key]

    def _inner(
        self, region: Region, values: dict[Value, Value], extra: Sequence[Value], group: _Group
    ) -> list[Op]:
        ops = []
        for op in region.ops:
            changes = resized(op, group.sizes)
            if isinstance(op, KvAppend) and group.tokens is not None:
                changes["tokens"] = extra[0]
            ops.append(op.clone(values.__getitem__, **changes))
            values.update(zip(op.results, ops[-1].results, strict=True))
        return ops

    def _scored(
        self, results: Sequence[Value], ops: list[Op], rows: Value, valid: Value, group: _Group
    ) -> list[Value]:
        """Choose the tokens that go on, and return what a layer yields of them, and the set."""
        assert self.choice is not None
        attention = next(op for op in ops if isinstance(op, Attention))
        scores = self.choice.scorer(attention, rows, ops)
        whole = Reduce(scores, "mean", (1,))
        old, new = group.sizes[S], group.sizes[N]
        part = Slice(whole.result, axis=1, start=as_dim(old), stop=as_dim(old + new))
        keep = self.choice.keep[group.number]
        chosen = TokensSelect(part.result, valid, rows, keep, self.choice.at_least)
        ops += [whole, part, chosen]
        taken = []
        for value in results:
            if (axis := group.axis(value)) is not None:
                ops.append(TokensTake(value, chosen.result, axis))
                value = ops[-1].results[0]
            taken.append(value)
        return [*taken, chosen.result]
