"""Norms through torch's own operator.

It rounds once, after the weight, where the reference rounds before and after: in float32 they are
the same.
"""

import torch

from elidir.backends.cpu.registry import kernel
from elidir.backends.protocol import Answer, Kernel, No, Yes
from elidir.backends.weights import Weights
from elidir.ir import AddNorm, RmsNorm


def _has_width(op: RmsNorm | AddNorm) -> Answer:
    width = op.results[-1].tensor.dims[-1]
    return Yes() if isinstance(width, int) else No("its last axis has no fixed size")


@kernel(RmsNorm, _has_width)
def norm_rms(op: RmsNorm, weights: Weights) -> Kernel:
    """Divide by the root of the mean square."""
    weight = None if op.weight is None else weights.load(op.weight)
    width, eps = op.x.tensor.dims[-1:], op.eps
    return lambda x: torch.rms_norm(x, width, weight, eps)


@kernel(AddNorm, _has_width)
def add_norm(op: AddNorm, weights: Weights) -> Kernel:
    """Add, and the norm of the sum."""
    weight = weights.load(op.weight)
    width, eps = op.a.tensor.dims[-1:], op.eps

    def run(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = a + b
        return total, torch.rms_norm(total, width, weight, eps)

    return run
