"""ATen ops that move, select, repeat or make elements.

As in `aten`, a rule returns what stands for the node, or None to leave it opaque.
"""

from typing import Any

import torch
from torch.fx import Node

from elidir.frontends.raising.aten import cast_to
from elidir.frontends.raising.importer import DTYPES, Importer, aten
from elidir.ir import (
    Cast,
    Concat,
    DType,
    Expand,
    Full,
    Iota,
    Pad,
    Permute,
    Reshape,
    Slice,
    Take,
    Value,
)

END = 2**62


@aten(
    *(f"{o}.default" for o in ("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze")),
    *(
        "squeeze.dim",
        "squeeze.dims",
        "flatten.using_ints",
        "unflatten.int",
        "_reshape_alias.default",
    ),
    *("reshape_as.default", "view_as.default"),
    "unsqueeze_.default",
)
def _reshape(m: Importer, n: Node) -> Value:
    return m.emit(Reshape(m.value(n.args[0]), shape=m.shape(n)))


@aten("expand.default", "expand_as.default", "broadcast_to.default")
def _expand(m: Importer, n: Node) -> Value:
    return m.emit(Expand(m.value(n.args[0]), shape=m.shape(n)))


@aten("transpose.int", "transpose_.int", "swapaxes.default")
def _transpose(m: Importer, n: Node) -> Value:
    x = m.value(n.args[0])
    order = list(range(len(x.type.dims)))
    a, b = n.args[1], n.args[2]
    order[a], order[b] = order[b], order[a]
    return m.emit(Permute(x, order=tuple(order)))


@aten("permute.default", "t.default", "numpy_T.default", "mT.default")
def _permute(m: Importer, n: Node) -> Value:
    x = m.value(n.args[0])
    rank = len(x.type.dims)
    order = n.args[1] if len(n.args) > 1 else tuple(reversed(range(rank)))
    return m.emit(Permute(x, order=tuple(a % rank for a in order)))


def _slice(m: Importer, x: Value, axis: int, start: Any, stop: Any, step: int = 1) -> Value:
    size = x.type.dims[axis]
    begin = _bound(m, start, 0, size)
    end = _bound(m, stop, size, size)
    return m.emit(Slice(x, axis=axis % len(x.type.dims), start=begin, stop=end, step=step))


def _bound(m: Importer, at: Any, default: Any, size: Any) -> Any:
    if at is None or (isinstance(at, int) and at >= END):
        return default
    at = m.dim(at)
    if isinstance(at, int) and isinstance(size, int):
        return max(0, min(size, at + size if at < 0 else at))
    return size + at if isinstance(at, int) and at < 0 else at


@aten("slice.Tensor")
def _slice_tensor(m: Importer, n: Node) -> Value:
    at = [m.arg(n, i, k, d) for i, k, d in ((1, "dim", 0), (2, "start", 0), (3, "end", None))]
    return _slice(m, m.value(n.args[0]), *at, m.arg(n, 4, "step", 1))


@aten("narrow.default")
def _narrow(m: Importer, n: Node) -> Value:
    start, length = m.dim(n.args[2]), m.dim(n.args[3])
    return m.emit(Slice(m.value(n.args[0]), axis=n.args[1], start=start, stop=start + length))


@aten("select.int")
def _select(m: Importer, n: Node) -> Value:
    x, axis, at = m.value(n.args[0]), n.args[1], n.args[2]
    stop = None if at == -1 else at + 1
    return m.emit(Reshape(_slice(m, x, axis, at, stop), shape=m.shape(n)))


@aten("split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default", "unbind.int")
def _split(m: Importer, n: Node) -> list[Value]:
    x, unbind = m.value(n.args[0]), "unbind" in str(n.target)
    axis = m.arg(n, 1, "dim", 0) if unbind else m.arg(n, 2, "dim", 0)
    parts, at = [], 0
    for meta in n.meta["val"]:
        size = 1 if unbind else m.dim(meta.shape[axis])
        part = m.emit(Slice(x, axis=axis % len(x.type.dims), start=at, stop=at + size))
        parts.append(m.emit(Reshape(part, shape=m.type(meta).dims)) if unbind else part)
        at = at + size
    return parts


@aten("cat.default", "concat.default", "concatenate.default")
def _cat(m: Importer, n: Node) -> Value:
    parts = tuple(m.value(p) for p in n.args[0])
    parts = tuple(p for p in parts if p.type.dims != (0,))
    axis = m.arg(n, 1, "dim", 0) % len(parts[0].type.dims)
    return m.emit(Concat(parts, axis=axis)) if len(parts) > 1 else parts[0]


@aten("stack.default")
def _stack(m: Importer, n: Node) -> Value:
    shape = m.shape(n)
    axis = m.arg(n, 1, "dim", 0) % len(shape)
    unit = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = tuple(m.emit(Reshape(m.value(p), shape=unit)) for p in n.args[0])
    return m.emit(Concat(parts, axis=axis))


