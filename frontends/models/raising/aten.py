"""What each ATen op is in the dialect: a table of plain ones, and a rule for each of the others.

A rule returns the value that stands for the node, or None to leave it opaque. Types are checked by
the importer, so a rule needs no guard against a dtype or shape that it did not expect.
"""

import math
from typing import Any

import torch
from torch.fx import Node

from elidir.frontends.raising.importer import DTYPES, Importer, aten
from elidir.frontends.raising.products import linear_einsum, matrix_einsum
from elidir.ir import (
    Add,
    Attention,
    Cast,
    Compare,
    Concat,
    Conv,
    Cumsum,
    Div,
    DType,
    Embed,
    Expand,
    Full,
    HeadsSplit,
    Iota,
    LayerNorm,
    Linear,
    MaskCausal,
    MaskDense,
    MatMul,
    Maximum,
    Minimum,
    Mul,
    Op,
    Pad,
    Permute,
    Pow,
    Reduce,
    Reshape,
    RmsNorm,
    Slice,
    Softmax,
    Sub,
    Take,
    TopK,
    Unary,
    Value,
    Weight,
    Where,
)

END = 2**62

UNARY = {
    **{f"{n}.default": n for n in "abs ceil cos erf exp floor log log1p mish neg relu".split()},
    **{f"{n}.default": n for n in "reciprocal round rsqrt sigmoid sign silu sin sqrt tanh".split()},
    **{f"{n}_.default": n for n in "relu silu tanh sigmoid neg exp".split()},
    "elu.default": "elu",
    "leaky_relu.default": "leaky_relu",
    "logical_not.default": "not",
    "bitwise_not.default": "not",
    "softplus.default": "softplus",
}
BINARY: dict[str, type[Op]] = {
    "mul": Mul,
    "div": Div,
    "pow": Pow,
    "maximum": Maximum,
    "minimum": Minimum,
    "max": Maximum,
    "min": Minimum,
    "mul_": Mul,
    "div_": Div,
    "true_divide": Div,
}
COMPARE = {
    **{n: n for n in "eq ge gt le lt ne".split()},
    **{f"{p}_{n}": n for n in ("and", "or", "xor") for p in ("logical", "bitwise")},
    **{f"__{n}__": n for n in ("and", "or", "xor")},
}
OVERLOADS = ("Tensor", "Scalar", "default", "Tensor_Scalar", "Tensor_Tensor", "other")


def _register_tables() -> None:
    for name, fn in UNARY.items():
        aten(name)(lambda m, n, fn=fn: m.emit(Unary(m.value(n.args[0]), fn=fn)))
    for name, cls in BINARY.items():
        aten(*(f"{name}.{o}" for o in OVERLOADS))(lambda m, n, cls=cls: _binary(m, n, cls))
    for name, fn in COMPARE.items():
        aten(*(f"{name}.{o}" for o in OVERLOADS))(lambda m, n, fn=fn: _compare(m, n, fn))


def _binary(m: Importer, n: Node, cls: type[Op]) -> Value | None:
    if len(n.args) < 2 or n.kwargs.get("rounding_mode"):
        return None
    return m.emit(cls(m.operand(n.args[0]), m.operand(n.args[1])))


def _compare(m: Importer, n: Node, fn: str) -> Value:
    return m.emit(Compare(m.operand(n.args[0]), m.operand(n.args[1]), fn=fn))


_register_tables()


@aten("add.Tensor", "add.Scalar", "add_.Tensor", "sub.Tensor", "sub.Scalar", "sub_.Tensor")
def _add(m: Importer, n: Node) -> Value:
    cls = Add if "add" in str(n.target) else Sub
    right, alpha = m.operand(n.args[1]), m.arg(n, 2, "alpha", 1)
    if alpha != 1:
        right = m.emit(Mul(right, alpha)) if isinstance(right, Value) else right * alpha
    return m.emit(cls(m.operand(n.args[0]), right))


@aten("rsub.Scalar", "rsub.Tensor")
def _rsub(m: Importer, n: Node) -> Value | None:
    return m.emit(Sub(m.operand(n.args[1]), m.value(n.args[0]))) if len(n.args) < 3 else None


@aten("square.default")
def _square(m: Importer, n: Node) -> Value:
    return m.emit(Pow(m.value(n.args[0]), 2))


