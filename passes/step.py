"""Builds `@step`: the program over N new tokens after S cached ones, from the one over a sequence.

This is the only place that knows how one becomes the other. Whether it may is decided in
`incrementalize.py`; nothing here checks legality.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from elidir.ir import (
    KV,
    Add,
    AlibiBias,
    Attention,
    Body,
    Cast,
    Const,
    Dim,
    Div,
    DType,
    Function,
    KvAppend,
    KvRead,
    Layer,
    LayerNorm,
    Linear,
    Mask,
    MaskAnd,
    MaskCausal,
    MaskValid,
    MaskWindow,
    Mul,
    Op,
    Region,
    RmsNorm,
    Tensor,
    TokensTake,
    Type,
    Unary,
    Value,
    as_dim,
    count_uses,
    make_body,
    symbol,
)
from elidir.passes.analyses import State
from elidir.passes.sizes import resized

N, S, R = symbol("N"), symbol("S"), symbol("R")


def step_of(forward: Region, state: State) -> Function:
    """Return `@step` for a causal `@forward(%ids, %valid, %pos)`."""
    length = forward.params[0].type.dims[1]
    return _Step(forward.params, length, state).function(forward)


@dataclass
class _Step:
    """Builds `@step`: the caches found so far, and the bodies by what they are called with."""

    old: Sequence[Value]
    length: Dim
    state: State
    caches: list[Value] = field(default_factory=list)
    appended: list[Value] = field(default_factory=list)
    bodies: dict[Any, Body] = field(default_factory=dict)

    def function(self, forward: Region) -> Function:
        batch = self.old[0].type.dims[0]
        slots = as_dim(S + N)
        ids = Value(Tensor((batch, N), DType.I64), "ids")
        pos = Value(Tensor((batch, N), DType.I64), "pos")
        kpos = Value(Tensor((batch, slots), DType.I64), "kpos")
        mask = Value(Mask((batch, N, slots)), "mask")
        rows = Value(Tensor((batch, R), DType.I64), "rows")
        mapped: dict[Value, Any] = {self.old[0]: ids, self.old[2]: pos}
        ops = self._region(forward, mapped, _Masks(mask, kpos))
        logits = _take_rows(ops, mapped[forward.results[0]], rows)
        params = (ids, pos, kpos, mask, *self.caches, rows)
        return Function("step", Region(params, tuple(ops), (logits, *self.appended)))

    def _region(self, region: Region, mapped: dict[Value, Any], masks: "_Masks") -> list[Op]:
        """Rebuild the ops of a function; `mapped` grows by what stands for each old value."""
        ops: list[Op] = []
        for op in region.ops:
            if isinstance(op, Layer):
                new: Sequence[Any] = self._layer(op, mapped, ops)
            elif isinstance(op, Attention):
                cache = self._cache(op, mapped, f"kv.{len(self.caches)}")
                self.caches.append(cache)
                new = [_attention(op, mapped, cache, ops, self.appended)]
            else:
                new = self._plain(op, mapped, masks, ops)
            mapped.update(zip(op.results, new, strict=True))
        return ops

    def _plain(
        self, op: Op, mapped: dict[Value, Any], masks: "_Masks", ops: list[Op]
    ) -> Sequence[Any]:
        handled = masks.rebuild(op, mapped)
        if handled is not None:
            if isinstance(handled, Op):
                ops.append(handled)
                return handled.results
            return [handled.value]
        new = op.clone(mapped.__getitem__, **resized(op, {self.length: N}))
        ops.append(new)
        return new.results

    def _cache(self, op: Attention, mapped: dict[Value, Any], name: str) -> Value:
        k, v = mapped[op.k].tensor, mapped[op.v].tensor
        batch, heads, _, width = k.dims
        rotated = self.state.is_rotated(op)
        return Value(KV(batch, heads, S, width, v.dims[3], k.dtype, rotated), name)

    def _layer(self, op: Layer, mapped: dict[Value, Any], ops: list[Op]) -> Sequence[Value]:
        inputs = tuple(mapped[v] for v in op.inputs)
        body = self._body(op.body, inputs)
        kinds = [p for p in body.region.params if isinstance(p.type, KV)]
        caches = [Value(p.type, f"kv.{len(self.caches) + i}") for i, p in enumerate(kinds)]
        self.caches += caches
        given = tuple(v for v in inputs if v is not None)
        new = Layer(body, (*given, *caches), scope=op.scope, loc=op.loc, names=("h",))
        ops.append(new)
        self.appended += new.results[len(op.results) :]
        return new.results[: len(op.results)]

    def _body(self, body: Body, inputs: tuple[Value | None, ...]) -> Body:
        """Return the body over new tokens for inputs of these types; None is a mask that went."""
        types = tuple(v.type if v is not None else None for v in inputs)
        key = (id(body), types)
        if key not in self.bodies:
            self.bodies[key] = self._make_body(body, types)
        return self.bodies[key]

    def _make_body(self, body: Body, types: tuple[Type | None, ...]) -> Body:
        inner = _Step(self.old, self.length, self.state)
        old = body.region.params
        params = [
            Value(t, p.name) if t is not None else None for p, t in zip(old, types, strict=True)
        ]
        mapped: dict[Value, Any] = dict(zip(old, params, strict=True))
        ops = inner._region(body.region, mapped, _Masks(None, None))
        kept = tuple(p for p in params if p is not None)
        results = (*(mapped[r] for r in body.region.results), *inner.appended)
        region = Region((*kept, *inner.caches), tuple(ops), results)
        return make_body(f"{body.name}.step", region)


@dataclass(frozen=True)
class _Stands:
    """What stands for a mask: a value, or None where nothing is left of it."""

    value: Value | None


@dataclass(frozen=True)
class _Masks:
    """The caller's mask and key positions, which stand for masks and biases over the sequence."""

    mask: Value | None
    kpos: Value | None

    def rebuild(self, op: Op, mapped: dict[Value, Any]) -> Op | _Stands | None:
        """Return the new op, or what stands for its result, or None for any other op."""
        if isinstance(op, MaskCausal):
            return _Stands(self.mask)
        if isinstance(op, MaskValid):
            return _Stands(None)
        if isinstance(op, MaskWindow):
            return op.clone(queries=mapped[op.queries], keys=self.kpos)
        if isinstance(op, AlibiBias):
            return op.clone(keys=self.kpos)
        if isinstance(op, MaskAnd):
            return self._both(op, mapped[op.a], mapped[op.b])
        return None

    def _both(self, op: MaskAnd, a: Value | None, b: Value | None) -> Op | _Stands:
        if a is None or b is None or a is b:
            return _Stands(a or b)
        return op.clone(a=a, b=b)


