"""Rules of canonicalize for ops that move elements: reshape, permute, cast, slice, heads, masks.

A rule returns the value to use instead of an op's result, or None; the pass refuses a value of
another type, so that a rule need not check what the types say.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from elidir.ir import (
    Builder,
    Cast,
    Concat,
    DType,
    Expand,
    HeadsMerge,
    HeadsSplit,
    MaskAnd,
    Op,
    Pad,
    Permute,
    Reshape,
    Slice,
    Value,
    Where,
    as_dim,
)

Simplify: TypeAlias = Callable[[Any, Builder], Value | None]


def _source(op: Reshape | Cast | Expand | Slice, b: Builder) -> Value | None:
    """To the type that is there already."""
    return op.x


def _again(op: Reshape | Expand, b: Builder) -> Value | None:
    """The first of two reshapes, or of two expands, does not matter."""
    inner = b.op_of(op.x)
    if not isinstance(inner, Reshape | Expand) or type(inner) is not type(op):
        return None
    return b.emit(type(op)(inner.x, op.shape))


def _permute(op: Permute, b: Builder) -> Value | None:
    if op.order == tuple(range(len(op.order))):
        return op.x
    inner = b.op_of(op.x)
    if not isinstance(inner, Permute):
        return None
    return b.emit(Permute(inner.x, tuple(inner.order[i] for i in op.order)))


_WIDER = {
    DType.F16: {DType.F32, DType.F64},
    DType.BF16: {DType.F32, DType.F64},
    DType.F32: {DType.F64},
    DType.U8: {DType.I16, DType.I32, DType.I64},
    DType.I8: {DType.I16, DType.I32, DType.I64},
    DType.I16: {DType.I32, DType.I64},
    DType.I32: {DType.I64},
    DType.BOOL: set(DType),
}


def _cast(op: Cast, b: Builder) -> Value | None:
    """A cast that loses nothing may be left out before another."""
    inner = b.op_of(op.x)
    if not isinstance(inner, Cast) or inner.dtype not in _WIDER.get(inner.x.tensor.dtype, ()):
        return None
    return inner.x if op.dtype is inner.x.tensor.dtype else b.emit(Cast(inner.x, op.dtype))


def _slice(op: Slice, b: Builder) -> Value | None:
    """A slice of a slice of one axis."""
    inner, rank = b.op_of(op.x), len(op.x.tensor.dims)
    if not isinstance(inner, Slice) or inner.step != 1 or inner.axis % rank != op.axis % rank:
        return None
    start, stop = as_dim(inner.start + op.start), as_dim(inner.start + op.stop)
    return b.emit(Slice(inner.x, op.axis, start, stop, op.step))


def _pad(op: Pad, b: Builder) -> Value | None:
    return op.x if op.before == op.after == 0 else None


def _concat(op: Concat, b: Builder) -> Value | None:
    return op.parts[0] if len(op.parts) == 1 else None


def _heads(op: HeadsMerge | HeadsSplit, b: Builder) -> Value | None:
    """Splitting and merging undo each other; the type says whether the heads are the same."""
    inner = b.op_of(op.x)
    if not isinstance(inner, HeadsMerge | HeadsSplit) or type(inner) is type(op):
        return None
    return inner.x


def _same_operands(op: MaskAnd | Where, b: Builder) -> Value | None:
    return op.a if isinstance(op.a, Value) and op.a is op.b else None


SHAPE_RULES: dict[type[Op], tuple[Simplify, ...]] = {
    Reshape: (_source, _again),
    Expand: (_source, _again),
    Cast: (_source, _cast),
    Slice: (_source, _slice),
    Permute: (_permute,),
    Pad: (_pad,),
    Concat: (_concat,),
    HeadsMerge: (_heads,),
    HeadsSplit: (_heads,),
    MaskAnd: (_same_operands,),
    Where: (_same_operands,),
}
