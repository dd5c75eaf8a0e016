"""Mask ops in plain torch.

A mask at run time is a bool tensor that broadcasts to [B, Q, K], or None for all true.
"""

import torch

from elidir.backends.protocol import Kernel
from elidir.backends.reference.registry import kernel
from elidir.backends.weights import Weights
from elidir.ir import MaskAnd, MaskCausal, MaskDense, MaskValid, MaskWindow


@kernel(MaskCausal)
def causal(op: MaskCausal, weights: Weights) -> Kernel:
    """Keys at or before the query."""
    return lambda q, k: k[:, None, :] <= q[:, :, None]


@kernel(MaskWindow)
def window(op: MaskWindow, weights: Weights) -> Kernel:
    """Keys within a distance."""
    before, after = op.before, op.after

    def run(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        distance = q[:, :, None] - k[:, None, :]
        return (distance >= -after) & (distance <= before)

    return run


@kernel(MaskValid)
def valid(op: MaskValid, weights: Weights) -> Kernel:
    """Keys that are valid."""
    return lambda valid: valid[:, None, :]


@kernel(MaskDense)
def dense(op: MaskDense, weights: Weights) -> Kernel:
    """A predicate given as data."""
    return lambda x: x


def both(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    """Return the conjunction of two masks."""
    if a is None or b is None:
        return b if a is None else a
    return a & b


@kernel(MaskAnd)
def conjunction(op: MaskAnd, weights: Weights) -> Kernel:
    """Both."""
    return both
