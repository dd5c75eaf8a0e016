"""Linear maps and embeddings over weights laid out by column.

A weight [out, in] is kept as a view of its transpose [in, out]: one row of input then streams it
in the order in which it is stored, and many rows need no packing at each call. The processor
multiplies bfloat16 fast only with instructions that few have, so many bfloat16 rows are
multiplied in float32, through one scratch that all layers share.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from elidir.backends.cpu.registry import kernel
from elidir.backends.protocol import Answer, Kernel, No, Yes
from elidir.backends.reference import UNARY
from elidir.backends.weights import Weights
from elidir.ir import Embed, FfnGated, Linear, LinearSplit, Weight

Multiply: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

# From this many rows on, converting a bfloat16 weight to float32 costs less than it saves.
UPCAST_ROWS = 4
# A larger weight (the output's) is converted in blocks of this many elements, 16 MB in float32.
BLOCK_ELEMENTS = 4 << 20


def by_column(*parts: torch.Tensor) -> torch.Tensor:
    """Return the parts one over the other, [out, in], stored as [in, out]."""
    return torch.cat([p.t() for p in parts], dim=1).t() if len(parts) > 1 else _columns(parts[0])


def _columns(weight: torch.Tensor) -> torch.Tensor:
    return weight.t().contiguous().t()


def packed(weights: Weights, refs: Sequence[Weight]) -> torch.Tensor:
    """Return weights as one, by column; one that is shared is rearranged once."""
    return weights.prepare("columns", refs, by_column)


def multiply(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    """Return x -> x W^T + b for a weight that is stored by column."""
    if weight.dtype is torch.bfloat16:
        return _multiply_bf16(weight, bias)
    return lambda x: F.linear(x, weight, bias)


class _Scratch(threading.local):
    """Float32 room for a block of a weight, shared by all layers that run on one thread."""

    def __init__(self) -> None:
        self.room = torch.empty(0)

    def upcast(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight in float32, by column; it is overwritten by the next call."""
        if self.room.numel() < weight.numel():
            self.room = torch.empty(weight.numel())
        rows, columns = weight.shape
        return self.room[: weight.numel()].view(columns, rows).t().copy_(weight)


SCRATCH = _Scratch()


def _multiply_bf16(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    inner = weight.shape[1]
    blocks = weight.split(max(1, BLOCK_ELEMENTS // inner))
    wide_bias = None if bias is None else bias.float()

    def wide(x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        if len(blocks) == 1:
            return F.linear(x, SCRATCH.upcast(weight), wide_bias).to(torch.bfloat16)
        out = torch.cat([F.linear(x, SCRATCH.upcast(b)).to(torch.bfloat16) for b in blocks], -1)
        return out if bias is None else out.add_(bias)

    def run(x: torch.Tensor) -> torch.Tensor:
        few = x.numel() < UPCAST_ROWS * inner
        return F.linear(x, weight, bias) if few else wide(x)

    return run


def _load(weights: Weights, bias: Weight | None) -> torch.Tensor | None:
    return None if bias is None else weights.load(bias)


@kernel(Linear)
def linear(op: Linear, weights: Weights) -> Kernel:
    """X W^T + b."""
    return multiply(packed(weights, [op.weight]), _load(weights, op.bias))


@kernel(LinearSplit)
def linear_split(op: LinearSplit, weights: Weights) -> Kernel:
    """Several linear maps of one input."""
    both = multiply(packed(weights, [op.weight]), _load(weights, op.bias))
    sizes = op.sizes
    return lambda x: torch.split_with_sizes(both(x), sizes, -1)


@kernel(FfnGated)
def ffn_gated(op: FfnGated, weights: Weights) -> Kernel:
    """A gated feed-forward block: gate and up are one product."""
    inner = multiply(packed(weights, [op.gate, op.up]), None)
    outer = multiply(packed(weights, [op.down]), None)
    act = UNARY[op.act]

    def run(x: torch.Tensor) -> torch.Tensor:
        gate, up = inner(x).chunk(2, -1)
        return outer(act(gate).mul_(up))

    return run


def _is_table(op: Embed) -> Answer:
    if len(op.table.type.dims) != 2:
        return No("its table has not two dimensions")
    return Yes()


@kernel(Embed, _is_table)
def embed(op: Embed, weights: Weights) -> Kernel:
    """Look up rows; a table that is also the output's weight is kept once, in that layout."""
    shared = weights.readers(op.table) & {Linear.kind, LinearSplit.kind}
    table = packed(weights, [op.table]) if shared else weights.load(op.table)
    return lambda ids: F.embedding(ids, table)
