"""For every op kind: programs of that one op, each with what its docstring says it gives.

A case makes operands on a `Bench` and returns the op and its expected results, worked out in
float64 by formulas that share nothing with the backends' kernels. Cases of a kind cover its
attributes; sizes and dtypes are the test's choice.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from elidir.backends.reference import FunctionalKV, encode_args
from elidir.backends.tokens import Tokens
from elidir.ir import (
    KV,
    Add,
    AddNorm,
    AlibiBias,
    Attention,
    Cast,
    Compare,
    Concat,
    Const,
    Conv,
    Cumsum,
    Div,
    DType,
    Embed,
    Expand,
    FfnExperts,
    FfnGated,
    Full,
    HeadsMerge,
    HeadsSplit,
    Iota,
    KvAppend,
    KvEvict,
    KvPositions,
    KvRead,
    LayerNorm,
    Linear,
    LinearInt8,
    LinearSplit,
    MaskAnd,
    MaskCausal,
    MaskDense,
    MaskKeep,
    MaskState,
    MaskValid,
    MaskWindow,
    MatMul,
    Maximum,
    Minimum,
    Mul,
    Op,
    Opaque,
    Pad,
    Permute,
    Pow,
    Quantize,
    QuantizeAddNorm,
    QuantizeGated,
    QuantizeNorm,
    Reduce,
    Reshape,
    RmsNorm,
    Rope,
    RopeLayout,
    RopeTable,
    ScoreAttention,
    Slice,
    Softmax,
    Sub,
    Take,
    Tensor,
    TokensAllot,
    TokenSet,
    TokensFind,
    TokensIndex,
    TokensMatch,
    TokensMerge,
    TokensNew,
    TokensRevive,
    TokensSelect,
    TokensTake,
    TokensValid,
    TokensWithin,
    TopK,
    Unary,
    Value,
    Weight,
    Where,
    parse_dim,
)
from tests.backends.bench import Bench

Case = Callable[[Bench], tuple[Op, Any]]
CASES: dict[str, dict[str, Case]] = {}


def case(kind: type[Op], *names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a case of an op kind; with names, one case for each, which it is given."""

    def register(make: Callable[..., Any]) -> Callable[..., Any]:
        found = CASES.setdefault(kind.kind, {})
        for name in names:
            found[f"{make.__name__}-{name}"] = lambda b, name=name: make(b, name)
        if not names:
            found[make.__name__] = make
        return make

    return register


def dim(text: str) -> Any:
    """Return a dimension for an attribute."""
    return parse_dim(text)


# ---- elementwise

BINARY = {
    Add: lambda a, b: a + b,
    Sub: lambda a, b: a - b,
    Mul: lambda a, b: a * b,
    Div: lambda a, b: a / b,
    Maximum: lambda a, b: torch.where(torch.as_tensor(a) > b, a, b),
    Minimum: lambda a, b: torch.where(torch.as_tensor(a) < b, a, b),
}


def binary_cases(kind: type[Op], fn: Callable[[Any, Any], torch.Tensor]) -> None:
    """Register tensors that broadcast, and a number on either side."""

    @case(kind)
    def tensors(b: Bench) -> Any:
        x, y = b.x("B", "T", 3), b.x("T", 1)
        return kind(x, y), fn(b[x], b[y])

    @case(kind)
    def number_right(b: Bench) -> Any:
        x = b.x("B", 3)
        return kind(x, 0.7), fn(b[x], torch.tensor(0.7, dtype=torch.float64))

    @case(kind)
    def number_left(b: Bench) -> Any:
        x = b.x("B", 3)
        return kind(2, x), fn(torch.tensor(2.0).double(), b[x])

    @case(kind)
    def integers(b: Bench) -> Any:
        x, y = b.ints(9, "B", 3), b.ints(9, 3)
        y2 = b.data(b[y] + 1, 3, dtype=DType.I64)
        return kind(x, y2), fn(b[x].double(), b[y2].double())

    @case(kind)
    def integers_and_a_float(b: Bench) -> Any:
        x = b.ints(9, "B", 3)
        return kind(x, 1.5), fn(b[x].double(), torch.tensor(1.5).double())


for _kind, _fn in BINARY.items():
    binary_cases(_kind, _fn)


@case(Pow)
def square(b: Bench) -> Any:
    x = b.x("B", 3)
    return Pow(x, 2), b[x] * b[x]


@case(Pow)
def power_of_tensors(b: Bench) -> Any:
    x = b.data(torch.rand(b.size("B"), 3) + 0.5, "B", 3)
    y = b.x(3)
    return Pow(x, y), (b[y] * b[x].log()).exp()


@case(Pow)
def base_is_a_number(b: Bench) -> Any:
    x = b.x("B", 3)
    return Pow(2.0, x), (b[x] * math.log(2)).exp()


COMPARE = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@case(Compare, *COMPARE)
def compare(b: Bench, fn: str) -> Any:
    x, y = b.ints(3, "B", "T"), b.ints(3, "T")
    return Compare(x, y, fn), COMPARE[fn](b[x], b[y])


@case(Compare, *COMPARE)
def compare_with_number(b: Bench, fn: str) -> Any:
    x = b.ints(4, "B", "T")
    return Compare(2, x, fn), COMPARE[fn](torch.tensor(2), b[x])


@case(Compare, "and", "or", "xor")
def combine(b: Bench, fn: str) -> Any:
    x, y = b.bools("B", "T"), b.bools("T")
    found = {"and": b[x] & b[y], "or": b[x] | b[y], "xor": b[x] ^ b[y]}
    return Compare(x, y, fn), found[fn]


def _sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + (-x).exp())


UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "abs": lambda x: torch.where(x < 0, -x, x),
    "ceil": torch.ceil,
    "cos": torch.cos,
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "erf": torch.special.erf,
    "exp": lambda x: math.e**x,
    "floor": torch.floor,
    "gelu": lambda x: x * 0.5 * (1 + torch.special.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh()),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "mish": lambda x: x * (1 + x.exp()).log().tanh(),
    "neg": lambda x: 0 - x,
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "relu2": lambda x: torch.where(x > 0, x, 0.0) ** 2,
    "round": torch.round,
    "sigmoid": _sigmoid,
    "sign": lambda x: (x > 0).double() - (x < 0).double(),
    "silu": lambda x: x * _sigmoid(x),
    "sin": torch.sin,
    "softplus": lambda x: (1 + x.exp()).log(),
    "tanh": lambda x: 2 * _sigmoid(2 * x) - 1,
}
UNARY_POSITIVE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "log": torch.log,
    "log1p": lambda x: (1 + x).log(),
    "reciprocal": lambda x: 1 / x,
    "rsqrt": lambda x: x**-0.5,
    "sqrt": lambda x: x**0.5,
}


