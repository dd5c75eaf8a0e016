"""Products in int8 in plain torch: the grid of values, and sums that are exact.

Integers are summed in float64, where every product of two bytes and any sum of them is exact.
"""

import torch

from elidir.backends.dtypes import torch_dtype
from elidir.backends.protocol import Kernel
from elidir.backends.reference.elementwise import UNARY
from elidir.backends.reference.model import rms_norm
from elidir.backends.reference.reduce import wide
from elidir.backends.reference.registry import kernel
from elidir.backends.weights import Weights
from elidir.ir import (
    LinearInt8,
    Quantize,
    QuantizeAddNorm,
    QuantizeGated,
    QuantizeNorm,
    Weight,
)

ZERO_POINT = 128


def quantizer(weights: Weights, scale: Weight, columns: Weight | None) -> Kernel:
    """Return x -> its grid, and the columns that are kept apart if there are some."""
    inverse = 1.0 / weights.load(scale).item()
    index = None if columns is None else weights.load(columns)

    def run(x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        steps = (x.to(wide(x.dtype)) * inverse).round_() + ZERO_POINT
        grid = steps.clamp_(0, 255).to(torch.uint8)
        return grid if index is None else (grid, x[..., index])

    return run


@kernel(Quantize)
def quantize(op: Quantize, weights: Weights) -> Kernel:
    """Round to the grid."""
    return quantizer(weights, op.scale, op.columns)


@kernel(QuantizeNorm)
def quantize_norm(op: QuantizeNorm, weights: Weights) -> Kernel:
    """A norm, and the grid."""
    norm = rms_norm(op, op.x, weights)
    round_ = quantizer(weights, op.scale, op.columns)
    return lambda x: round_(norm(x))


@kernel(QuantizeAddNorm)
def quantize_add_norm(op: QuantizeAddNorm, weights: Weights) -> Kernel:
    """A sum, its norm, and the grid."""
    norm = rms_norm(op, op.a, weights)
    round_ = quantizer(weights, op.scale, op.columns)

    def run(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        total = a + b
        made = round_(norm(total))
        return (total, *made) if isinstance(made, tuple) else (total, made)

    return run


@kernel(QuantizeGated)
def quantize_gated(op: QuantizeGated, weights: Weights) -> Kernel:
    """act(gate) * up, and the grid."""
    round_, act = quantizer(weights, op.scale, op.columns), UNARY[op.act]
    return lambda gate, up: round_(act(gate) * up)


@kernel(LinearInt8)
def linear_int8(op: LinearInt8, weights: Weights) -> Kernel:
    """(x - 128) W^T, scaled, and what is added to it."""
    weight = weights.load(op.weight).double()
    scales = weights.load(op.scales).double() * weights.load(op.in_scale).double()
    bias = 0.0 if op.bias is None else weights.load(op.bias).double()
    dtype = torch_dtype(op.dtype)

    def run(x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        sums = (x.double() - ZERO_POINT) @ weight.T
        out = sums * scales + bias
        return (out if plus is None else out + plus).to(dtype)

    return run
