"""Linear maps and embeddings over weights as they are stored, [out, in].

In float32 torch's own product reads a weight as fast as memory gives it. In bfloat16 a few rows go
through the native kernel where there is one. Many rows are torch's product where the processor has
instructions for bfloat16 (it is then several times as fast as float32); where it has none they are
multiplied in float32, through one scratch that all layers share.
"""

import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from elidir.backends.cpu.native import MAX_ROWS, RowMajor, available
from elidir.backends.cpu.registry import kernel
from elidir.backends.protocol import Answer, Kernel, No, Yes
from elidir.backends.reference import UNARY
from elidir.backends.weights import Weights
from elidir.ir import Embed, FfnGated, Linear, LinearSplit, Weight

Multiply: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

# A larger weight (the output's) is converted in blocks of this many elements, 16 MB in float32.
BLOCK_ELEMENTS = 4 << 20


def stacked(weights: Weights, refs: Sequence[Weight]) -> torch.Tensor:
    """Return weights one over the other as one [out, in]; a single one is not copied."""
    return weights.prepare("stacked", refs, _stack)


def _stack(*parts: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()


def multiply(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    """Return x -> x W^T + b."""
    if weight.dtype is torch.bfloat16:
        return _multiply_bf16(weight, bias)
    return lambda x: F.linear(x, weight, bias)


class _Scratch(threading.local):
    """Float32 room for a block of a weight, shared by all layers that run on one thread."""

    def __init__(self) -> None:
        self.room = torch.empty(0)

    def upcast(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight in float32; it is overwritten by the next call."""
        if self.room.numel() < weight.numel():
            self.room = torch.empty(weight.numel())
        return self.room[: weight.numel()].view(weight.shape).copy_(weight)


SCRATCH = _Scratch()


# What torch calls the instructions that multiply bfloat16, on x86 and on ARM.
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16", "sve_bf16")


@cache
def multiplies_bf16() -> bool:
    """Return whether this processor has instructions for products of bfloat16."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in BF16_INSTRUCTIONS)


def _multiply_bf16(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    inner = weight.shape[1]
    few: Multiply = RowMajor(weight, bias) if available() else partial(_plain, weight, bias)
    native = multiplies_bf16()
    many = partial(_plain, weight, bias) if native else _through_float32(weight, bias)
    return lambda x: few(x) if x.numel() <= MAX_ROWS * inner else many(x)


def _plain(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight, bias)


def _through_float32(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    inner = weight.shape[1]
    blocks = weight.split(max(1, BLOCK_ELEMENTS // inner))
    wide_bias = None if bias is None else bias.float()

    def wide(x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        if len(blocks) == 1:
            return F.linear(x, SCRATCH.upcast(weight), wide_bias).to(torch.bfloat16)
        out = torch.cat([F.linear(x, SCRATCH.upcast(b)).to(torch.bfloat16) for b in blocks], -1)
        return out if bias is None else out.add_(bias)

    return wide


def _load(weights: Weights, bias: Weight | None) -> torch.Tensor | None:
    return None if bias is None else weights.load(bias)


@kernel(Linear)
def linear(op: Linear, weights: Weights) -> Kernel:
    """X W^T + b."""
    return multiply(stacked(weights, [op.weight]), _load(weights, op.bias))


@kernel(LinearSplit)
def linear_split(op: LinearSplit, weights: Weights) -> Kernel:
    """Several linear maps of one input."""
    both = multiply(stacked(weights, [op.weight]), _load(weights, op.bias))
    sizes = op.sizes
    return lambda x: torch.split_with_sizes(both(x), sizes, -1)


@kernel(FfnGated)
def ffn_gated(op: FfnGated, weights: Weights) -> Kernel:
    """A gated feed-forward block: gate and up are one product."""
    inner = multiply(stacked(weights, [op.gate, op.up]), None)
    outer = multiply(stacked(weights, [op.down]), None)
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
    """Look up rows; a table that is also the output's weight is the same tensor."""
    table = weights.load(op.table)
    return lambda ids: F.embedding(ids, table)
