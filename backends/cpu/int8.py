"""Products in int8 through oneDNN, and the grids that feed them through the native library.

oneDNN takes unsigned values: signed ones fall to a kernel that is thousands of times slower, hence
the zero point of 128. Few rows are multiplied in runs (`joined`), over the same packed weight.
Without a C++ compiler torch's operators make the grids.
"""

import torch

from elidir.backends.cpu.alone import Alone, fits
from elidir.backends.cpu.grids import Rounding, outputs, packed, rounding
from elidir.backends.cpu.native import tape
from elidir.backends.cpu.native.records import FUNCTIONS, Code
from elidir.backends.cpu.registry import kernel
from elidir.backends.dtypes import torch_dtype
from elidir.backends.protocol import Answer, Kernel, No
from elidir.backends.reference import ZERO_POINT, quantizer
from elidir.backends.weights import Weights
from elidir.ir import LinearInt8, Quantize, QuantizeAddNorm, QuantizeGated, QuantizeNorm


def _is_native(op: Rounding) -> Answer:
    if isinstance(op, QuantizeGated) and op.act not in FUNCTIONS:
        return No(f"has no kernel for {op.act}")
    return tape.available() and fits(op)


def _quantize(op: Rounding, weights: Weights) -> Kernel:
    """Round rows to the grid, what a norm or gate makes of them, in one call."""
    held, fields = rounding(op, weights)
    record = Alone(Code.QUANTIZE, held, **fields)
    _, apart, total = outputs(op)
    count = None if apart is None else int(apart.tensor.dims[-1])

    def run(*ins: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        x = ins[0]
        grid = torch.empty(x.shape, dtype=torch.uint8)
        beside = None if count is None else x.new_empty((*x.shape[:-1], count))
        whole = None if total is None else x.new_empty(x.shape)
        record(ins, [grid, beside, whole])
        made = tuple(t for t in (whole, grid, beside) if t is not None)
        return made if len(made) > 1 else grid

    return run


for _kind in (QuantizeNorm, QuantizeAddNorm, QuantizeGated):
    kernel(_kind, _is_native)(_quantize)


@kernel(Quantize)
def quantize(op: Quantize, weights: Weights) -> Kernel:
    """Round to the grid."""
    if _is_native(op):
        return _quantize(op, weights)
    return quantizer(weights, op.scale, op.columns)


@kernel(LinearInt8)
def linear_int8(op: LinearInt8, weights: Weights) -> Kernel:
    """(x - 128) W^T, scaled; what is added is added as the sums leave their registers."""
    weight = packed(weights, op.weight)
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
            return plain(x, *grid, weight.many, scales, zeros, *rest, "none", [], "")
        ends = (1.0, 0, "add", 1.0, "none", [], "")
        return binary(x, *grid, weight.many, scales, zeros, plus.contiguous(), *rest, *ends)

    return run
