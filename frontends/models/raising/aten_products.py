"""ATen ops that combine elements: reductions, products, norms, convolutions, attention.

As in `aten`, a rule returns what stands for the node, or None to leave it opaque.
"""

import math
from typing import Any

import torch
from torch.fx import Node

from elidir.frontends.raising.aten import cast_to
from elidir.frontends.raising.importer import DTYPES, Importer, aten
from elidir.frontends.raising.products import linear_einsum, matrix_einsum
from elidir.ir import (
    Add,
    Attention,
    Cast,
    Conv,
    Cumsum,
    DType,
    Embed,
    Full,
    HeadsSplit,
    Iota,
    LayerNorm,
    Linear,
    MaskCausal,
    MaskDense,
    MatMul,
    Mul,
    Pow,
    Reduce,
    Reshape,
    RmsNorm,
    Softmax,
    Sub,
    TopK,
    Value,
    Weight,
    Where,
)


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
    return cast_to(m, m.emit(Reduce(x, fn=fn, axes=axes, keep=keep)), n)


@aten("max.dim", "min.dim")
def _extreme(m: Importer, n: Node) -> list[Value] | None:
    """The values alone: where the places are read as well, ties decide, and it stays as it is."""
    if any(u.args[1] == 1 and u.users for u in n.users):
        return None
    x, keep = m.value(n.args[0]), bool(m.arg(n, 2, "keepdim", False))
    axes = (n.args[1] % len(x.type.dims),)
    fn = "max" if "max" in str(n.target) else "min"
    found = m.emit(Reduce(x, fn=fn, axes=axes, keep=keep))
    return [found, m.emit(Reduce(x, fn="argmax", axes=axes, keep=keep))]


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
    return cast_to(m, m.emit(Cumsum(x, axis=n.args[1] % len(x.type.dims))), n)


@aten("softmax.int", "_softmax.default", "special_softmax.int")
def _softmax(m: Importer, n: Node) -> Value:
    x, wanted = m.value(n.args[0]), DTYPES[n.meta["val"].dtype]
    if x.tensor.dtype is not wanted:
        x = m.emit(Cast(x, dtype=wanted))
    return m.emit(Softmax(x, axis=n.args[1] % len(x.type.dims)))


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