def _attention(
    op: Attention, mapped: dict[Value, Any], cache: Value, ops: list[Op], appended: list[Value]
) -> Value:
    append = KvAppend(cache, mapped[op.k], mapped[op.v], loc=op.loc, names=("kv",))
    read = KvRead(append.result, loc=op.loc, names=("keys", "values"))
    mask = mapped[op.mask] if op.mask is not None else None
    bias = mapped[op.bias] if op.bias is not None else None
    k, v = read.results
    new = op.clone(q=mapped[op.q], k=k, v=v, mask=mask, bias=bias)
    ops += [append, read, new]
    appended.append(append.result)
    return new.results[0]


_ROWWISE = (Linear, RmsNorm, LayerNorm, Unary, Cast)
_WITH_NUMBER = (Add, Mul, Div)


def _take_rows(ops: list[Op], logits: Value, rows: Value) -> Value:
    """Select the wanted rows as early as the ops behind the logits allow; compute only those."""
    made = {r: o for o in ops for r in o.results}
    uses = count_uses(Region((), tuple(ops), (logits,)))
    chain: list[Op] = []
    value = logits
    while uses[value] == 1 and (source := _row_source(made.get(value), made)) is not None:
        chain.append(made[value])
        value = source
    taken = TokensTake(value, rows)
    new: list[Op] = [taken]
    mapped = {value: taken.result}
    for op in reversed(chain):
        new.append(op.clone(lambda v: mapped.get(v, v)))
        mapped[op.results[0]] = new[-1].results[0]
    gone = set(chain)
    ops[:] = [o for o in ops if o not in gone] + new
    return new[-1].results[0]


def _row_source(op: Op | None, made: dict[Value, Op]) -> Value | None:
    """Return the operand of an op that works row by row, whatever else it reads being constant."""
    if isinstance(op, _ROWWISE):
        return op.x
    if not isinstance(op, _WITH_NUMBER):
        return None
    fixed = [not isinstance(v, Value) or isinstance(made.get(v), Const) for v in (op.a, op.b)]
    if fixed == [False, True] and isinstance(op.a, Value):
        return op.a
    return op.b if fixed == [True, False] and isinstance(op.b, Value) else None