@case(Unary, *UNARY)
def unary(b: Bench, fn: str) -> Any:
    x = b.x("B", "T", 3)
    return Unary(x, fn), UNARY[fn](b[x])


@case(Unary, *UNARY_POSITIVE)
def unary_positive(b: Bench, fn: str) -> Any:
    x = b.data(torch.rand(b.size("B"), 4) + 0.5, "B", 4)
    return Unary(x, fn), UNARY_POSITIVE[fn](b[x])


@case(Unary, "exp", "sqrt", "silu", "sigmoid", "abs", "relu")
def unary_of_integers(b: Bench, fn: str) -> Any:
    x = b.ints(4, "B", 4)
    wide = b[x].double()
    return Unary(x, fn), UNARY_POSITIVE[fn](wide) if fn == "sqrt" else UNARY[fn](wide)


@case(Unary)
def negation(b: Bench) -> Any:
    x = b.bools("B", "T")
    return Unary(x, "not"), b[x] == False  # noqa: E712 - elementwise


@case(Where)
def where(b: Bench) -> Any:
    c, x, y = b.bools("B", "T", 1), b.x("B", "T", 3), b.x(3)
    chosen = b[c].double()
    return Where(c, x, y), b[x] * chosen + b[y] * (1 - chosen)


@case(Where)
def where_number(b: Bench) -> Any:
    c, x = b.bools("B", "T"), b.x("B", "T")
    return Where(c, x, -1e4), torch.where(b[c], b[x], -1e4)


@case(Where)
def where_number_first(b: Bench) -> Any:
    c, x = b.bools("B", "T"), b.x("B", "T")
    return Where(c, 3, x), torch.where(b[c], 3.0, b[x])


@case(Where)
def where_two_numbers(b: Bench) -> Any:
    c = b.bools("B", "T")
    return Where(c, 1.5, -2.0), 3.5 * b[c].double() - 2


@case(Cast)
def cast(b: Bench) -> Any:
    x = b.data(torch.tensor([[-1.75, 0.0, 2.5]]), 1, 3)
    return Cast(x, DType.I64), torch.tensor([[-1, 0, 2]])


# ---- shape


@case(HeadsSplit)
def heads_split(b: Bench) -> Any:
    x = b.x("B", "T", 12)
    parts = [b[x][:, :, 4 * h : 4 * h + 4] for h in range(3)]
    return HeadsSplit(x, 3), torch.stack(parts, dim=1)


@case(HeadsMerge)
def heads_merge(b: Bench) -> Any:
    x = b.x("B", 3, "T", 4)
    return HeadsMerge(x), torch.cat([b[x][:, h] for h in range(3)], dim=-1)


@case(Reshape)
def reshape(b: Bench) -> Any:
    x = b.x("B", "T", 6)
    shape = (dim("B*T"), 2, 3)
    return Reshape(x, shape), b[x].flatten().view(-1, 2, 3)


@case(Permute)
def permute(b: Bench) -> Any:
    x = b.x("B", "T", 3)
    return Permute(x, (2, 0, 1)), b[x].movedim(2, 0)


@case(Slice)
def slice_symbolic(b: Bench) -> Any:
    x = b.x("B", "T", 3)
    return Slice(x, 1, dim("T - 1"), dim("T")), b[x][:, -1:]


@case(Slice)
def slice_with_step(b: Bench) -> Any:
    x = b.x("B", 7)
    return Slice(x, -1, 1, 6, 2), b[x][:, [1, 3, 5]]


@case(Concat)
def concat(b: Bench) -> Any:
    x, y = b.x("B", "T", 3), b.x("B", "T", 2)
    return Concat((x, y, x), -1), torch.cat([b[x], b[y], b[x]], dim=2)


@case(Expand)
def expand(b: Bench) -> Any:
    x, _ = b.x("T", 1), b.x("B")
    shape = (dim("B"), dim("T"), 3)
    return Expand(x, shape), b[x][None].repeat(b.size("B"), 1, 3)


@case(Pad)
def pad(b: Bench) -> Any:
    x = b.x("B", "T", 3)
    ones = torch.ones(b.size("B"), 1, 3).double()
    return Pad(x, 1, 1, 2, 0.5), torch.cat([0.5 * ones, b[x], 0.5 * ones, 0.5 * ones], dim=1)


@case(Pad)
def crop(b: Bench) -> Any:
    x = b.x("B", 6)
    return Pad(x, -1, -1, -2), b[x][:, 1:4]


@case(Take)
def take(b: Bench) -> Any:
    x, index = b.x("B", 6, 3), b.ints(6, 2, 4)
    rows = [[b[x][:, int(i)] for i in row] for row in b[index]]
    return Take(x, index, 1), torch.stack([torch.stack(r, 1) for r in rows], 1)


@case(TokensTake)
def tokens_take(b: Bench) -> Any:
    x, rows = b.x("B", "T", 3), b.ints(b.size("T"), "B", 2)
    chosen = [torch.stack([line[int(i)] for i in r]) for line, r in zip(b[x], b[rows], strict=True)]
    return TokensTake(x, rows), torch.stack(chosen)


@case(Iota)
def iota(b: Bench) -> Any:
    b.x("T")
    return Iota(dim("T"), 2), torch.tensor([2 + i for i in range(b.size("T"))])


@case(Full)
def full(b: Bench) -> Any:
    b.x("T")
    return Full((2, dim("T")), -1.5, b.dtype), torch.zeros(2, b.size("T")).double() - 1.5


# ---- reductions

REDUCE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "max": lambda x: x.flatten(1).sort(1).values[:, -1],
    "min": lambda x: x.flatten(1).sort(1).values[:, 0],
    "mean": lambda x: x.flatten(1).sum(1) / x[0].numel(),
    "sum": lambda x: x.sum(2).sum(1),
    "prod": lambda x: x.prod(2).prod(1),
}


@case(Reduce, *REDUCE)
def reduce(b: Bench, fn: str) -> Any:
    x = b.x("B", "T", 3)
    return Reduce(x, fn, (1, -1)), REDUCE[fn](b[x])


@case(Reduce, *REDUCE)
def reduce_and_keep(b: Bench, fn: str) -> Any:
    x = b.x("B", 2, 3)
    return Reduce(x, fn, (1, 2), keep=True), REDUCE[fn](b[x])[:, None, None]


@case(Reduce, "all", "any")
def reduce_truth(b: Bench, fn: str) -> Any:
    x = b.bools("B", "T", 2)
    counts = b[x].sum(-1)
    return Reduce(x, fn, (2,)), counts == 2 if fn == "all" else counts > 0


