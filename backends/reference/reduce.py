"""Reductions, softmax and the plain matrix product, in plain torch.

What is summed or normalised in float32 at least says so through `wide`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from elidir.backends.dtypes import torch_dtype
from elidir.backends.protocol import Kernel
from elidir.backends.reference.registry import kernel
from elidir.backends.weights import Weights
from elidir.ir import Cumsum, MatMul, Reduce, Softmax, TopK


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type that norms and softmax are computed in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def _prod(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in axes:  # the last first, so that the others stay where they are
        x = x.prod(dim=axis, keepdim=keep)
    return x


def _argmax(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    """The index of the first maximum, counted row-major over the axes."""
    rest = [i for i in range(x.dim()) if i not in axes]
    flat = x.permute(*rest, *reversed(axes)).flatten(len(rest))
    found = flat.argmax(dim=-1)
    return found.reshape([1 if i in axes else n for i, n in enumerate(x.shape)]) if keep else found


FUNCTIONS: dict[str, Callable[[Any, list[int], bool], torch.Tensor]] = {
    "all": lambda x, axes, keep: torch.all(x, dim=axes, keepdim=keep),
    "any": lambda x, axes, keep: torch.any(x, dim=axes, keepdim=keep),
    "argmax": _argmax,
    "max": lambda x, axes, keep: torch.amax(x, dim=axes, keepdim=keep),
    "mean": lambda x, axes, keep: torch.mean(x, dim=axes, keepdim=keep),
    "min": lambda x, axes, keep: torch.amin(x, dim=axes, keepdim=keep),
    "prod": _prod,
    "sum": lambda x, axes, keep: torch.sum(x, dim=axes, keepdim=keep),
}


@kernel(Reduce)
def reduce(op: Reduce, weights: Weights) -> Kernel:
    """Combine over axes."""
    rank, dtype = len(op.x.tensor.dims), torch_dtype(op.result.tensor.dtype)
    axes = sorted({a % rank for a in op.axes}, reverse=True)
    fn, keep = FUNCTIONS[op.fn], op.keep
    if not axes:  # torch reads no axes as all of them
        return lambda x: x.to(dtype)
    return lambda x: fn(x, axes, keep)


@kernel(Cumsum)
def cumsum(op: Cumsum, weights: Weights) -> Kernel:
    """Sum up to each element."""
    axis = op.axis
    return lambda x: torch.cumsum(x, dim=axis)


@kernel(Softmax)
def softmax(op: Softmax, weights: Weights) -> Kernel:
    """Normalise exponentials."""
    axis, dtype = op.axis, torch_dtype(op.x.tensor.dtype)
    return lambda x: F.softmax(x, dim=axis, dtype=wide(dtype)).to(dtype)


@kernel(TopK)
def topk(op: TopK, weights: Weights) -> Kernel:
    """The largest along the last axis."""
    k = op.k
    return lambda x: tuple(torch.topk(x, k, dim=-1))


@kernel(MatMul)
def matmul(op: MatMul, weights: Weights) -> Kernel:
    """Multiply matrices."""
    if op.a.tensor.dtype is op.b.tensor.dtype:
        return torch.matmul
    dtype = torch_dtype(op.result.tensor.dtype)
    return lambda a, b: torch.matmul(a.to(dtype), b.to(dtype))
