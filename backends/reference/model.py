"""The building blocks of a network in plain torch.

Embeddings, linear maps, norms, feed-forward blocks, convolutions; nothing is prepared in advance.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from elidir.backends.dtypes import torch_dtype
from elidir.backends.protocol import Kernel
from elidir.backends.reference.elementwise import UNARY
from elidir.backends.reference.reduce import wide
from elidir.backends.reference.registry import kernel
from elidir.backends.weights import Weights
from elidir.ir import (
    AddNorm,
    Const,
    Conv,
    DType,
    Embed,
    FfnExperts,
    FfnGated,
    LayerNorm,
    Linear,
    LinearSplit,
    QuantizeAddNorm,
    QuantizeNorm,
    RmsNorm,
    Value,
    Weight,
)


def load_like(weights: Weights, weight: Weight | None, x: Value) -> torch.Tensor | None:
    """Return a weight in the dtype of the value it meets, or None for none."""
    if weight is None:
        return None
    return weights.load(replace(weight, type=replace(weight.type, dtype=x.tensor.dtype)))


@kernel(Const)
def const(op: Const, weights: Weights) -> Kernel:
    """A weight, as a value."""
    tensor = weights.load(op.weight)
    return lambda: tensor


@kernel(Embed)
def embed(op: Embed, weights: Weights) -> Kernel:
    """Look up rows."""
    table = weights.load(op.table)
    if len(op.table.type.dims) != 2:
        return lambda ids: table[ids]
    return lambda ids: F.embedding(ids, table)


@kernel(Linear)
def linear(op: Linear, weights: Weights) -> Kernel:
    """X W^T + b."""
    weight, bias = load_like(weights, op.weight, op.x), load_like(weights, op.bias, op.x)
    return lambda x: F.linear(x, weight, bias)


@kernel(LinearSplit)
def linear_split(op: LinearSplit, weights: Weights) -> Kernel:
    """Several linear maps of one input."""
    weight, bias = load_like(weights, op.weight, op.x), load_like(weights, op.bias, op.x)
    sizes = list(op.sizes)
    return lambda x: F.linear(x, weight, bias).split(sizes, dim=-1)


Norm = Callable[[torch.Tensor], torch.Tensor]


def rms_norm(
    op: RmsNorm | AddNorm | QuantizeNorm | QuantizeAddNorm, x: Value, weights: Weights
) -> Norm:
    """Return the norm as a function: in f32, cast to the input's dtype, then times the weight."""
    weight, eps = load_like(weights, op.weight, x), op.eps
    dtype = torch_dtype(x.tensor.dtype)
    inner = wide(dtype)

    def run(x: torch.Tensor) -> torch.Tensor:
        y = x.to(inner)
        y = (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(dtype)
        return y if weight is None else y * weight

    return run


@kernel(RmsNorm)
def norm_rms(op: RmsNorm, weights: Weights) -> Kernel:
    """Divide by the root of the mean square."""
    return rms_norm(op, op.x, weights)


@kernel(AddNorm)
def add_norm(op: AddNorm, weights: Weights) -> Kernel:
    """Add, and the norm of the sum."""
    norm = rms_norm(op, op.a, weights)

    def run(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = a + b
        return total, norm(total)

    return run


@kernel(LayerNorm)
def norm_layer(op: LayerNorm, weights: Weights) -> Kernel:
    """Centre, and divide by the standard deviation; torch computes it in f32."""
    weight, bias = load_like(weights, op.weight, op.x), load_like(weights, op.bias, op.x)
    width, eps = op.x.tensor.dims[-1:], op.eps
    return lambda x: F.layer_norm(x, width, weight, bias, eps)


@kernel(FfnGated)
def ffn_gated(op: FfnGated, weights: Weights) -> Kernel:
    """A gated feed-forward block."""
    gate, up = load_like(weights, op.gate, op.x), load_like(weights, op.up, op.x)
    down, act = load_like(weights, op.down, op.x), UNARY[op.act]
    return lambda x: F.linear(act(F.linear(x, gate)) * F.linear(x, up), down)


@kernel(FfnExperts)
def ffn_experts(op: FfnExperts, weights: Weights) -> Kernel:
    """A mixture of experts: each expert computes the tokens that chose it."""
    gate_up, down = load_like(weights, op.gate_up, op.x), load_like(weights, op.down, op.x)
    act = UNARY[op.act]

    def expert(e: int, x: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(x, gate_up[e]).chunk(2, dim=-1)
        return F.linear(act(gate) * up, down[e])

    def run(x: torch.Tensor, choice: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        tokens, chosen = x.reshape(-1, x.shape[-1]), choice.reshape(-1, choice.shape[-1])
        shares = gates.reshape(chosen.shape)
        out = torch.zeros_like(tokens)
        for e in chosen.unique().tolist():
            rows, places = (chosen == e).nonzero(as_tuple=True)
            share = shares[rows, places, None]
            out.index_add_(0, rows, (expert(e, tokens[rows]) * share).to(out.dtype))
        return out.reshape(x.shape)

    return run


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@kernel(Conv)
def conv(op: Conv, weights: Weights) -> Kernel:
    """Convolve the trailing axes; every axis before the channels is batch."""
    dtype: DType = op.result.tensor.dtype
    like = Value(replace(op.x.tensor, dtype=dtype))
    weight, bias = load_like(weights, op.weight, like), load_like(weights, op.bias, like)
    fn, inner = _CONV[len(op.stride)], len(op.stride) + 1
    options = {n: getattr(op, n) for n in ("stride", "padding", "dilation", "groups")}

    def run(x: torch.Tensor) -> torch.Tensor:
        lead = x.shape[: x.dim() - inner]
        flat = x.to(torch_dtype(dtype)).reshape(-1, *x.shape[x.dim() - inner :])
        out = fn(flat, weight, bias, **options)
        return out.reshape(*lead, *out.shape[1:])

    return run
