"""Mixtures of experts, as `batched_mm` of transformers spells them: gather each token's weights.

The anchor is the sum over a token's experts. Everything between it and the tokens is matched,
because the gathers of weight matrices must go: each token is computed by its experts without
copying them.
"""

from collections.abc import Sequence
from typing import Any

from elidir.frontends.raising.probe import constant_weight
from elidir.ir import (
    Builder,
    Cast,
    Expand,
    FfnExperts,
    MatMul,
    Mul,
    Op,
    Reduce,
    Reshape,
    Slice,
    Take,
    Unary,
    Value,
    Weight,
)


def experts_rule(op: Op, b: Builder) -> Sequence[Value] | None:
    """Raise the weighted sum of gathered experts to `ffn.experts`."""
    if not isinstance(op, Reduce) or op.fn != "sum" or op.axes != (1,) or op.keep:
        return None
    weighted = _behind(op.x, b)
    if not isinstance(weighted, Mul):
        return None
    for expert, gate in ((weighted.a, weighted.b), (weighted.b, weighted.a)):
        down = _gathered_product(expert, b)
        if down is None:
            continue
        found = _gate_up(down[1], b)
        if found is None:
            continue
        act, gate_up, x = found
        return _build(op, b, x, down[2], gate, (gate_up, down[0]), act)
    return None


def _build(
    op: Reduce, b: Builder, x: Value, choice: Value, gate: Any, weights: Any, act: str
) -> list[Value] | None:
    tokens, count = op.x.type.dims[0], op.x.type.dims[1]
    rows = _unrepeated(x, b)
    if rows is None or not isinstance(gate, Value):
        return None
    pair = (tokens, count)
    experts = FfnExperts(
        rows,
        b.emit(Reshape(choice, shape=pair)),
        b.emit(Reshape(gate, shape=pair)),
        weights[0],
        weights[1],
        act=act,
    )
    return [b.emit(experts)]


def _behind(value: Any, b: Builder) -> Op | None:
    """Return the op behind reshapes and casts."""
    op = b.op_of(value)
    while isinstance(op, Reshape | Cast):
        op = b.op_of(op.x)
    return op


def _gathered_product(value: Any, b: Builder) -> tuple[Weight, Value, Value] | None:
    """Return (weight [E, O, I], x, index) of weight[index] @ x."""
    op = _behind(value, b)
    take = b.op_of(op.a) if isinstance(op, MatMul) else None
    if not isinstance(op, MatMul) or not isinstance(take, Take) or take.axis != 0:
        return None
    weight = constant_weight(take.x, b.op_of)
    return None if weight is None else (weight, op.b, take.index)


def _gate_up(value: Value, b: Builder) -> tuple[str, Weight, Value] | None:
    """Return (activation, weight, x) of act(first half) * second half of the gathered product."""
    gated = _behind(value, b)
    if not isinstance(gated, Mul):
        return None
    for left, right in ((gated.a, gated.b), (gated.b, gated.a)):
        unary, up = b.op_of(left), b.op_of(right)
        gate = b.op_of(unary.x) if isinstance(unary, Unary) else None
        if not isinstance(gate, Slice) or not isinstance(up, Slice) or gate.x is not up.x:
            continue
        if gate.start != 0 or gate.stop != up.start:
            continue
        found = _gathered_product(gate.x, b)
        return None if found is None else (unary.fn, found[0], found[1])
    return None


def _unrepeated(value: Value, b: Builder) -> Value | None:
    """Return [N, H] behind its repeats for each expert: [N, 1, H] -> [N, K, H] -> [N*K, H, 1]."""
    op = _behind(value, b)
    if not isinstance(op, Expand) or len(op.x.type.dims) != 3 or op.x.type.dims[1] != 1:
        return None
    tokens, _, width = op.x.type.dims
    return b.emit(Reshape(op.x, shape=(tokens, width)))
