"""Rebuilds `@step` so that later layers hold fewer tokens than the first: the dropping of tokens.

Layers between two cuts are a *group* over the same tokens. Group 0 holds all and shares positions
and mask with the caller; the states of group g keep their own, and hold `S.g` tokens. `Narrowing`
writes two programs over such states: the step that drops nothing, and with a `Choice` the one that
reads a prompt and drops tokens of it before each cut. With a `Revival` both bring some of them
back. What a layer before a cut decides is in `deciding.py`, whether it may the pass's affair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy

from elidir.ir import (
    KV,
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
    Region,
    Tensor,
    TokensFind,
    TokensNew,
    TokensTake,
    TokensValid,
    Value,
    free_symbols,
    make_body,
    symbol,
)
from elidir.passes.sizes import resized, with_sizes
from elidir.passes.token_pruning.deciding import Choice, Deciding, Revival, coming
from elidir.passes.token_pruning.scorers import Scorer

N, S, P = symbol("N"), symbol("S"), symbol("P")


def cached(group: int) -> sympy.Symbol:
    """Return the symbol of how many tokens the states of a group hold before a step."""
    return symbol(f"S.{group}") if group else S


class NarrowingError(ElidirError):
    """What stands in the way of dropping tokens, or of bringing them back."""


@dataclass
class _Group:
    """Layers over the same tokens: sizes for N and S, and what stands for the old values.

    `fresh` are those of the step that are left, and `tokens` these and such as came back, both sets
    of the session's; None where they are the step's, all of them. `inner` are the fresh ones as a
    set of the group before, None where nothing is dropped. `mask` is the caller's over them.
    """

    number: int
    sizes: Mapping[sympy.Expr, Dim]
    mask: Value
    values: dict[Value, Value]
    state: Value | None = None
    valid: Value | None = None
    fresh: Value | None = None
    tokens: Value | None = None
    inner: Value | None = None

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
        scorer: what tokens are chosen by.
        choice: which of a step's tokens go on.
        revival: which of those that were dropped come back; None for none.
    """

    step: Region
    cuts: Sequence[int]
    scorer: Scorer
    choice: Choice | None = None
    revival: Revival | None = None
    front: list[Op] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    known: set[Value] = field(default_factory=set)
    groups: list[_Group] = field(default_factory=list)
    bodies: dict[Any, tuple[Body, tuple[str, ...]]] = field(default_factory=dict)

    def function(self, name: str) -> Function:
        """Return the function; where tokens are dropped, `valid` bool[B, N] is behind the mask.

        Behind the states are those in which each cut parks the rows of its tokens.
        """
        self.named = {p.name: p for p in self.step.params}
        self.layers = [op for op in self.step.ops if isinstance(op, Layer)]
        new = P if self.choice else N
        values = {p: self._param(p, {N: new}) for p in self.step.params}
        valid = Value(Tensor((values[self.named["ids"]].type.dims[0], new), DType.BOOL), "valid")
        self.parked = self._parking() if self.revival else []
        params = list(values.values())
        last = max(i for i, p in enumerate(params) if isinstance(p.type, KV))
        params[last + 1 : last + 1] = self.parked
        if self.choice:
            params.insert(list(self.named).index("mask") + 1, valid)
        self.known = set(params)
        mask = values[self.named["mask"]]
        self.groups = [_Group(0, {N: new, S: S}, mask, values, valid=valid)]
        if self._decides:
            pos = values[self.named["pos"]]
            self.groups[0].fresh = self._emit(TokensNew(pos, S), early=True).results[0]
        for op in self.step.ops:
            if isinstance(op, Layer):
                self._layer(op, self.layers.index(op))
            else:
                made = self._emit(self._clone(op))
                self.groups[-1].values.update(zip(op.results, made.results, strict=True))
        results = (*(self.at(r) for r in self.step.results), *self.parked)
        return Function(name, Region(tuple(params), (*self.front, *self.ops), results))

    @property
    def _decides(self) -> bool:
        return self.choice is not None or self.revival is not None

    def _param(self, old: Value, sizes: Mapping[sympy.Expr, Dim]) -> Value:
        if not isinstance(old.type, KV):
            return Value(with_sizes(old.type, sizes), old.name)
        number = next((i for i, op in enumerate(self.layers) if old in op.inputs), 0)
        group = sum(cut <= number for cut in self.cuts)
        return Value(replace(old.type, length=cached(group), placed=group > 0), old.name)

    def _parking(self) -> list[Value]:
        """Return the states that keep the rows which each cut meets: keys of one head, no values.

        Raises `NarrowingError` where layers hand on more than one row of each token.
        """
        found = []
        for group, cut in enumerate(self.cuts):
            rows = [r for r in self.layers[cut - 1].results if N in r.type.dims]
            if len(rows) != 1 or len(rows[0].type.dims) != 3:
                scope = self.layers[cut - 1].scope
                raise NarrowingError(f"{scope} hands on more than one row of each token")
            (batch, _, width), dtype = rows[0].type.dims, rows[0].tensor.dtype
            kind = KV(batch, 1, cached(group), width, 0, dtype, placed=group > 0)
            found.append(Value(kind, f"parked.{group}"))
        return found

    def _clone(self, op: Op) -> Op:
        return op.clone(self.at, **resized(op, self.groups[-1].sizes))

    def _emit(self, op: Op, *, early: bool = False) -> Op:
        """Append an op; with `early`, before all layers if it reads parameters alone.

        What has a size that is known only when tokens come back stays where it is.
        """
        sizes = {name for r in op.results for d in r.type.dims for name in free_symbols(d)}
        waits = sizes & {str(coming(group.number)) for group in self.groups}
        early = early and not waits and self.known.issuperset(op.operands())
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
        if made := self._of_place(old, group):
            return made
        state = isinstance(old.type, KV)
        cached_too = not state and any("S" in free_symbols(d) for d in old.type.dims)
        if cached_too or (self.revival and N in old.type.dims):
            return self._remade(old, group)
        before = self.at(old, group.number - 1)
        last = self.groups[group.number - 1]
        axis = last.axis(before)
        if group.inner is None or state or not last.has_tokens(before):
            return before
        if axis is None:
            raise NarrowingError(f"{before!r} has tokens in a dimension of other things too")
        return self._emit(TokensTake(before, group.inner, axis)).results[0]

    def _of_place(self, old: Value, group: _Group) -> Value | None:
        """Return what stands for a parameter that says where tokens are, None for other values."""
        assert group.state is not None
        if old is self.named["mask"]:
            tokens = group.tokens if self.revival else None
            return self._emit(MaskState(group.mask, group.state, tokens), early=True).results[0]
        if old is self.named["kpos"]:
            held = self._emit(KvPositions(group.state), early=True).results[0]
            pos = self.at(self.named["pos"], group.number)
            return self._emit(Concat((held, pos), axis=1), early=True).results[0]
        if old is self.named["pos"] and self.revival and group.tokens is not None:
            return self._emit(TokensTake(self.at(self.named["kpos"], 0), group.tokens)).results[0]
        if old is self.named["rows"] and group.inner is not None:
            before = self.at(old, group.number - 1)
            return self._emit(TokensFind(group.inner, before)).results[0]
        return None

    def _remade(self, old: Value, group: _Group) -> Value:
        """Make a value anew from positions; raises `NarrowingError` if it is of other things."""
        made = next((op for op in self.step.ops if old in op.results), None)
        if made is None or isinstance(made, Layer):
            raise NarrowingError(f"%{old.name} of a token is not known any more")
        sizes = resized(made, group.sizes)
        new = self._emit(made.clone(lambda v: self.at(v, group.number), **sizes), early=True)
        group.values.update(zip(made.results, new.results, strict=True))
        return group.values[old]

    # ---- layers

    def _layer(self, op: Layer, number: int) -> None:
        if not self._decides and number in self.cuts:
            self._next({}, {})
        group = self.groups[-1]
        decides = self._decides and number + 1 in self.cuts
        extra = {} if group.tokens is None else {"tokens": group.tokens}
        extra |= self._given(group) if decides else {}
        inputs = (*(self.at(v) for v in op.inputs), *extra.values())
        body, found = self._body(op.body, inputs, group, tuple(extra), decides)
        names = tuple(r.name for r in op.results)
        new = self._emit(Layer(body, inputs, scope=op.scope, loc=op.loc, names=names))
        results = dict(zip(op.results, new.results, strict=False))
        group.values.update(results)
        if decides:
            outcome = dict(zip(found, new.results[len(op.results) :], strict=True))
            self._next(outcome, results)

    def _given(self, group: _Group) -> dict[str, Value]:
        """Return what a layer before a cut decides by."""
        assert group.fresh is not None
        found = {"rows": self.at(self.named["rows"]), "fresh": group.fresh}
        if self.choice:
            group.valid = group.valid or self._emit(TokensValid(group.fresh)).results[0]
            found["valid"] = group.valid
        if self.revival:
            found["parked"] = self.parked[group.number]
            found["next"] = self._state(group.number + 1)
        return found

    def _state(self, number: int) -> Value:
        """Return the first state of a group."""
        first = self.layers[self.cuts[number - 1]]
        return self.at(next(v for v in first.inputs if isinstance(v.type, KV)), 0)

    def _next(self, found: Mapping[str, Value], results: Mapping[Value, Value]) -> None:
        """Begin the group behind the next cut, over the tokens that were decided on."""
        last, number = self.groups[-1], len(self.groups)
        sizes = {N: last.sizes[N], S: cached(number)}
        new = _Group(number, sizes, last.mask, {}, self._state(number), fresh=last.fresh)
        if inner := found.get("chosen"):
            new.inner, new.fresh = inner, found["fresh"]
            new.mask = self._emit(MaskKeep(last.mask, inner)).results[0]
        if found:
            tokens = found["tokens"] if self.revival else found["fresh"]
            new.tokens, new.sizes = tokens, {N: tokens.type.dims[1], S: cached(number)}
            new.values = {v: r for v, r in results.items() if new.axis(r) is not None}
        if self.revival:
            self.parked[last.number] = found["parked"]
        self.groups.append(new)
        # The mask first: what is made anew of positions is then in one run with the layers.
        self.at(self.named["mask"])

    def _body(
        self,
        body: Body,
        inputs: Sequence[Value],
        group: _Group,
        extra: Sequence[str],
        decides: bool,
    ) -> tuple[Body, tuple[str, ...]]:
        """Return the body over the group's tokens, and the names of what it decides.

        It is shared by layers whose inputs have one type.
        """
        key = (id(body), tuple(v.type for v in inputs), decides)
        if key not in self.bodies:
            old = body.region.params
            names = (*(p.name for p in old), *extra)
            params = [Value(v.type, n) for v, n in zip(inputs, names, strict=True)]
            values = dict(zip(old, params, strict=False))
            given = dict(zip(extra, params[len(old) :], strict=True))
            ops = self._inner(body.region, values, given.get("tokens"), group)
            results, found = [values[r] for r in body.region.results], dict[str, Value]()
            if decides:
                deciding = Deciding(self.scorer, self.choice, self.revival, group.number, given)
                results, found = deciding.of(results, ops, group.axis)
            region = Region(tuple(params), tuple(ops), (*results, *found.values()))
            self.bodies[key] = make_body(f"{body.name}.{group.number}", region), tuple(found)
        return self.bodies[key]

    def _inner(
        self, region: Region, values: dict[Value, Value], tokens: Value | None, group: _Group
    ) -> list[Op]:
        ops = []
        for op in region.ops:
            changes = resized(op, group.sizes)
            if isinstance(op, KvAppend) and tokens is not None:
                changes["tokens"] = tokens
            ops.append(op.clone(values.__getitem__, **changes))
            values.update(zip(op.results, ops[-1].results, strict=True))
        return ops