@aten("gelu.default")
def _gelu(m: Importer, n: Node) -> Value:
    tanh = m.arg(n, 1, "approximate", "none") == "tanh"
    return m.emit(Unary(m.value(n.args[0]), fn="gelu_tanh" if tanh else "gelu"))


@aten("clamp.default", "clamp_min.default", "clamp_max.default", "clip.default")
def _clamp(m: Importer, n: Node) -> Value:
    low, high = m.arg(n, 1, "min"), m.arg(n, 2, "max")
    if "clamp_max" in str(n.target):
        low, high = None, low
    value = m.value(n.args[0])
    value = value if low is None else m.emit(Maximum(value, low))
    return value if high is None else m.emit(Minimum(value, high))


@aten("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(m: Importer, n: Node) -> Value:
    return m.emit(Where(*(m.operand(a) for a in n.args)))


@aten("masked_fill.Scalar", "masked_fill.Tensor", "masked_fill_.Scalar")
def _masked_fill(m: Importer, n: Node) -> Value:
    return m.emit(Where(m.value(n.args[1]), m.operand(n.args[2]), m.value(n.args[0])))


# ---- casts and identities


@aten(
    *(f"to.{o}" for o in ("dtype", "dtype_layout", "device", "other")),
    *(f"{o}.default" for o in ("_to_copy", "type_as", "contiguous", "clone", "alias", "detach")),
    *(f"{o}.default" for o in ("lift_fresh_copy", "lift_fresh", "detach_", "dropout", "dropout_")),
    "feature_dropout.default",
)
def _cast(m: Importer, n: Node) -> Value:
    value, wanted = m.value(n.args[0]), DTYPES[n.meta["val"].dtype]
    return value if value.tensor.dtype is wanted else m.emit(Cast(value, dtype=wanted))


# ---- shapes


@aten(
    *(f"{o}.default" for o in ("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze")),
    *(
        "squeeze.dim",
        "squeeze.dims",
        "flatten.using_ints",
        "unflatten.int",
        "_reshape_alias.default",
    ),
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
    if (
        weight is None
        or len(weight.type.dims) != 2
        or weight.type.dims[0] != 1
        or n.args[1] % 2 != 1
    ):
        return None
    row = m.add_weight(f"{weight.name}.row", m.fetch(weight).reshape(-1))
    return m.emit(Embed(m.value(n.args[2]), row))


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
        return None
    return m.emit(Full(shape=m.shape(n), value=value, dtype=DTYPES[n.meta["val"].dtype]))


@aten("copy.default", "copy_.default")
def _copy(m: Importer, n: Node) -> Value:
    source = m.value(n.args[1])
    wide = source if source.type.dims == m.shape(n) else m.emit(Expand(source, shape=m.shape(n)))
    return _cast_to(m, wide, n)


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
    if len(times) != len(x.type.dims) or any(not isinstance(t, int) or t > 16 for t in times):
        return None
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


# ---- reductions


@aten("topk.default")
def _topk(m: Importer, n: Node) -> Any:
    x = m.value(n.args[0])
    last = len(x.type.dims) - 1
    if m.arg(n, 2, "dim", -1) not in (-1, last) or not m.arg(n, 3, "largest", True):
        return None
    op = TopK(x, k=n.args[1])
    m.ops.append(op)
    return list(op.results)


@aten("var.correction", "var.dim")
def _var(m: Importer, n: Node) -> Value | None:
    x, axes = m.value(n.args[0]), m.arg(n, 1, "dim")
    unbiased = n.kwargs.get("correction", m.arg(n, 2, "unbiased", 1))
    if axes is None or unbiased not in (0, False):
        return None
    axes = tuple(a % len(x.type.dims) for a in ([axes] if isinstance(axes, int) else axes))
    mean = m.emit(Reduce(x, fn="mean", axes=axes, keep=True))
    square = m.emit(Pow(m.emit(Sub(x, mean)), 2))
    return m.emit(Reduce(square, fn="mean", axes=axes, keep=bool(n.kwargs.get("keepdim", False))))


@aten(
    *(f"{o}.dim" for o in ("mean", "any", "all")), "sum.dim_IntList", "amax.default", "amin.default"
)
def _reduce(m: Importer, n: Node) -> Value | None:
    fn = str(n.target).split(".")[1].removeprefix("a") if "am" in str(n.target) else None
    fn = fn or str(n.target).split(".")[1]
    axes, keep = m.arg(n, 1, "dim"), bool(m.arg(n, 2, "keepdim", False))
    x = m.value(n.args[0])
    if axes is None:
        return None
    axes = [axes] if isinstance(axes, int) else axes
    axes = tuple(a % len(x.type.dims) for a in axes)
    return _cast_to(m, m.emit(Reduce(x, fn=fn, axes=axes, keep=keep)), n)


def _cast_to(m: Importer, value: Value, n: Node) -> Value:
    wanted = DTYPES[n.meta["val"].dtype]
    return value if value.tensor.dtype is wanted else m.emit(Cast(value, dtype=wanted))


@aten("argmax.default")
def _argmax(m: Importer, n: Node) -> Value | None:
    if m.arg(n, 1, "dim") is None:
        return None
    x = m.value(n.args[0])
    axes = (m.arg(n, 1, "dim") % len(x.type.dims),)
    return m.emit(Reduce(x, fn="argmax", axes=axes, keep=bool(m.arg(n, 2, "keepdim", False))))


@aten("cumsum.default")
def _cumsum(m: Importer, n: Node) -> Value:
    x = m.value(n.args[0])
    return _cast_to(m, m.emit(Cumsum(x, axis=n.args[1] % len(x.type.dims))), n)


@aten("softmax.int", "_softmax.default", "special_softmax.int")
def _softmax(m: Importer, n: Node) -> Value:
    x, wanted = m.value(n.args[0]), DTYPES[n.meta["val"].dtype]
    if x.tensor.dtype is not wanted:
        x = m.emit(Cast(x, dtype=wanted))
    return m.emit(Softmax(x, axis=n.args[1] % len(x.type.dims)))


# ---- products


@aten("linear.default")
def _linear(m: Importer, n: Node) -> Value | None:
    weight, bias = m.weight(n.args[1]), m.arg(n, 2, "bias")
    if weight is None or (bias is not None and m.weight(bias) is None):
        return None
    return m.emit(Linear(m.value(n.args[0]), weight, bias=m.weight(bias)))


@aten("addmm.default")
def _addmm(m: Importer, n: Node) -> Value | None:
    bias, x, w = n.args[:3]
    if n.kwargs or m.weight(bias) is None or m.weight(w) is None:
        return None
    return m.emit(Linear(m.value(x), transposed(m, m.weight(w)), bias=m.weight(bias)))


def transposed(m: Importer, weight: Weight) -> Weight:
    """Return the transpose of a weight; that of a transpose is the weight itself."""
    entry = m.entries[weight.name]
    if entry.expr is not None and entry.expr.fn == "transpose":
        (source,) = entry.expr.sources
        return Weight(source, m.entries[source].type)
    kind = type(weight.type)(weight.type.dims[::-1], weight.type.dtype)
    return m.derive(f"{weight.name}.t", kind, "transpose", weight.name)


@aten("matmul.default", "mm.default", "bmm.default")
def _matmul(m: Importer, n: Node) -> Value | None:
    weight = m.weight(n.args[1])
    if weight is not None and len(weight.type.dims) == 2:
        return m.emit(Linear(m.value(n.args[0]), transposed(m, weight)))
    return m.emit(MatMul(m.value(n.args[0]), m.value(n.args[1])))


@aten("baddbmm.default")
def _baddbmm(m: Importer, n: Node) -> Value:
    bias, a, b = (m.value(x) for x in n.args[:3])
    beta, alpha = n.kwargs.get("beta", 1), n.kwargs.get("alpha", 1)
    product = m.emit(MatMul(a, b))
    product = product if alpha == 1 else m.emit(Mul(product, float(alpha)))
    if beta == 0:
        return product
    return m.emit(Add(product, bias if beta == 1 else m.emit(Mul(bias, float(beta)))))


@aten("einsum.default")
def _einsum(m: Importer, n: Node) -> Value | None:
    equation, items = n.args[0].replace(" ", ""), list(n.args[1])
    if "." in equation:
        return None
    terms, out = equation.split("->")
    return _contract(m, terms.split(","), items, out)


def _contract(m: Importer, terms: list[str], items: list[Any], out: str) -> Value | None:
    """Contract operands left to right, two at a time."""
    left, labels = m.made[items[0]], terms[0]
    for i, (item, term) in enumerate(zip(items[1:], terms[1:], strict=True), 1):
        kept = out + "".join(terms[i + 1 :])
        target = (
            out
            if i == len(items) - 1
            else "".join(dict.fromkeys(c for c in labels + term if c in kept))
        )
        right = m.made[item]
        if isinstance(right, Weight) and isinstance(left, Value):
            left = linear_einsum(m, left, labels, right, term, target)
        else:
            pair = [m.const(x) if isinstance(x, Weight) else x for x in (left, right)]
            left = matrix_einsum(m, *pair, labels, term, target)
        if left is None:
            return None
        labels = target
    return left


# ---- blocks


@aten("embedding.default")
def _embedding(m: Importer, n: Node) -> Value | None:
    table = m.weight(n.args[0])
    return None if table is None else m.emit(Embed(m.value(n.args[1]), table))


@aten("layer_norm.default", "native_layer_norm.default")
def _layer_norm(m: Importer, n: Node) -> Any:
    weight, bias, eps = m.arg(n, 2, "weight"), m.arg(n, 3, "bias"), m.arg(n, 4, "eps", 1e-5)
    if len(n.args[1]) != 1:
        return None
    x = m.value(n.args[0])
    value = m.emit(LayerNorm(x, weight=m.weight(weight), bias=m.weight(bias), eps=eps))
    return [value] if "native" in str(n.target) else value


@aten("rms_norm.default")
def _rms_norm(m: Importer, n: Node) -> Value | None:
    x, eps = m.value(n.args[0]), m.arg(n, 3, "eps")
    if len(n.args[1]) != 1:
        return None
    eps = torch.finfo(n.meta["val"].dtype).eps if eps is None else eps
    return m.emit(RmsNorm(x, weight=m.weight(m.arg(n, 2, "weight")), eps=eps))


@aten("conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding")
def _conv(m: Importer, n: Node) -> Value | None:
    rank = len(n.meta["val"].shape) - 2
    wide = [_tuple(m.arg(n, i, k, d), rank) for i, k, d in
            ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))]  # fmt: skip
    weight, bias = m.weight(n.args[1]), m.arg(n, 2, "bias")
    if weight is None or any(isinstance(w, str) for w in wide[1]):
        return None
    groups = m.arg(n, 6, "groups", 1)
    x = m.value(n.args[0])
    return m.emit(Conv(x, weight, m.weight(bias), *wide, groups=groups))