@aten("constant_pad_nd.default", "pad.default")
def _pad(m: Importer, n: Node) -> Value | None:
    x, widths, value = m.value(n.args[0]), n.args[1], m.arg(n, 3 if "pad.d" in str(n.target) else 2)
    if m.arg(n, 2, "mode", "constant") not in ("constant", 0, 0.0) and "pad.d" in str(n.target):
        return None
    rank = len(x.type.dims)
    for i in range(len(widths) // 2):
        before, after = widths[2 * i : 2 * i + 2]
        if before or after:
            x = m.emit(Pad(x, axis=rank - 1 - i, before=before, after=after, value=value or 0.0))
    return x


@aten("index_select.default")
def _index_select(m: Importer, n: Node) -> Value:
    x = m.value(n.args[0])
    return m.emit(Take(x, m.value(n.args[2]), axis=n.args[1] % len(x.type.dims)))


@aten("gather.default")
def _gather(m: Importer, n: Node) -> Value | None:
    """A gather from the one row of a parameter is a lookup."""
    source = n.args[0]
    if str(source.target) == "aten.expand.default":
        source = source.args[0]
    weight = m.weight(source)
    one_row = weight is not None and len(weight.type.dims) == 2 and weight.type.dims[0] == 1
    if not one_row or n.args[1] % 2 != 1:
        return None
    row = m.add_weight(f"{weight.name}.row", m.fetch(weight).reshape(-1))
    return m.emit(Take(m.const(row), m.value(n.args[2]), axis=0))


@aten("index.Tensor")
def _index(m: Importer, n: Node) -> Value | None:
    x, at = m.value(n.args[0]), [(i, a) for i, a in enumerate(n.args[1]) if a is not None]
    if len(at) != 1 or n.args[1][at[0][0]].meta["val"].dtype is torch.bool:
        return None
    return m.emit(Take(x, m.value(at[0][1]), axis=at[0][0]))


@aten("arange.default", "arange.start", "arange.start_step")
def _arange(m: Importer, n: Node) -> Value | None:
    bounds = [0, *n.args] if len(n.args) == 1 else list(n.args)
    dtype = DTYPES[n.meta["val"].dtype]
    if len(bounds) > 2 or not isinstance(bounds[0], int):
        return None
    value = m.emit(Iota(as_length(m, bounds), start=bounds[0]))
    return value if dtype is DType.I64 else m.emit(Cast(value, dtype=dtype))


def as_length(m: Importer, bounds: list[Any]) -> Any:
    """Return the length of arange(start, stop)."""
    return m.dim(bounds[1]) - bounds[0]


@aten(
    *(f"{o}.default" for o in ("zeros", "ones", "full", "zeros_like", "ones_like", "full_like")),
    *("new_empty.default", "empty.memory_format", "empty_like.default"),
    *("new_zeros.default", "new_ones.default", "new_full.default", "scalar_tensor.default"),
)
def _full(m: Importer, n: Node) -> Value | None:
    name = str(n.target)
    value = 1 if "ones" in name else 0
    if "full" in name:
        value = n.args[2] if "new_full" in name else n.args[1]
    if "scalar" in name:
        value = n.args[0]
    if isinstance(value, Node):
        return _filled(m, n, value)
    return m.emit(Full(shape=m.shape(n), value=value, dtype=DTYPES[n.meta["val"].dtype]))


def _filled(m: Importer, n: Node, value: Node) -> Value | None:
    """A tensor filled with a number that is computed."""
    made = m.made[value]
    return m.emit(Expand(cast_to(m, made, n), shape=m.shape(n))) if _is_scalar(made) else None


def _is_scalar(made: Any) -> bool:
    return isinstance(made, Value) and made.type.dims == ()


@aten("copy.default", "copy_.default")
def _copy(m: Importer, n: Node) -> Value:
    source = m.value(n.args[1])
    wide = source if source.type.dims == m.shape(n) else m.emit(Expand(source, shape=m.shape(n)))
    return cast_to(m, wide, n)


@aten("slice_scatter.default")
def _slice_scatter(m: Importer, n: Node) -> Value | None:
    x, part, axis = m.value(n.args[0]), m.value(n.args[1]), m.arg(n, 2, "dim", 0)
    if m.arg(n, 5, "step", 1) != 1:
        return None
    size = x.type.dims[axis]
    start, stop = (
        _bound(m, m.arg(n, i, k), d, size) for i, k, d in ((3, "start", 0), (4, "end", size))
    )
    sides = [_slice(m, x, axis, *side) for side in ((0, start), (stop, size)) if side[0] != side[1]]
    pieces = [part, *sides] if start == 0 else [sides[0], part, *sides[1:]]
    return m.emit(Concat(tuple(pieces), axis=axis % len(x.type.dims))) if sides else part


@aten("repeat.default")
def _repeat(m: Importer, n: Node) -> Value | None:
    x, times = m.value(n.args[0]), n.args[1]
    if any(not isinstance(t, int) or t > 16 for t in times):
        return None
    if more := len(times) - len(x.type.dims):
        x = m.emit(Reshape(x, shape=(1,) * more + x.type.dims))
    for axis, count in enumerate(times):
        x = x if count == 1 else m.emit(Concat((x,) * count, axis=axis))
    return x


@aten("repeat_interleave.self_int")
def _repeat_interleave(m: Importer, n: Node) -> Value | None:
    x, times, axis = m.value(n.args[0]), n.args[1], m.arg(n, 2, "dim")
    if axis is None:
        return None
    dims = x.type.dims
    axis %= len(dims)
    lead, tail = dims[: axis + 1], dims[axis + 1 :]
    wide = m.emit(Reshape(x, shape=(*lead, 1, *tail)))
    wide = m.emit(Expand(wide, shape=(*lead, times, *tail)))
    return m.emit(Reshape(wide, shape=m.shape(n)))
