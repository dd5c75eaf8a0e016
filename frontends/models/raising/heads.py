"""Rules about heads and about flattened tokens.

Attention reads key heads before they are expanded; the reshapes around it become `heads.split` and
`heads.merge`; what is computed on `[B*T, D]` is computed on `[B, T, D]`. Nothing here evaluates.
"""

from collections.abc import Sequence
from typing import Any

from elidir.ir import (
    Add,
    Attention,
    Builder,
    Cast,
    Compare,
    Concat,
    Div,
    Expand,
    FfnExperts,
    HeadsMerge,
    HeadsSplit,
    LayerNorm,
    Linear,
    Maximum,
    Minimum,
    Mul,
    Op,
    Permute,
    Pow,
    Reduce,
    Reshape,
    RmsNorm,
    Slice,
    Softmax,
    Sub,
    TopK,
    Unary,
    Value,
    Where,
)

Replaced = Sequence[Value] | None


def key_heads_rule(op: Op, b: Builder) -> Replaced:
    """Let attention read key heads before they were repeated for each of their queries' heads."""
    if not isinstance(op, Attention):
        return None
    k, v = _unrepeated(op.k, b), _unrepeated(op.v, b)
    if k is None or v is None or k.type.dims[1] != v.type.dims[1]:
        return None
    return [b.emit(op.clone(k=k, v=v, loc=""))]


def _unrepeated(x: Value, b: Builder) -> Value | None:
    """Return [B, G, T, D] behind [B, G, 1, T, D] -> [B, G, r, T, D] -> [B, G*r, T, D]."""
    op = b.op_of(x)
    if isinstance(op, Expand) and op.x.type.dims[1] == 1 and _same_but(op.x, x, 1):
        return op.x
    expand = b.op_of(op.x) if isinstance(op, Reshape) else None
    if not isinstance(expand, Expand) or len(expand.result.type.dims) != 5:
        return None
    batch, groups, one, length, width = expand.x.type.dims
    if one != 1 or x.type.dims[2:] != (length, width) or x.type.dims[0] != batch:
        return None
    return b.emit(Reshape(expand.x, shape=(batch, groups, length, width)))


def _same_but(a: Value, b: Value, axis: int) -> bool:
    x, y = a.type.dims, b.type.dims
    return len(x) == len(y) and all(
        i == axis or p == q for i, (p, q) in enumerate(zip(x, y, strict=True))
    )


def heads_rule(op: Op, b: Builder) -> Replaced:
    """Name the reshapes around attention: `heads.split`, `heads.merge`, and a split of a merge."""
    if isinstance(op, Permute) and op.order == (0, 2, 1, 3):
        return _split(op, b)
    if isinstance(op, Reshape):
        return _merge(op, b)
    inner = b.op_of(op.x) if isinstance(op, HeadsSplit | HeadsMerge) else None
    if isinstance(op, HeadsMerge) and isinstance(inner, HeadsSplit):
        return [inner.x]
    if isinstance(op, HeadsSplit) and isinstance(inner, HeadsMerge):
        return [inner.x] if inner.x.type == op.result.type else None
    return None


def _split(op: Permute, b: Builder) -> Replaced:
    """[B, T, H*D] -> [B, T, H, D] -> [B, H, T, D]."""
    reshape = b.op_of(op.x)
    if not isinstance(reshape, Reshape) or len(reshape.x.type.dims) != 3:
        return None
    heads = reshape.result.type.dims[2]
    if reshape.x.type.dims[:2] != reshape.result.type.dims[:2] or not isinstance(heads, int):
        return None
    return [b.emit(HeadsSplit(reshape.x, heads=heads))]


def _merge(op: Reshape, b: Builder) -> Replaced:
    """[B, H, T, D] -> [B, T, H, D] -> [B, T, H*D], or further to [B*T, H*D]."""
    permute = b.op_of(op.x)
    if not isinstance(permute, Permute) or permute.order != (0, 2, 1, 3):
        return None
    merged = HeadsMerge(permute.x)
    if op.shape == merged.result.type.dims:
        return [b.emit(merged)]
    if len(op.shape) != 2 or op.shape[-1] != merged.result.type.dims[-1]:
        return None
    return [b.emit(Reshape(b.emit(merged), shape=op.shape))]


_ROWWISE = (Linear, RmsNorm, LayerNorm, Unary, Cast, TopK, FfnExperts)
_BINARY = (Add, Sub, Mul, Div, Pow, Maximum, Minimum, Compare, Where)


def unflatten_rule(op: Op, b: Builder) -> Replaced:
    """Move a reshape that only flattens the leading axes behind an op that works row by row."""
    changes = _rowwise_changes(op)
    if changes is None:
        return None
    inner = {v: x for v in op.operands() if (x := _flattening(v, b)) is not None}
    leads = {x.type.dims[:-1] for x in inner.values()}
    if len(leads) != 1 or any(len(v.type.dims) > 1 for v in op.operands() if v not in inner):
        return None
    more = len(leads.pop()) - 1
    changes = {k: _shift(v, more) for k, v in changes.items()}
    moved = b.append(op.clone(lambda v: inner.get(v, v), loc="", **changes))
    pairs = zip(moved, op.results, strict=True)
    return [b.emit(Reshape(new, shape=old.type.dims)) for new, old in pairs]


def _rowwise_changes(op: Op) -> dict[str, Any] | None:
    """Return the attributes that name the last axis of two, or None if the op does not fit."""
    if isinstance(op, _ROWWISE + _BINARY):
        return {}
    if isinstance(op, Softmax | Slice | Concat) and op.axis == 1:
        return {"axis": 1}
    return {"axes": (1,)} if isinstance(op, Reduce) and op.axes == (1,) and op.keep else None


def _shift(item: Any, more: int) -> Any:
    return tuple(i + more for i in item) if isinstance(item, tuple) else item + more


def _flattening(x: Any, b: Builder) -> Value | None:
    """Return [B, T, D] behind [B*T, D]."""
    op = b.op_of(x)
    if not isinstance(op, Reshape) or len(op.x.type.dims) <= len(op.shape):
        return None
    if len(op.shape) != 2 or op.x.type.dims[-1] != op.shape[-1]:
        return None
    return op.x