def _tuple(item: Any, rank: int) -> tuple[Any, ...]:
    items = tuple(item) if isinstance(item, list | tuple) else (item,)
    return items * rank if len(items) == 1 else items


@aten("scaled_dot_product_attention.default")
def _sdpa(m: Importer, n: Node) -> Value | None:
    q, k, v = (m.value(a) for a in n.args[:3])
    mask, causal = m.arg(n, 3, "attn_mask"), m.arg(n, 5, "is_causal", False)
    scale = n.kwargs.get("scale")
    if len(q.type.dims) != 4 or m.arg(n, 4, "dropout_p", 0.0):
        return None
    scale = 1.0 / math.sqrt(q.type.dims[3]) if scale is None else float(scale)
    predicate, bias = _mask_operands(m, None if mask is None else m.value(mask))
    if causal:
        rows = (m.emit(Iota(x.type.dims[2])) for x in (q, k))
        predicate = m.emit(MaskCausal(*(m.emit(Reshape(r, shape=(1, *r.type.dims))) for r in rows)))
    out = m.emit(Attention(q, k, v, mask=predicate, bias=bias, scale=scale))
    return m.emit(HeadsSplit(out, heads=q.type.dims[1]))


def _mask_operands(m: Importer, mask: Value | None) -> tuple[Value | None, Value | None]:
    """Return (mask, bias): a bool tensor [.., Q, K] is a mask, a float one a bias."""
    if mask is None:
        return None, None
    dims = (1,) * (4 - len(mask.type.dims)) + mask.type.dims
    wide = m.emit(Reshape(mask, shape=dims))
    if mask.tensor.dtype is not DType.BOOL:
        return None, wide
    if dims[1] != 1:
        zero = m.emit(Full(shape=(), value=0.0, dtype=DType.F32))
        return None, m.emit(Where(wide, zero, float("-inf")))
    flat = m.emit(Reshape(wide, shape=(dims[0], *dims[2:])))
    return m.emit(MaskDense(flat)), None
