"""Norms in one pass over each row, through the native library or torch's own operator.

They round once, after the weight, where the reference rounds before and after: in float32 they
are the same.
"""

import torch

from elidir.backends.cpu.alone import Alone, address, fits
from elidir.backends.cpu.native import tape
from elidir.backends.cpu.native.records import Code
from elidir.backends.cpu.registry import kernel
from elidir.backends.cpu.stored import vector
from elidir.backends.protocol import Answer, Kernel, No, Yes
from elidir.backends.weights import Weights
from elidir.ir import AddNorm, LayerNorm, RmsNorm


def _has_width(op: RmsNorm | AddNorm) -> Answer:
    width = op.results[-1].tensor.dims[-1]
    return Yes() if isinstance(width, int) else No("its last axis has no fixed size")


def _is_native(op: LayerNorm) -> Answer:
    return tape.available() and fits(op)


def _native(op: RmsNorm | LayerNorm | AddNorm, weights: Weights, code: Code) -> Alone:
    weight = vector(weights, op.weight)
    bias = vector(weights, op.bias) if isinstance(op, LayerNorm) else None
    centred = int(isinstance(op, LayerNorm))
    return Alone(
        code, (weight, bias), weight=address(weight), bias=address(bias), number=op.eps, fn=centred
    )


def _norm(op: RmsNorm | LayerNorm, weights: Weights) -> Kernel:
    norm = _native(op, weights, Code.NORM)

    def run(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        norm([x], [out])
        return out

    return run


@kernel(RmsNorm, _has_width)
def norm_rms(op: RmsNorm, weights: Weights) -> Kernel:
    """Divide by the root of the mean square."""
    if tape.available() and fits(op):
        return _norm(op, weights)
    weight = None if op.weight is None else weights.load(op.weight)
    width, eps = op.x.tensor.dims[-1:], op.eps
    return lambda x: torch.rms_norm(x, width, weight, eps)


@kernel(LayerNorm, _is_native)
def norm_layer(op: LayerNorm, weights: Weights) -> Kernel:
    """Centre, and divide by the standard deviation."""
    return _norm(op, weights)


@kernel(AddNorm, _has_width)
def add_norm(op: AddNorm, weights: Weights) -> Kernel:
    """Add, and the norm of the sum."""
    if tape.available() and fits(op):
        return _native_add_norm(op, weights)
    weight = weights.load(op.weight)
    width, eps = op.a.tensor.dims[-1:], op.eps

    def run(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = a + b
        return total, torch.rms_norm(total, width, weight, eps)

    return run


def _native_add_norm(op: AddNorm, weights: Weights) -> Kernel:
    norm = _native(op, weights, Code.ADD_NORM)

    def run(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total, normed = (torch.empty(a.shape, dtype=a.dtype) for _ in range(2))
        norm([a, b], [total, normed])
        return total, normed

    return run
