"""Ops that move, select or make elements, in plain torch.

They give views wherever torch does: nothing later writes to a value, so nothing need be copied.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from elidir.backends.dtypes import torch_dtype
from elidir.backends.protocol import Kernel, sizes_of
from elidir.backends.reference.registry import kernel
from elidir.backends.weights import Weights
from elidir.ir import (
    Concat,
    Expand,
    Full,
    HeadsMerge,
    HeadsSplit,
    Iota,
    Pad,
    Permute,
    Reshape,
    Slice,
    Take,
)


@kernel(HeadsSplit)
def heads_split(op: HeadsSplit, weights: Weights) -> Kernel:
    """[B, T, H*D] -> [B, H, T, D]."""
    heads = op.heads
    return lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)


@kernel(HeadsMerge)
def heads_merge(op: HeadsMerge, weights: Weights) -> Kernel:
    """[B, H, T, D] -> [B, T, H*D]."""
    return lambda x: x.transpose(1, 2).flatten(2)


@kernel(Reshape)
def reshape(op: Reshape, weights: Weights) -> Kernel:
    """Elements in order, in another shape."""
    shape = sizes_of(op, op.shape)
    return lambda x, *sizes: x.reshape(shape(sizes))


@kernel(Permute)
def permute(op: Permute, weights: Weights) -> Kernel:
    """Axes in another order."""
    order = op.order
    return lambda x: x.permute(order)


@kernel(Slice)
def slice_(op: Slice, weights: Weights) -> Kernel:
    """A range along one axis."""
    bounds = sizes_of(op, (op.start, op.stop))
    lead = (slice(None),) * (op.axis % len(op.x.tensor.dims))
    step = op.step

    def run(x: torch.Tensor, *sizes: int) -> torch.Tensor:
        start, stop = bounds(sizes)
        return x[(*lead, slice(start, stop, step))]

    return run


@kernel(Concat)
def concat(op: Concat, weights: Weights) -> Kernel:
    """Parts one after another."""
    axis = op.axis
    return lambda *parts: torch.cat(parts, dim=axis)


@kernel(Expand)
def expand(op: Expand, weights: Weights) -> Kernel:
    """Broadcast."""
    shape = sizes_of(op, op.shape)
    return lambda x, *sizes: x.expand(shape(sizes))


@kernel(Pad)
def pad(op: Pad, weights: Weights) -> Kernel:
    """Elements of one value around an axis."""
    rank = len(op.x.tensor.dims)
    amounts = [0, 0] * (rank - 1 - op.axis % rank) + [op.before, op.after]
    value = op.value
    return lambda x: F.pad(x, amounts, value=value)


@kernel(Take)
def take(op: Take, weights: Weights) -> Kernel:
    """Index one axis by a tensor of any shape."""
    lead = (slice(None),) * (op.axis % len(op.x.tensor.dims))
    return lambda x, index: x[(*lead, index)]


@kernel(Iota)
def iota(op: Iota, weights: Weights) -> Kernel:
    """Count upwards."""
    length, start, dtype = sizes_of(op, (op.length,)), op.start, torch_dtype(op.dtype)

    def run(*sizes: int) -> torch.Tensor:
        return torch.arange(start, start + length(sizes)[0], dtype=dtype)

    return run


@kernel(Full)
def full(op: Full, weights: Weights) -> Kernel:
    """One value everywhere."""
    shape, value, dtype = sizes_of(op, op.shape), op.value, torch_dtype(op.dtype)

    def run(*sizes: Any) -> torch.Tensor:
        return torch.full(shape(sizes), value, dtype=dtype)

    return run
