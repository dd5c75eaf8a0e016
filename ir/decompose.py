"""Fused ops taken apart again: `decompose(op, b)` emits plainer ops that compute the same.

A backend that does not claim a fused op runs its parts. `decompose` has the shape of a rule, so
`rewrite(module, decompose)` takes a whole module apart; a builder is all it needs to emit to.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from elidir.ir.op import Op, Value
from elidir.ir.ops.elementwise import Add, Mul, Unary
from elidir.ir.ops.int8 import Quantize, QuantizeAddNorm, QuantizeGated, QuantizeNorm
from elidir.ir.ops.model import AddNorm, FfnGated, Linear, LinearSplit, RmsNorm
from elidir.ir.ops.shape import Slice


class Emitter(Protocol):
    """What takes the parts, in order: the builder of a rule, or a backend's own list."""

    def append(self, op: Op) -> tuple[Value, ...]:
        """Append an op and return its results."""

    def emit(self, op: Op) -> Value:
        """Append an op and return its only result."""


Decomposition: TypeAlias = Callable[[Any, Emitter], tuple[Value, ...]]


def decompose(op: Op, b: Emitter) -> Sequence[Value] | None:
    """Emit the parts of a fused op and return its results; None if it has no parts."""
    parts = DECOMPOSITIONS.get(type(op))
    return parts(op, b) if parts else None


class _Parts:
    """An emitter that only keeps what it is given."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def append(self, op: Op) -> tuple[Value, ...]:
        self.ops.append(op)
        return op.results

    def emit(self, op: Op) -> Value:
        return self.append(op)[0]


def parts_of(op: Op) -> tuple[tuple[Op, ...], tuple[Value, ...]] | None:
    """Return the parts of a fused op and the values of its results; None if it has no parts."""
    parts = _Parts()
    results = decompose(op, parts)
    return None if results is None else (tuple(parts.ops), tuple(results))


def _linear_split(op: LinearSplit, b: Emitter) -> tuple[Value, ...]:
    x = b.emit(Linear(op.x, op.weight, op.bias, loc=op.loc))
    axis = len(x.tensor.dims) - 1
    starts = [sum(op.sizes[:i]) for i in range(len(op.sizes))]
    spans = zip(starts, op.sizes, strict=True)
    return tuple(b.emit(Slice(x, axis, at, at + n, loc=op.loc)) for at, n in spans)


def _ffn_gated(op: FfnGated, b: Emitter) -> tuple[Value, ...]:
    gate = b.emit(Linear(op.x, op.gate, loc=op.loc))
    act = b.emit(Unary(gate, op.act, loc=op.loc))
    up = b.emit(Linear(op.x, op.up, loc=op.loc))
    product = b.emit(Mul(act, up, loc=op.loc))
    return (b.emit(Linear(product, op.down, loc=op.loc)),)


def _add_norm(op: AddNorm, b: Emitter) -> tuple[Value, ...]:
    total = b.emit(Add(op.a, op.b, loc=op.loc))
    return (total, b.emit(RmsNorm(total, op.weight, op.eps, loc=op.loc)))


def _quantize_norm(op: QuantizeNorm, b: Emitter) -> tuple[Value, ...]:
    normed = b.emit(RmsNorm(op.x, op.weight, op.eps, loc=op.loc))
    return b.append(Quantize(normed, op.scale, op.columns, loc=op.loc))


def _quantize_add_norm(op: QuantizeAddNorm, b: Emitter) -> tuple[Value, ...]:
    total = b.emit(Add(op.a, op.b, loc=op.loc))
    normed = b.emit(RmsNorm(total, op.weight, op.eps, loc=op.loc))
    return (total, *b.append(Quantize(normed, op.scale, op.columns, loc=op.loc)))


def _quantize_gated(op: QuantizeGated, b: Emitter) -> tuple[Value, ...]:
    act = b.emit(Unary(op.gate, op.act, loc=op.loc))
    product = b.emit(Mul(act, op.up, loc=op.loc))
    return b.append(Quantize(product, op.scale, op.columns, loc=op.loc))


DECOMPOSITIONS: dict[type[Op], Decomposition] = {
    LinearSplit: _linear_split,
    FfnGated: _ffn_gated,
    AddNorm: _add_norm,
    QuantizeNorm: _quantize_norm,
    QuantizeAddNorm: _quantize_add_norm,
    QuantizeGated: _quantize_gated,
}
