"""Products in int8 through oneDNN, and the grids that feed them through native kernels.

oneDNN takes unsigned values: signed ones fall to a kernel that is thousands of times slower, hence
the zero point of 128. The weight is packed once. Without a C++ compiler torch's operators make the
grids.
"""

import torch

from elidir.backends.cpu.native.rows import ACTS, Rows, available
from elidir.backends.cpu.registry import kernel
from elidir.backends.dtypes import torch_dtype
from elidir.backends.protocol import Answer, Kernel, No
from elidir.backends.reference import ZERO_POINT, quantizer
from elidir.backends.weights import Weights
from elidir.ir import (
    LinearInt8,
    Op,
    Quantize,
    QuantizeAddNorm,
    QuantizeGated,
    QuantizeNorm,
    Weight,
)


def _is_native(op: Op) -> Answer:
    return available()


def _has_act(op: QuantizeGated) -> Answer:
    if op.act not in ACTS:
        return No(f"has no kernel for {op.act}")
    return available()


def _grid(
    weights: Weights, scale: Weight, columns: Weight | None
) -> tuple[float, torch.Tensor | None]:
    inverse = 1.0 / weights.load(scale).item()
    return inverse, None if columns is None else weights.load(columns)


@kernel(Quantize)
def quantize(op: Quantize, weights: Weights) -> Kernel:
    """Round to the grid."""
    if not available():
        return quantizer(weights, op.scale, op.columns)
    return Rows("plain", *_grid(weights, op.scale, op.columns))


@kernel(QuantizeNorm, _is_native)
def quantize_norm(op: QuantizeNorm, weights: Weights) -> Kernel:
    """A norm, and the grid."""
    grid = _grid(weights, op.scale, op.columns)
    return Rows("norm", *grid, weights.load(op.weight), op.eps)


@kernel(QuantizeAddNorm, _is_native)
def quantize_add_norm(op: QuantizeAddNorm, weights: Weights) -> Kernel:
    """A sum, its norm, and the grid."""
    grid = _grid(weights, op.scale, op.columns)
    return Rows("add_norm", *grid, weights.load(op.weight), op.eps)


@kernel(QuantizeGated, _has_act)
def quantize_gated(op: QuantizeGated, weights: Weights) -> Kernel:
    """act(gate) * up, and the grid."""
    return Rows("gated", *_grid(weights, op.scale, op.columns), act=op.act)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    return packed


@kernel(LinearInt8)
def linear_int8(op: LinearInt8, weights: Weights) -> Kernel:
    """(x - 128) W^T, scaled; what is added is added as the sums leave their registers."""
    weight = weights.prepare("int8", [op.weight], _pack)
    scales = weights.load(op.scales).contiguous()
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    bias = None if op.bias is None else weights.load(op.bias).float()
    grid = (weights.load(op.in_scale).item(), ZERO_POINT)
    rest = (bias, 1.0, 0, torch_dtype(op.dtype))
    plain = torch.ops.onednn.qlinear_pointwise.default
    binary = torch.ops.onednn.qlinear_pointwise.binary

    def run(x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        x = x.contiguous()
        if plus is None:
            return plain(x, *grid, weight, scales, zeros, *rest, "none", [], "")
        ends = (1.0, 0, "add", 1.0, "none", [], "")
        return binary(x, *grid, weight, scales, zeros, plus.contiguous(), *rest, *ends)

    return run
