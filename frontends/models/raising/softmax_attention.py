"""Attention written out by hand: softmax(scores + masks) times values becomes `attention`.

The anchor is a matrix product whose left side is a softmax. Whatever is added to the scores must
depend on positions and parameters alone. Attention look-alikes with another normaliser have no
softmax there and stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from elidir.frontends.raising.probe import Probe, ProbeError
from elidir.ir import (
    Add,
    Attention,
    Builder,
    Cast,
    Compare,
    Concat,
    Const,
    Dim,
    Div,
    DType,
    Expand,
    Full,
    HeadsSplit,
    MatMul,
    Maximum,
    Mul,
    Op,
    Permute,
    Reduce,
    Reshape,
    Slice,
    Softmax,
    Sub,
    Unary,
    Value,
    Weight,
    Where,
    as_dim,
)

NEVER = float("-inf")


@dataclass
class Scores:
    """Scores taken apart: scale * softcapped(q k^T) + addends."""

    product: MatMul
    scale: float = 1.0
    softcap: float | None = None
    addends: list[Value] = field(default_factory=list)
    lead: tuple[Dim, Dim] | None = None


class SoftmaxAttentionRule:
    """Raises matmul(softmax(..), v)."""

    def __init__(self, probe: Probe, add_weight: Any) -> None:
        self.probe, self.add_weight = probe, add_weight

    def __call__(self, op: Op, b: Builder) -> Sequence[Value] | None:
        """Raise the op if it is the product of a softmax and values."""
        if not isinstance(op, MatMul):
            return None
        softmax, cut = _through(op.a, b), None
        if isinstance(softmax, Slice):
            softmax, cut = _through(softmax.x, b), softmax
        if not isinstance(softmax, Softmax) or softmax.axis != len(softmax.x.type.dims) - 1:
            return None
        inner, sinks = (softmax.x, None) if cut is None else self._sinks(softmax.x, cut, b)
        scores = None if inner is None else self._take_apart(inner, b)
        if scores is None or scores.lead is None:
            return None
        return self._build(op, scores, sinks, b)

    def _sinks(self, x: Value, cut: Slice, b: Builder) -> tuple[Value | None, Weight | None]:
        """Return (scores, sinks) where a last column, cut off afterwards, is a weight per head."""
        op = b.op_of(x)
        if isinstance(op, Sub) and _is_maximum(op, b):
            op = b.op_of(op.a)
        if not isinstance(op, Concat) or len(op.parts) != 2 or op.parts[1].type.dims[-1] != 1:
            return None, None
        if (cut.start, cut.stop) != (0, op.parts[0].type.dims[-1]):
            return None, None
        column = b.op_of(op.parts[1])
        while isinstance(column, Expand | Reshape | Cast):
            column = b.op_of(column.x)
        if not isinstance(column, Const):
            return None, None
        heads = op.parts[0].type.dims[1]
        flat = self.probe.tensors[column.weight.name].flatten()
        if flat.shape[0] != heads:
            return None, None
        return op.parts[0], self.add_weight("sinks", flat)

    def _take_apart(self, value: Value, b: Builder) -> Scores | None:
        addends: list[tuple[Value, float]] = []
        scale, softcap, lead = 1.0, None, _lead(value)
        while (op := b.op_of(value)) is not None:
            lead = lead or _lead(value)
            if isinstance(op, MatMul):
                lead = lead or _lead(op.a) or _factor(op.a)
                terms = [_scaled(a, s, b) for a, s in addends]
                return Scores(op, scale, softcap, terms, lead)
            step = self._peel(op, b)
            if step is None:
                return None
            value, factor, term, cap = step
            if term is not None:
                addends.append((term, scale))
            if cap is not None and (scale != 1.0 or softcap is not None):
                return None
            scale, softcap = scale * factor, softcap or cap
        return None

    def _peel(self, op: Op, b: Builder) -> tuple[Value, float, Value | None, float | None] | None:
        """Return (inner value, factor, addend, softcap) of one step outwards, or None."""
        if isinstance(op, Reshape) and op.x.type.dims[-2:] == op.result.type.dims[-2:]:
            return op.x, 1.0, None, None
        if isinstance(op, Cast) and op.x.tensor.dtype.is_float:
            return op.x, 1.0, None, None
        if isinstance(op, Sub) and _is_maximum(op, b):
            return op.a, 1.0, None, None
        if (capped := _softcap(op, b)) is not None:
            return capped[0], 1.0, None, capped[1]
        if isinstance(op, Mul | Div) and isinstance(op.a, Value) and isinstance(op.b, float | int):
            return op.a, float(op.b) if isinstance(op, Mul) else 1.0 / op.b, None, None
        if isinstance(op, Mul) and isinstance(op.b, Value) and isinstance(op.a, float | int):
            return op.b, float(op.a), None, None
        return self._addend(op, b)

    def _addend(self, op: Op, b: Builder) -> tuple[Value, float, Value | None, None] | None:
        index = lambda v: isinstance(v, Value) and self.probe.is_index(v, b.op_of)  # noqa: E731
        pairs = ((op.a, op.b), (op.b, op.a)) if isinstance(op, Add) else ()
        for x, term in pairs:
            if index(term) and isinstance(x, Value):
                return x, 1.0, term, None
        if isinstance(op, Sub) and index(op.b) and isinstance(op.a, Value):
            return op.a, 1.0, b.emit(Mul(op.b, -1.0)), None
        if isinstance(op, Where) and index(op.cond):
            return self._masked(op, b)
        if isinstance(op, Maximum) and isinstance(op.a, Value) and self._is_never(op.b, b):
            return op.a, 1.0, None, None
        if (
            isinstance(op, Mul)
            and index(op.b)
            and isinstance(op.a, Value)
            and self._is_binary(op.b, b)
        ):
            never = b.emit(Where(b.emit(Compare(op.b, 0, fn="ne")), self._zero(b), NEVER))
            return op.a, 1.0, never, None
        return None

    def _is_binary(self, value: Value, b: Builder) -> bool:
        """Whether a mask factor is 0 or 1 everywhere: scores times it, less a lot where it is 0."""
        inputs = self.probe.index_inputs(2, 9, 0)
        try:
            (found,) = self.probe.run([value], b.op_of, inputs)
        except ProbeError:
            return False
        return bool(((found == 0) | (found == 1)).all())

    def _zero(self, b: Builder) -> Value:
        return b.emit(Full(shape=(), value=0.0, dtype=DType.F32))

    def _masked(self, op: Where, b: Builder) -> tuple[Value, float, Value, None] | None:
        """where(cond, scores, never) adds 0 or -inf."""
        if isinstance(op.a, Value) and self._is_never(op.b, b):
            return op.a, 1.0, b.emit(Where(op.cond, self._zero(b), NEVER)), None
        if isinstance(op.b, Value) and self._is_never(op.a, b):
            keep = b.emit(Unary(op.cond, fn="not"))
            return op.b, 1.0, b.emit(Where(keep, self._zero(b), NEVER)), None
        return None

    def _is_never(self, item: Any, b: Builder) -> bool:
        """Whether a number, or a constant, is so low that softmax makes it nothing."""
        op = b.op_of(item)
        if isinstance(op, Cast | Reshape | Expand):
            return self._is_never(op.x, b)
        if isinstance(op, Const) and op.weight.name in self.probe.tensors:
            item = float(self.probe.tensors[op.weight.name].max())
        if isinstance(op, Full):
            item = op.value
        return isinstance(item, float | int) and item <= -1e4

    def _build(
        self, op: MatMul, scores: Scores, sinks: Weight | None, b: Builder
    ) -> list[Value] | None:
        q, keys, v = scores.product.a, scores.product.b, op.b
        if not all(len(x.type.dims) in (3, 4) for x in (q, keys, v)):
            return None
        batch, heads = scores.lead or (1, 1)
        rank = len(keys.type.dims)
        swap = (*range(rank - 2), rank - 1, rank - 2)
        k = b.emit(Permute(keys, order=swap))
        q4, k4, v4 = (_four(x, batch, heads, b) for x in (q, k, v))
        bias = _sum([_four(_wide(a, b), batch, heads, b) for a in scores.addends], b)
        scale, softcap = scores.scale, scores.softcap
        out = Attention(q4, k4, v4, bias=bias, sinks=sinks, scale=scale, softcap=softcap)
        split = b.emit(HeadsSplit(b.emit(out), heads=_int(heads)))
        return [b.emit(Reshape(split, shape=op.result.type.dims))]


def _is_maximum(op: Sub, b: Builder) -> bool:
    """Whether scores lose their largest, which softmax does not see."""
    top = b.op_of(op.b)
    if not isinstance(top, Reduce) or top.fn != "max" or not top.keep:
        return False
    return top.x is op.a and top.axes == (len(top.x.type.dims) - 1,)


def _int(heads: Dim) -> int:
    return heads if isinstance(heads, int) else 1


def _through(value: Value, b: Builder) -> Op | None:
    """Return the op behind reshapes that keep the last axis, casts and identities."""
    op = b.op_of(value)
    while isinstance(op, Cast) or (isinstance(op, Reshape) and _keeps_matrix(op)):
        op = b.op_of(op.x)
    return op


def _keeps_matrix(op: Reshape) -> bool:
    return op.x.type.dims[-2:] == op.result.type.dims[-2:]


def _softcap(op: Op, b: Builder) -> tuple[Value, float] | None:
    """Return (x, c) if the op is c * tanh(x / c)."""
    if not isinstance(op, Mul) or not isinstance(op.b, float | int):
        return None
    tanh = b.op_of(op.a)
    if not isinstance(tanh, Unary) or tanh.fn != "tanh":
        return None
    inner = b.op_of(tanh.x)
    if isinstance(inner, Div) and inner.b == op.b and isinstance(inner.a, Value):
        return inner.a, float(op.b)
    return None


def _scaled(value: Value, factor: float, b: Builder) -> Value:
    return value if factor == 1.0 else b.emit(Mul(value, factor))


def _sum(values: list[Value], b: Builder) -> Value | None:
    total = values[0] if values else None
    for value in values[1:]:
        total = b.emit(Add(total, value))
    return total


def _lead(value: Value) -> tuple[Dim, Dim] | None:
    dims = value.type.dims
    return (dims[0], dims[1]) if len(dims) == 4 else None


def _factor(value: Value) -> tuple[Dim, Dim] | None:
    """Return (batch, heads) of a merged axis such as 4*B; one head if it is a plain symbol."""
    first = value.type.dims[0]
    if isinstance(first, int) or len(value.type.dims) != 3:
        return None
    number, rest = first.as_coeff_Mul()
    return (as_dim(rest), int(number))


def _four(value: Value, batch: Dim, heads: Dim, b: Builder) -> Value:
    """Return the value with four axes: a merged first axis becomes batch and heads."""
    dims = value.type.dims
    if len(dims) == 4:
        return value
    lead = (batch, heads) if dims[0] != 1 else (1, 1)
    if dims[0] == batch and heads != 1:
        lead = (batch, 1)
    if dims[0] == heads:  # [H, T, T], the same in each row of the batch
        lead = (1, heads)
    return b.emit(Reshape(value, shape=(*lead, *dims[-2:])))


def _wide(value: Value, b: Builder) -> Value:
    """Return an addend with at least three axes."""
    dims = value.type.dims
    if len(dims) >= 3:
        return value
    return b.emit(Reshape(value, shape=(1,) * (3 - len(dims)) + tuple(dims)))