@case(Reduce)
def argmax(b: Bench) -> Any:
    x = b.x("B", "T", 9)
    return Reduce(x, "argmax", (-1,)), b[x].sort(-1, descending=True).indices[..., 0]


@case(Reduce)
def sum_of_integers(b: Bench) -> Any:
    x = b.ints(100, "B", 4, dtype=DType.I32)
    return Reduce(x, "sum", (1,)), b[x].long() @ torch.ones(4, dtype=torch.int64)


@case(Cumsum)
def cumsum(b: Bench) -> Any:
    x = b.x("B", "T", 2)
    sums = [b[x][:, : i + 1].sum(1) for i in range(b.size("T"))]
    return Cumsum(x, 1), torch.stack(sums, 1)


@case(Cumsum)
def count(b: Bench) -> Any:
    x = b.bools("B", "T")
    sums = [b[x][:, : i + 1].long().sum(1) for i in range(b.size("T"))]
    return Cumsum(x, -1), torch.stack(sums, 1)


def softmax_of(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Return exponentials divided by their sum."""
    return x.exp() / x.exp().sum(axis, keepdim=True)


@case(Softmax)
def softmax(b: Bench) -> Any:
    x = b.x("B", "T", 3)
    return Softmax(x, 1), softmax_of(b[x], 1)


@case(TopK)
def topk(b: Bench) -> Any:
    x = b.data(torch.randperm(8).float().expand(b.size("B"), 8), "B", 8)
    order = b[x].sort(-1, descending=True)
    return TopK(x, 3), (order.values[:, :3], order.indices[:, :3])


@case(MatMul)
def matmul(b: Bench) -> Any:
    x, y = b.x("B", 3, "T", 4), b.x(3, 4, 2)
    return MatMul(x, y), torch.einsum("bhtk,hko->bhto", b[x], b[y])


# ---- network


@case(Const)
def const(b: Bench) -> Any:
    w = b.w(3, 2)
    return Const(w), b[w]


@case(Embed)
def embed(b: Bench) -> Any:
    ids, table = b.ints(11, "B", "T"), b.w(11, 6)
    return Embed(ids, table), torch.stack([torch.stack([b[table][i] for i in r]) for r in b[ids]])


def _maybe_bias(b: Bench, size: int, name: str) -> tuple[Weight | None, Any]:
    bias = b.w(size) if name == "bias" else None
    return bias, 0 if bias is None else b[bias]


@case(Linear, "plain", "bias")
def linear(b: Bench, name: str) -> Any:
    x, w = b.x("B", "T", 19), b.w(33, 19, scale=0.2)
    bias, shift = _maybe_bias(b, 33, name)
    return Linear(x, w, bias), torch.einsum("bti,oi->bto", b[x], b[w]) + shift


@case(Linear, "plain", "bias")
def linear_of_rows(b: Bench, name: str) -> Any:
    x, w = b.x("T", 16), b.w(1, 16, scale=0.2)
    bias, shift = _maybe_bias(b, 1, name)
    return Linear(x, w, bias), torch.einsum("ti,oi->to", b[x], b[w]) + shift


@case(LinearSplit, "plain", "bias")
def linear_split(b: Bench, name: str) -> Any:
    x, w = b.x("B", "T", 17), b.w(24, 17, scale=0.2)
    bias, shift = _maybe_bias(b, 24, name)
    out = torch.einsum("bti,oi->bto", b[x], b[w]) + shift
    return LinearSplit(x, w, (13, 4, 7), bias), (out[..., :13], out[..., 13:17], out[..., 17:])


def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Return rows divided by the root of their mean square."""
    return x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()


@case(RmsNorm)
def norm_rms(b: Bench) -> Any:
    x, w = b.x("B", "T", 24), b.w(24)
    return RmsNorm(x, w, eps=1e-5), rms(b[x], 1e-5) * b[w]


@case(RmsNorm)
def norm_rms_without_weight(b: Bench) -> Any:
    x = b.x("B", "T", 7)
    return RmsNorm(x, eps=1e-2), rms(b[x], 1e-2)


@case(LayerNorm, "plain", "bias")
def norm_layer(b: Bench, name: str) -> Any:
    x, w = b.x("B", "T", 24), b.w(24)
    bias, shift = _maybe_bias(b, 24, name)
    centred = b[x] - b[x].mean(-1, keepdim=True)
    return LayerNorm(x, w, bias, eps=1e-5), rms(centred, 1e-5) * b[w] + shift


@case(AddNorm)
def add_norm(b: Bench) -> Any:
    x, y, w = b.x("B", "T", 24), b.x("B", "T", 24), b.w(24)
    total = b[x] + b[y]
    return AddNorm(x, y, w, eps=1e-5), (total, rms(total, 1e-5) * b[w])


@case(FfnGated, "silu", "gelu_tanh", "relu")
def ffn_gated(b: Bench, act: str) -> Any:
    x = b.x("B", "T", 12)
    gate, up, down = b.w(20, 12, scale=0.2), b.w(20, 12, scale=0.2), b.w(12, 20, scale=0.2)
    hidden = UNARY[act](b[x] @ b[gate].T) * (b[x] @ b[up].T)
    return FfnGated(x, gate, up, down, act), hidden @ b[down].T


@case(FfnExperts)
def ffn_experts(b: Bench) -> Any:
    x, gates = b.x("B", "T", 6), b.x("B", "T", 2)
    choice = b.ints(4, "B", "T", 2)
    both, down = b.w(4, 10, 6, scale=0.3), b.w(4, 6, 5, scale=0.3)
    out = torch.zeros_like(b[x])
    for i, t, j in torch.cartesian_prod(*map(torch.arange, b[choice].shape)):
        e = int(b[choice][i, t, j])
        hidden = b[both][e] @ b[x][i, t]
        out[i, t] += b[gates][i, t, j] * (b[down][e] @ (UNARY["silu"](hidden[:5]) * hidden[5:]))
    return FfnExperts(x, choice, gates, both, down), out


@case(Conv, "plain", "bias")
def conv_depthwise(b: Bench, name: str) -> Any:
    x, w = b.x("B", 3, 7), b.w(3, 1, 4, scale=0.3)
    bias, shift = _maybe_bias(b, 3, name)
    shift = shift[:, None] if name == "bias" else shift
    padded = torch.cat([torch.zeros(b.size("B"), 3, 2).double(), b[x]], -1)
    padded = torch.cat([padded, padded[..., :2] * 0], -1)
    taps = [padded[..., i : i + 8] * b[w][:, 0, i : i + 1] for i in range(4)]
    return Conv(x, w, bias, padding=(2,), groups=3), sum(taps) + shift


@case(Conv)
def conv_patches(b: Bench) -> Any:
    x, w = b.x("B", 3, 4, 6), b.w(5, 3, 2, 2, scale=0.3)
    patches = b[x].view(b.size("B"), 3, 2, 2, 3, 2)
    found = torch.einsum("bcyixj,ocij->boyx", patches, b[w])
    return Conv(x, w, None, stride=(2, 2), padding=(0, 0), dilation=(1, 1)), found


# ---- int8: where a value lies on the grid, before it is rounded to a point of it


def grid(y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the place of each value on a grid of bytes."""
    return (y / scale + 128).clamp(0, 255)


def beside(b: Bench, y: torch.Tensor, name: str) -> tuple[Weight | None, tuple[torch.Tensor, ...]]:
    """Return the columns to keep apart, and what they hold; -1 is the last channel."""
    if name == "plain":
        return None, ()
    last = y.shape[-1] - 1
    return b.fixed(torch.tensor([3, last, 0, -1]), DType.I64), (y[..., [3, last, 0, last]],)


def a_scale(b: Bench) -> Weight:
    """Return a scale at which some values lie beyond the grid."""
    return b.fixed(torch.tensor(0.0123), DType.F32)


@case(Quantize, "plain", "columns")
def quantize(b: Bench, name: str) -> Any:
    x, scale = b.x("B", "T", 37), a_scale(b)
    columns, apart = beside(b, b[x], name)
    return Quantize(x, scale, columns), (grid(b[x], b[scale]), *apart)


@case(QuantizeNorm, "plain", "columns")
def quantize_norm(b: Bench, name: str) -> Any:
    x, w, scale = b.x("B", "T", 21), b.w(21, dtype=DType.F32), a_scale(b)
    y = rms(b[x], 1e-5) * b[w]
    columns, apart = beside(b, y, name)
    return QuantizeNorm(x, w, scale, columns, 1e-5), (grid(y, b[scale]), *apart)


@case(QuantizeAddNorm, "plain", "columns")
def quantize_add_norm(b: Bench, name: str) -> Any:
    x, z = b.x("B", "T", 48), b.x("B", "T", 48)
    w, scale, total = b.w(48, dtype=DType.F32), a_scale(b), b[x] + b[z]
    y = rms(total, 1e-5) * b[w]
    columns, apart = beside(b, y, name)
    op = QuantizeAddNorm(x, z, w, scale, columns, 1e-5)
    return op, (total, grid(y, b[scale]), *apart)


GATES = {"plain": "silu", "columns": "silu", "gelu_tanh": "gelu_tanh", "relu": "relu"}


@case(QuantizeGated, *GATES)
def quantize_gated(b: Bench, name: str) -> Any:
    gate, up, scale = b.x("B", "T", 19), b.x("B", "T", 19), a_scale(b)
    acts = {"silu": F.silu, "relu": F.relu}
    acts["gelu_tanh"] = lambda x: F.gelu(x, approximate="tanh")
    y = acts[GATES[name]](b[gate]) * b[up]
    columns, apart = beside(b, y, "columns" if name == "columns" else "plain")
    op = QuantizeGated(gate, up, scale, columns, GATES[name])
    return op, (grid(y, b[scale]), *apart)


@case(LinearInt8, "plain", "bias", "plus", "both")
def linear_int8(b: Bench, name: str) -> Any:
    x = b.ints(256, "B", "T", 37, dtype=DType.U8)
    w = b.fixed(torch.randint(-127, 128, (13, 37)), DType.I8)
    scales, scale = b.fixed(torch.rand(13) / 100, DType.F32), a_scale(b)
    bias = b.w(13, dtype=DType.F32) if name in ("bias", "both") else None
    plus = b.x("B", "T", 13) if name in ("plus", "both") else None
    out = torch.einsum("bti,oi->bto", b[x].double() - 128, b[w].double()) * b[scales] * b[scale]
    out = out + (b[bias] if bias else 0) + (b[plus] if plus else 0)
    return LinearInt8(x, w, scales, scale, bias, plus, b.dtype), out


# ---- positions


@case(RopeTable)
def rope_table(b: Bench) -> Any:
    pos, freqs = b.ints(40, "B", "T"), b.w(4, dtype=DType.F32)
    angles = b[pos].double()[..., None] * b[freqs]
    return RopeTable(pos, freqs, 1.25, b.dtype), (1.25 * angles.cos(), 1.25 * angles.sin())


def turn(x: torch.Tensor, angles: torch.Tensor, pairs: list[tuple[int, int]]) -> torch.Tensor:
    """Return x [B, H, T, D] with each pair of channels rotated by its angle, as complex numbers."""
    out = x.clone()
    for i, (p, q) in enumerate(pairs):
        turned = torch.complex(x[..., p], x[..., q]) * torch.polar(
            torch.ones_like(angles[:, None, :, i]), angles[:, None, :, i]
        )
        out[..., p], out[..., q] = turned.real, turned.imag
    return out


ROPE = {
    "half": (RopeLayout.HALF, 8, [(0, 4), (1, 5), (2, 6), (3, 7)]),
    "interleaved": (RopeLayout.INTERLEAVED, 8, [(0, 1), (2, 3), (4, 5), (6, 7)]),
    "partial": (RopeLayout.HALF, 12, [(0, 4), (1, 5), (2, 6), (3, 7)]),
    "partial_interleaved": (RopeLayout.INTERLEAVED, 10, [(0, 1), (2, 3), (4, 5), (6, 7)]),
}


@case(Rope, *ROPE)
def rope(b: Bench, name: str) -> Any:
    layout, width, pairs = ROPE[name]
    x = b.x("B", 3, "T", width)
    angles = torch.randn(b.size("B"), b.size("T"), 4).double()
    cos, sin = b.data(angles.cos(), "B", "T", 4), b.data(angles.sin(), "B", "T", 4)
    return Rope(x, cos, sin, layout), turn(b[x], torch.atan2(b[sin], b[cos]), pairs)


@case(AlibiBias)
def alibi(b: Bench) -> Any:
    keys, slopes = b.ints(9, "B", "T"), b.w(3, dtype=DType.F32)
    found = torch.einsum("bk,h->bhk", b[keys].double(), b[slopes])[:, :, None]
    return AlibiBias(keys, slopes, b.dtype), found


# ---- masks


def pairs(b: Bench, fn: Callable[[int, int], bool]) -> tuple[Value, Value, torch.Tensor]:
    """Return positions of queries and keys, and a predicate over each pair of them."""
    q, k = b.ints(9, "B", "T"), b.ints(9, "B", 4)
    table = [
        [[fn(int(x), int(y)) for y in ks] for x in qs] for qs, ks in zip(b[q], b[k], strict=True)
    ]
    return q, k, torch.tensor(table)


@case(MaskCausal)
def mask_causal(b: Bench) -> Any:
    q, k, found = pairs(b, lambda q, k: k <= q)
    return MaskCausal(q, k), found


@case(MaskWindow)
def mask_window(b: Bench) -> Any:
    q, k, found = pairs(b, lambda q, k: -1 <= q - k <= 3)
    return MaskWindow(q, k, 3, 1), found


@case(MaskValid)
def mask_valid(b: Bench) -> Any:
    valid = b.bools("B", "T")
    return MaskValid(valid), torch.stack([row[None] for row in b[valid]])


@case(MaskDense)
def mask_dense(b: Bench) -> Any:
    x = b.bools("B", "T", 4)
    return MaskDense(x), b[x]


@case(MaskAnd, "both", "left", "right")
def mask_and(b: Bench, given: str) -> Any:
    x, y = torch.rand(b.size("B"), b.size("T"), 4) < 0.5, torch.rand(1, 1, 4) < 0.5
    first = b.mask(None if given == "right" else x, "B", "T", 4)
    second = b.mask(None if given == "left" else y, 1, 1, 4)
    return MaskAnd(first, second), {"both": x * y, "left": x, "right": y}[given]


# ---- attention


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    adjust: Callable[[torch.Tensor], torch.Tensor] = lambda s: s,
    mask: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return attention as the sum over visible keys, one head at a time."""
    heads, share = q.shape[1], q.shape[1] // k.shape[1]
    outs = []
    for h in range(heads):
        scores = torch.einsum("bnd,bsd->bns", q[:, h], k[:, h // share]) * scale
        scores = adjust(scores[:, None])[:, 0] if adjust else scores
        weight = scores.exp() if mask is None else scores.exp() * mask.double()
        total = weight.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + sinks[h].exp()
        outs.append((weight / total.clamp_min(1e-30)) @ v[:, h // share])
    return torch.cat(outs, dim=-1)


def qkv(b: Bench, keys: str = "T", heads: int = 6, groups: int = 2) -> tuple[Value, Value, Value]:
    """Return random queries, keys and values."""
    return b.x("B", heads, "T", 8), b.x("B", groups, keys, 8), b.x("B", groups, keys, 8)


@case(Attention, "6/2", "3/3", "4/1")
def attention_heads(b: Bench, heads: str) -> Any:
    h, g = map(int, heads.split("/"))
    q, k, v = qkv(b, "T + 3", h, g)
    return Attention(q, k, v, scale=0.3), attend(b[q], b[k], b[v], 0.3)


def _padding(b: int, t: int) -> torch.Tensor:
    """Row i of the batch starts with i padded keys, but keeps its last."""
    return torch.arange(t)[None, None] >= torch.arange(b)[:, None, None].clamp_max(t - 1)


def _triangle(b: int, t: int) -> torch.Tensor:
    return torch.ones(1, t, t).tril().bool()


MASKS: dict[str, Callable[[int, int], torch.Tensor]] = {
    "triangle": _triangle,
    "all": lambda b, t: torch.ones(b, 1, t).bool(),
    "padding": _padding,
    "left_padded_triangle": lambda b, t: _triangle(b, t) & _padding(b, t),
    "random": lambda b, t: torch.rand(b, t, t) < 0.5,
    "none": lambda b, t: torch.zeros(1, 1, t).bool(),
}


@case(Attention, *MASKS)
def attention_mask(b: Bench, name: str) -> Any:
    q, k, v = qkv(b)
    found = MASKS[name](b.size("B"), b.size("T"))
    mask = b.mask(found, "B", "T", "T")
    return Attention(q, k, v, mask, scale=0.4), attend(b[q], b[k], b[v], 0.4, mask=found)


@case(Attention)
def attention_mask_of_none(b: Bench) -> Any:
    q, k, v = qkv(b)
    mask = b.mask(None, "B", "T", "T")
    return Attention(q, k, v, mask, scale=0.4), attend(b[q], b[k], b[v], 0.4)


@case(Attention)
def attention_bias(b: Bench) -> Any:
    q, k, v = qkv(b)
    bias, found = b.x("B", 1, "T", "T"), torch.ones(1, b.size("T"), b.size("T")).tril().bool()
    mask = b.mask(found, 1, "T", "T")
    expected = attend(b[q], b[k], b[v], 0.4, lambda s: s + b[bias], found)
    return Attention(q, k, v, mask, bias, scale=0.4), expected


@case(Attention)
def attention_softcap(b: Bench) -> Any:
    q, k, v = qkv(b)
    found = torch.ones(1, b.size("T"), b.size("T")).tril().bool()
    mask = b.mask(found, 1, "T", "T")
    expected = attend(b[q], b[k], b[v], 0.4, lambda s: 1.5 * (s / 1.5).tanh(), found)
    return Attention(q, k, v, mask, scale=0.4, softcap=1.5), expected


@case(Attention)
def attention_sinks(b: Bench) -> Any:
    q, k, v = qkv(b)
    sinks = b.w(6)
    expected = attend(b[q], b[k], b[v], 0.4, sinks=b[sinks])
    return Attention(q, k, v, sinks=sinks, scale=0.4), expected


# ---- state


def kv_state(b: Bench, length: int) -> tuple[Value, torch.Tensor, torch.Tensor]:
    """Return a state of `length` tokens, and what it holds."""
    batch = b.size("B")
    k, v = torch.randn(batch, 2, length, 4), torch.randn(batch, 2, length, 3)
    kind = KV(dim("B"), 2, length, 4, 3, DType.F32)
    return b.state(kind, FunctionalKV(k, v)), k, v


@case(KvRead)
def kv_read(b: Bench) -> Any:
    kv, k, v = kv_state(b, 3)
    return KvRead(kv), (k.double(), v.double())


@case(KvAppend)
def kv_append(b: Bench) -> Any:
    kv, k, v = kv_state(b, 3)
    more, extra = b.x("B", 2, "T", 4, dtype=DType.F32), b.x("B", 2, "T", 3, dtype=DType.F32)
    expected = FunctionalKV(torch.cat([k, b[more]], 2), torch.cat([v, b[extra]], 2))
    return KvAppend(kv, more, extra), expected


class Own(FunctionalKV):
    """A state that says where its tokens stand, the second of each row being none."""

    def positions(self) -> torch.Tensor:
        """Return positions 3, 2, 1, .. of the slots."""
        return torch.arange(self.k.shape[2], 0, -1).expand(len(self.k), -1)

    def valid(self) -> torch.Tensor:
        """Return the validity of the slots."""
        return (torch.arange(self.k.shape[2]) != 1).expand(len(self.k), -1)

    def ordinals(self) -> torch.Tensor:
        """Return 0, 2, 4, .. for the numbers of the tokens."""
        return 2 * torch.arange(self.k.shape[2]).expand(len(self.k), -1)

    def holds(self) -> torch.Tensor:
        """Return those of the six cached tokens that a valid slot holds."""
        held = self.ordinals()[0][self.valid()[0]]
        return torch.tensor([i in held for i in range(6)]).expand(len(self.k), -1)

    def head_positions(self) -> torch.Tensor:
        """Return the positions of the slots, which both key heads share."""
        return self.positions()[:, None].expand(-1, 2, -1)

    def since(self) -> torch.Tensor:
        """Return the position after the first feed."""
        return torch.full((len(self.k), 1), 2)

    number = 3

    def evict(self, rule: KvEvict, scores: torch.Tensor | None = None) -> FunctionalKV:
        """Keep the two slots of highest score in each head, in their order."""
        scores = -self.k.norm(dim=-1) if scores is None else scores
        slots = scores.argsort(-1, descending=True)[..., :2].sort(-1).values[..., None]
        kept = (t.gather(2, slots.expand(-1, -1, -1, t.shape[3])) for t in (self.k, self.v))
        return FunctionalKV(*kept)


def own_state(b: Bench, length: int) -> Value:
    """Return a placed state of `length` tokens."""
    k, v = torch.randn(b.size("B"), 2, length, 4), torch.randn(b.size("B"), 2, length, 3)
    kind = KV(dim("B"), 2, length, 4, 3, DType.F32, placed=True)
    return b.state(kind, Own(k, v))


@case(KvPositions)
def kv_positions(b: Bench) -> Any:
    return KvPositions(own_state(b, 3)), torch.tensor([[3, 2, 1]]).expand(b.size("B"), -1)


@case(KvEvict, "scores", "norm")
def kv_evict(b: Bench, by: str) -> Any:
    """What a state does with the rule is its own affair; here it is that it is asked."""
    k, v = torch.randn(b.size("B"), 2, 3, 4), torch.randn(b.size("B"), 2, 3, 3)
    kind = KV(dim("B"), 2, 3, 4, 3, DType.F32, placed=True, scored=True)
    kv = b.state(kind, Own(k, v))
    scores = b.x("B", 2, 3, dtype=DType.F32) if by == "scores" else None
    given = -(k * k).sum(-1) if scores is None else b[scores]
    rows, flat = given.argmin(-1).flatten().tolist(), (k.flatten(0, 1), v.flatten(0, 1))
    left = [[torch.cat([r[:i], r[i + 1 :]]) for i, r in zip(rows, t, strict=True)] for t in flat]
    kept = (torch.stack(t).unflatten(0, (b.size("B"), 2)) for t in left)
    return KvEvict(kv, scores, by, 1, 0.0, 2), FunctionalKV(*kept)


# ---- sets of tokens


def token_set(b: Bench) -> tuple[Value, list[list[int]]]:
    """Return a set of three of T + 2 tokens, the first row's first filling, and what it holds."""
    tokens = b.size("T + 2")
    rows = [sorted(torch.randperm(tokens)[:3].tolist()) for _ in range(b.size("B"))]
    index, valid = torch.tensor(rows), torch.ones(len(rows), 3, dtype=torch.bool)
    index[0, 0], valid[0, 0] = 0, False
    kind = TokenSet(dim("B"), 3, dim("T + 2"))
    return b.state(kind, Tokens(index, valid)), [[-1, *rows[0][1:]], *rows[1:]]


@case(TokensTake)
def tokens_take_of_heads(b: Bench) -> Any:
    x, (tokens, rows) = b.x("B", 2, "T + 2", 3), token_set(b)
    lines = [line[:, [max(i, 0) for i in row]] for line, row in zip(b[x], rows, strict=True)]
    return TokensTake(x, tokens, 2), torch.stack(lines)


@case(TokensTake)
def queries_of_a_mask(b: Bench) -> Any:
    mask, (tokens, rows) = torch.rand(b.size("B"), b.size("T + 2"), 4) < 0.5, token_set(b)
    lines = [line[[max(i, 0) for i in row]] for line, row in zip(mask, rows, strict=True)]
    return TokensTake(b.mask(mask, "B", "T + 2", 4), tokens), torch.stack(lines)


@case(TokensValid)
def tokens_valid(b: Bench) -> Any:
    tokens, rows = token_set(b)
    return TokensValid(tokens), torch.tensor(rows) >= 0


@case(TokensIndex)
def tokens_index(b: Bench) -> Any:
    tokens, rows = token_set(b)
    return TokensIndex(tokens), torch.tensor(rows)


def allotted(scores: list[list[float]], shares: list[float], whole: int, first: int) -> list[int]:
    """Return which tokens of parts of one row are kept: one by one to whom most is due."""
    size, total = len(scores[0]), sum(shares)
    due = [first] + [(whole - first) * share / total for share in shares]
    got = [first] + [0 for _ in shares]
    while sum(got) < whole:
        open_ = [p for p in range(1, len(due)) if got[p] < size] or [0]
        got[max(open_, key=lambda p: due[p] - got[p])] += 1
    best = [sorted(range(size), key=lambda i: -line[i]) for line in scores]
    return sorted(p * size + i for p, n in enumerate(got) for i in best[p][:n])


@case(TokensAllot, "few", "most", "all", "one-part")
def tokens_allot(b: Bench, how: str) -> Any:
    tenths, first = {"few": (3, 5), "most": (8, 2), "all": (10, 1), "one-part": (4, 5)}[how]
    parts = 1 if how == "one-part" else 4
    scores = b.x("B", parts, "T + 2", dtype=DType.F32)
    whole = tenths * parts * b.size("T + 2") // 10
    if parts == 1:
        lines = [allotted(row, [], whole, whole) for row in b[scores].tolist()]
        return TokensAllot(scores, None, tenths / 10, first / 10), lines
    shares = b.data(torch.rand(b.size("B"), 3) + 0.01, "B", 3, dtype=DType.F32)
    part = min(first * whole // 10, b.size("T + 2"))
    given = zip(b[scores].tolist(), b[shares].tolist(), strict=True)
    lines = [allotted(row, share, whole, part) for row, share in given]
    return TokensAllot(scores, shares, tenths / 10, first / 10), lines


@case(TokensFind)
def tokens_find(b: Bench) -> Any:
    tokens, rows = token_set(b)
    wanted = torch.tensor([[row[2], row[1]] for row in rows])
    found = b.data(wanted, "B", 2, dtype=DType.I64)
    return TokensFind(tokens, found), torch.tensor([[2, 1]]).expand(len(rows), -1)


@case(TokensWithin)
def tokens_within(b: Bench) -> Any:
    outer, rows = token_set(b)
    inner = Tokens(torch.tensor([[0, 2]] * len(rows)))
    found = b.state(TokenSet(dim("B"), 2, 3), inner)
    return TokensWithin(found, outer), [[row[0], row[2]] for row in rows]


@case(TokensNew)
def tokens_new(b: Bench) -> Any:
    pos = b.data(
        torch.zeros(b.size("B"), b.size("T"), dtype=torch.int64), "B", "T", dtype=DType.I64
    )
    return TokensNew(pos, dim("T + 2")), [[i + b.size("T + 2") for i in range(b.size("T"))]] * len(
        b[pos]
    )


@case(TokensRevive, "whole", "above", "placed")
def tokens_revive(b: Bench, parked: str) -> Any:
    """Of tokens 0 to 5 the state lacks 1, 2, 3 and 5; a placed one parks 0, 2 and 4."""
    batch = b.size("B")
    behind, fresh = (
        own_state(b, 3),
        b.state(TokenSet(dim("B"), 1, 8), Tokens(torch.full((batch, 1), 7))),
    )
    if parked == "placed":
        held, slots = own_state(b, 3), {}
    else:
        kind = KV(dim("B"), 2, 8, 4, 3, DType.F32)
        k, v = torch.randn(batch, 2, 8, 4), torch.randn(batch, 2, 8, 3)
        held, slots = b.state(kind, FunctionalKV(k, v)), {1: 1, 2: 2, 3: 3, 5: 5}
    scores = b.x("B", 8 if slots else 3, dtype=DType.F32)
    above = 0.5 if parked == "above" else 0.0
    best = [
        [s for s in sorted(slots, key=lambda s: -row[s])[:2] if row[s] > above]
        for row in b[scores].tolist()
    ]
    most = max(map(len, best))
    back = [row + [-1] * (most - len(row)) for row in best]
    op = TokensRevive(scores, held, behind, fresh, dim("K"), 2, above)
    return op, (back, [[7, *row] for row in back])


@case(TokensSelect, "few", "all", "at-least")
def tokens_select(b: Bench, how: str) -> Any:
    keep, at_least = {"few": (0.4, 1), "all": (1.0, 1), "at-least": (0.1, 2)}[how]
    scores, valid = b.x("B", "T", dtype=DType.F32), b.bools("B", "T")
    last = b.data(torch.full((b.size("B"), 1), b.size("T") - 1), "B", 1, dtype=DType.I64)
    valid = b.data(
        b[valid] | (torch.arange(b.size("T")) == b.size("T") - 1), "B", "T", dtype=DType.BOOL
    )
    rows = []
    for line, known in zip(b[scores].tolist(), b[valid].tolist(), strict=True):
        left = [i for i, ok in enumerate(known[:-1]) if ok]
        count = min(max(-(-(round(keep * 10) * sum(known)) // 10), at_least), sum(known))
        best = sorted(left, key=lambda i: -line[i])[: count - 1]
        size = max(-(-(round(keep * 10) * len(line)) // 10), at_least)
        rows.append([-1] * (size - count) + sorted([*best, len(line) - 1]))
    return TokensSelect(scores, valid, last, keep, at_least), rows


def matched(x: torch.Tensor, sizes: list[int], share: int, protect: int) -> tuple[Any, Any]:
    """Return where each token of one row goes, share in tenths, and what each place stands for."""
    real = [i for i, size in enumerate(sizes) if size > 0]
    first = [t for n, t in enumerate(real) if n >= protect and n % 2 == 0]
    second = [t for n, t in enumerate(real) if n >= protect and n % 2 == 1]
    pairs = []
    for t in first:
        best = [(-float(F.cosine_similarity(x[t], x[u], dim=0)), n) for n, u in enumerate(second)]
        pairs += [(cosine, t, second[n]) for cosine, n in [min(best)]] if best else []
    gone = {t: u for _, t, u in sorted(pairs)[: max(share * (len(real) - protect) // 10, 0)]}
    places = [*real[:protect], *(t for t in first if t not in gone), *second]
    left = len(sizes) - share * (len(sizes) - protect) // 10
    padding = [min(len(places) + n, left - 1) for n in range(len(sizes) - len(real))]
    into = [
        places.index(gone.get(t, t)) if size > 0 else padding.pop(0) for t, size in enumerate(sizes)
    ]
    merged = [sum(sizes[t] for t in range(len(sizes)) if into[t] == k) for k in range(left)]
    return into, merged


@case(TokensMatch, "all", "none", "padded", "protected")
def tokens_match(b: Bench, how: str) -> Any:
    share, protect = {"none": (0, 0), "protected": (4, 1)}.get(how, (5, 0))
    x, sizes = b.x("B", "T", 4, dtype=DType.F32), torch.randint(1, 4, (b.size("B"), b.size("T")))
    if how == "padded":
        sizes *= torch.rand(sizes.shape) < 0.7
    sizes = b.data(sizes, "B", "T", dtype=DType.I64)
    rows = [matched(r, s, share, protect) for r, s in zip(b[x], b[sizes].tolist(), strict=True)]
    into, merged = (torch.tensor(list(part)) for part in zip(*rows, strict=True))
    return TokensMatch(x, sizes, share / 10, protect), (into, merged)


@case(TokensMerge)
def tokens_merge(b: Bench) -> Any:
    x, sizes = b.x("B", "T", 3), torch.randint(1, 4, (b.size("B"), b.size("T")))
    into = torch.randint(0, 3, sizes.shape)
    into[0], sizes[0] = torch.arange(b.size("T")) % 2, sizes[0] * (torch.arange(b.size("T")) % 2)
    given = b.data(sizes, "B", "T", dtype=DType.I64), b.data(into, "B", "T", dtype=DType.I64)
    total = torch.zeros(b.size("B"), 3, dtype=torch.long).scatter_add(1, into, sizes)
    merged, alike = b.data(total, "B", 3, dtype=DType.I64), F.one_hot(into, 3).double()
    weight = alike * sizes.double()[:, :, None]
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, alike)
    weight = weight / weight.sum(1, keepdim=True).masked_fill_(weight.sum(1, keepdim=True) == 0, 1)
    return TokensMerge(x, *given, merged), weight.transpose(1, 2) @ b[x]


@case(MaskKeep)
def mask_keep(b: Bench) -> Any:
    new, (tokens, rows) = b.size("T + 2"), token_set(b)
    mask = torch.rand(b.size("B"), new, 2 + new) < 0.5
    at = torch.tensor(rows)
    filling, at = at < 0, at.clamp(min=0)
    batch = torch.arange(len(rows))[:, None, None]
    keys = torch.cat([torch.arange(2).expand(len(rows), 2), 2 + at], 1)
    wanted = mask[batch, at[:, :, None], keys[:, None, :]]
    wanted[:, :, 2:] &= ~filling[:, None, :]
    wanted[:, :, 2:] |= torch.diag_embed(filling)
    return MaskKeep(b.mask(mask, "B", "T + 2", "T + 4"), tokens), wanted


@case(MaskState)
def mask_state(b: Bench) -> Any:
    new, batch = b.size("T"), b.size("B")
    mask = torch.rand(batch, new, 2 + new) < 0.5
    cached = torch.tensor([True, False, True]) & mask[:, :, :2].any(-1, keepdim=True)
    found = b.mask(mask, "B", "T", "T + 2")
    return MaskState(found, own_state(b, 3)), torch.cat([cached, mask[:, :, 2:]], 2)


@case(MaskState)
def mask_state_with_tokens_that_come_back(b: Bench) -> Any:
    """Slots hold tokens 0, 2 (not valid) and 4; the new ones are 6 and 7, and 3 comes back."""
    batch = b.size("B")
    mask = torch.rand(batch, 2, 8) < 0.5
    mask[:, :, 0], mask[:, :, 6:] = True, torch.ones(2, 2, dtype=torch.bool).tril()
    going = Tokens(torch.tensor([[6, 7, 3]]).expand(batch, -1))
    found = b.mask(mask, "B", 2, 8)
    op = MaskState(found, own_state(b, 3), b.state(TokenSet(dim("B"), 3, 8), going))
    rows = [[1, 0, 1, 1, 0, 1], [1, 0, 1, 1, 1, 1], [1, 0, 0, 0, 0, 1]]
    return op, torch.tensor(rows, dtype=torch.bool).expand(batch, -1, -1)


@case(ScoreAttention, "plain", "mask", "softcap", "sinks", "few", "bias", "rows", "shared")
def score_attention(b: Bench, how: str) -> Any:
    """`rows` are some of them, in any order, and one twice."""
    rows = 2 if how in ("few", "bias") else 70
    q, k = b.x("B", 4, rows, 4, dtype=b.dtype), b.x("B", 2, "T", 4, dtype=b.dtype)
    found = torch.rand(b.size("B"), rows, b.size("T")) < 0.7
    found[:, :, 0] = True
    mask = b.mask(found, "B", rows, "T") if how in ("mask", "few", "rows") else None
    bias = b.x("B", 4, rows, "T", dtype=b.dtype) if how in ("bias", "rows") else None
    named = b.ints(rows, "B", 3) if how == "rows" else None
    sinks, softcap = (
        (b.w(4) if how in ("sinks", "few") else None),
        1.5 if how == "softcap" else None,
    )
    scores = b[q] @ b[k].repeat_interleave(2, 1).transpose(-1, -2) * 0.4
    scores = 1.5 * (scores / 1.5).tanh() if softcap else scores
    scores = scores if bias is None else scores + b[bias]
    scores = scores.masked_fill(~found[:, None], -torch.inf) if mask else scores
    weight = scores.exp()
    share = weight.sum(-1, keepdim=True)
    share = share if sinks is None else share + b[sinks].exp()[None, :, None, None]
    given = weight / share
    if named is not None:
        given = given.gather(2, b[named][:, None, :, None].expand(-1, 4, -1, given.shape[3]))
    given = given.sum(2)
    wanted = given.mean(1) if how == "shared" else (given[:, 0::2] + given[:, 1::2]) / 2
    options = {"scale": 0.4, "softcap": softcap, "rows": named, "shared": how == "shared"}
    return ScoreAttention(q, k, mask, bias, sinks, **options), wanted


WORD = 1 << 32


def mixed(x: int) -> int:
    """Return a word whose bits are mixed, by integers alone."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> shift) * factor % WORD
    return x ^ x >> 16


def gumbel(seed: int, layer: int, head: int, query: int, key: int) -> float:
    """Return the noise of a query and a key."""
    word = mixed((head + mixed((seed * 0x9E3779B9 + layer + 1) % WORD)) % WORD)
    word = mixed((query + word) % WORD) + mixed(key ^ 0x9E3779B9)
    uniform = (mixed(word % WORD) % (1 << 23) + 0.5) / (1 << 23)
    return -math.log(-math.log(uniform))


@case(ScoreAttention)
def score_attention_with_noise(b: Bench) -> Any:
    q, k = b.x("B", 4, 2, 4, dtype=b.dtype), b.x("B", 2, 3, 4, dtype=b.dtype)
    scores = b[q] @ b[k].repeat_interleave(2, 1).transpose(-1, -2) * 0.4
    for head, row, slot in itertools.product(range(4), range(2), range(3)):
        scores[:, head, row, slot] += gumbel(5, 3, head, (2, 1)[row], (3, 2, 1)[slot])
    given = (scores / torch.tensor([1.25, 1.0])[:, None]).softmax(-1).sum(2)
    noise = {"state": own_state(b, 3), "seed": 5, "tau_end": 2.0, "tau_steps": 4}
    return ScoreAttention(q, k, scale=0.4, **noise), (given[:, 0::2] + given[:, 1::2]) / 2


# ---- opaque


@case(Opaque)
def opaque(b: Bench) -> Any:
    x, w = b.x("B", "T", 3), b.w(3)

    def refer(item: Any) -> Any:
        return {"x": {"%": 0}, "w": {"@": 0}, "T": {"dim": "T"}}.get(item)

    args = encode_args(["x", "w"], {"alpha": 2}, refer)
    out = (Tensor(tuple(map(dim, ("B", "T", "3"))), b.dtype),)
    return Opaque((x,), (w,), "aten.add.Tensor", args, out), b[x] + 2 * b[w]


@case(Opaque)
def opaque_with_two_results(b: Bench) -> Any:
    x = b.data(torch.randperm(8).float().expand(b.size("B"), 8), "B", 8)
    args = encode_args(
        ["x"], {"dim": -1, "descending": True}, lambda i: {"%": 0} if i == "x" else None
    )
    out = (Tensor((dim("B"), 8), b.dtype), Tensor((dim("B"), 8), DType.I64))
    order = b[x].sort(-1, descending=True)
    return Opaque((x,), (), "aten.sort.default", args, out), (order.values, order.indices)


@case(Opaque)
def opaque_with_sizes(b: Bench) -> Any:
    b.x("T")
    args = encode_args(
        [["T", 2], 0.5],
        {"dtype": torch.float32, "device": torch.device("cpu")},
        lambda i: {"dim": "T + 1"} if i == "T" else None,
    )
    out = (Tensor((dim("T + 1"), 2), DType.F32),)
    return Opaque((), (), "aten.full.default", args, out), torch.full((b.size("T") + 1, 2), 0.5)
