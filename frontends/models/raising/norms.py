"""Norms written out by hand: x * rsqrt(mean(x^2) + eps), its casts, its weight and its bias.

Each rule takes one step: the bare norm, then its mean, weight, bias and casts, as the rewriter
comes by again. These are patterns of ops; nothing is evaluated.
"""

from collections.abc import Sequence
from typing import Any

from elidir.frontends.raising.probe import constant_weight
from elidir.ir import (
    Add,
    Builder,
    Cast,
    Div,
    DType,
    LayerNorm,
    Mul,
    Op,
    Pow,
    Reduce,
    RmsNorm,
    Sub,
    Unary,
    Value,
)

Replaced = Sequence[Value] | None


def norm_rule(op: Op, b: Builder) -> Replaced:
    """Raise a hand-written norm, or fold a cast, weight or bias into a raised one."""
    for rule in (_root_mean_square, _centred, _weighted, _biased, _uncast):
        if (norm := rule(op, b)) is not None:
            return [b.emit(norm)]
    return None


def _root_mean_square(op: Op, b: Builder) -> Op | None:
    if isinstance(op, Mul):
        pairs = [(op.a, _inverse_root(op.b, b)), (op.b, _inverse_root(op.a, b))]
    elif isinstance(op, Div):
        pairs = [(op.a, _root(op.b, b))]
    else:
        return None
    for x, radicand in pairs:
        if radicand is not None and (eps := _mean_of_squares(radicand, x, b)) is not None:
            return RmsNorm(x, eps=eps)
    return None


def _inverse_root(value: Any, b: Builder) -> Any:
    """Return v if the value is 1 / sqrt(v)."""
    op = b.op_of(value)
    if isinstance(op, Unary) and op.fn == "rsqrt":
        return op.x
    if isinstance(op, Pow) and op.b == -0.5:
        return op.a
    if isinstance(op, Unary) and op.fn == "reciprocal":
        return _root(op.x, b)
    return _root(op.b, b) if isinstance(op, Div) and op.a == 1 else None


def _root(value: Any, b: Builder) -> Any:
    op = b.op_of(value)
    if isinstance(op, Unary) and op.fn == "sqrt":
        return op.x
    return op.a if isinstance(op, Pow) and op.b == 0.5 else None


def _mean_of_squares(value: Any, x: Any, b: Builder) -> float | None:
    """Return eps if the value is mean(x^2) + eps over the last axis, kept."""
    op, eps = b.op_of(value), 0.0
    if isinstance(op, Add) and isinstance(op.b, float):
        op, eps = b.op_of(op.a), op.b
    if not isinstance(op, Reduce) or op.fn != "mean" or not op.keep or not isinstance(x, Value):
        return None
    if op.axes != (len(x.type.dims) - 1,):
        return None
    square = b.op_of(op.x)
    if isinstance(square, Pow):
        return eps if square.a is x and square.b == 2 else None
    return eps if isinstance(square, Mul) and square.a is x and square.b is x else None


def _centred(op: Op, b: Builder) -> Op | None:
    """Raise the RMS norm of x - mean(x): it is the layer norm of x."""
    sub = b.op_of(op.x) if isinstance(op, RmsNorm) else None
    if not isinstance(op, RmsNorm) or not isinstance(sub, Sub) or not isinstance(sub.a, Value):
        return None
    mean = b.op_of(sub.b)
    if not isinstance(mean, Reduce) or mean.fn != "mean" or mean.x is not sub.a or not mean.keep:
        return None
    fits = mean.axes == (len(sub.a.type.dims) - 1,)
    return LayerNorm(sub.a, weight=op.weight, eps=op.eps) if fits else None


def _weighted(op: Op, b: Builder) -> Op | None:
    if not isinstance(op, Mul):
        return None
    for x, w in ((op.a, op.b), (op.b, op.a)):
        norm, weight = b.op_of(x), constant_weight(w, b.op_of)
        if not isinstance(norm, RmsNorm | LayerNorm) or weight is None or norm.weight is not None:
            continue
        if isinstance(norm, LayerNorm) and norm.bias is not None:
            continue
        if weight.type.dims == norm.result.type.dims[-1:]:
            return norm.clone(weight=weight, loc="")
    return None


def _biased(op: Op, b: Builder) -> Op | None:
    if not isinstance(op, Add):
        return None
    for x, w in ((op.a, op.b), (op.b, op.a)):
        norm, bias = b.op_of(x), constant_weight(w, b.op_of)
        if not isinstance(norm, LayerNorm) or bias is None or norm.bias is not None:
            continue
        if bias.type.dims == norm.result.type.dims[-1:]:
            return norm.clone(bias=bias, loc="")
    return None


def _uncast(op: Op, b: Builder) -> Op | None:
    """Drop casts to f32 and back around a norm, which computes in f32 anyway."""
    norm = b.op_of(op.x) if isinstance(op, Cast) else None
    if not isinstance(op, Cast) or not isinstance(norm, RmsNorm | LayerNorm):
        return None
    inner = b.op_of(norm.x)
    if not isinstance(inner, Cast) or norm.x.tensor.dtype is not DType.F32:
        return None
    return norm.clone(x=inner.x, loc="") if inner.x.tensor.dtype is op.dtype else None
