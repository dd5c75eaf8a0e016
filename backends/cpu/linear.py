"""Linear maps over weights as they are stored: [out, in], in parts and in blocks.

A few rows of bfloat16 or of a weight in blocks go through the native library. Many rows are torch's
product: blocks are dequantised for it part by part, into one scratch that all layers share, and
bfloat16 is multiplied as it is where the processor has instructions for that (it is then several
times as fast as float32), in float32 where it has none.
"""

import threading
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from elidir.backends.cpu.alone import Alone, address
from elidir.backends.cpu.native import tape
from elidir.backends.cpu.native.records import FUNCTIONS, TYPES, Code
from elidir.backends.cpu.registry import kernel
from elidir.backends.cpu.stored import Stored, dense, stored, table
from elidir.backends.dtypes import torch_dtype
from elidir.backends.protocol import Answer, Kernel, No, Yes
from elidir.backends.reference import UNARY
from elidir.backends.weights import Weights
from elidir.ir import Embed, FfnGated, Linear, LinearSplit, Weight

Multiply: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

# As many rows share one reading of a weight; beyond, torch's product is the faster.
MAX_ROWS = 16

# A larger weight (the output's) is converted in blocks of this many elements, 16 MB in float32.
BLOCK_ELEMENTS = 4 << 20

# What torch calls the instructions that multiply bfloat16, on x86 and on ARM.
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16", "sve_bf16")


@cache
def multiplies_bf16() -> bool:
    """Return whether this processor has instructions for products of bfloat16."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in BF16_INSTRUCTIONS)


class _Scratch(threading.local):
    """Room for rows of a weight, shared by all layers that run on one thread."""

    def __init__(self) -> None:
        self.room: dict[torch.dtype, torch.Tensor] = {}

    def empty(self, rows: int, inner: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a matrix of any content; it is overwritten after the next call."""
        room, count = self.room.get(dtype), rows * inner
        if room is None or room.numel() < count:
            room = self.room[dtype] = torch.empty(count, dtype=dtype)
        return room[:count].view(rows, inner)


SCRATCH = _Scratch()


# ---- one part of a weight


def _multiply(part: Stored, bias: torch.Tensor | None, dtype: torch.dtype) -> Multiply:
    """Return x -> x W^T + b for the rows of one part."""
    few = _few(part, bias) if _has_native(part, dtype) else None
    many = _many(part, bias, dtype)
    if few is None:
        return many
    inner = part.inner
    return lambda x: few(x) if x.numel() <= MAX_ROWS * inner else many(x)


def _has_native(part: Stored, dtype: torch.dtype) -> bool:
    return bool(tape.available()) and (part.in_blocks or dtype is torch.bfloat16)


def _few(part: Stored, bias: torch.Tensor | None) -> Multiply:
    wide = None if bias is None else bias.float()
    held = {"weight": part.address, "format": part.format, "bias": address(wide)}
    product = Alone(Code.LINEAR, (part, wide), inner=part.inner, **held)

    def run(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(*x.shape[:-1], part.rows)
        product([x.float()], [out])
        return out.to(x.dtype)

    return run


def _many(part: Stored, bias: torch.Tensor | None, dtype: torch.dtype) -> Multiply:
    direct = dtype is not torch.bfloat16 or multiplies_bf16()
    if direct and not part.in_blocks:
        return lambda x: F.linear(x, part.held, bias)
    return _through_scratch(part, bias, dtype if direct else torch.float32)


def _through_scratch(part: Stored, bias: torch.Tensor | None, inner: torch.dtype) -> Multiply:
    """Convert the weight to the type of the product, a block of rows at a time."""
    fill = _dequantize(part) if part.in_blocks else _convert(part)
    size = max(1, BLOCK_ELEMENTS // part.inner)
    spans = [(at, min(at + size, part.rows)) for at in range(0, part.rows, size)]
    bias = None if bias is None else bias.to(inner)

    def product(x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        weight = SCRATCH.empty(stop - start, part.inner, inner)
        fill(weight, start)
        return F.linear(x, weight, None if bias is None else bias[start:stop])

    def run(x: torch.Tensor) -> torch.Tensor:
        made = [product(x.to(inner), *span).to(x.dtype) for span in spans]
        return made[0] if len(made) == 1 else torch.cat(made, -1)

    return run


def _convert(part: Stored) -> Callable[[torch.Tensor, int], object]:
    return lambda to, start: to.copy_(part.held[start : start + len(to)])


def _dequantize(part: Stored) -> Callable[[torch.Tensor, int], object]:
    decode = Alone(Code.DEQUANTIZE, (part,), format=part.format)
    step = part.held.shape[1]
    return lambda to, start: decode([], [to], weight=part.address + start * step)


def multiply(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    """Return x -> x W^T + b for a tensor."""
    if weight.dtype not in TYPES:
        return lambda x: F.linear(x, weight, bias)
    return _multiply(dense(weight), bias, weight.dtype)


# ---- the ops


def products(weights: Weights, weight: Weight, bias: Weight | None = None) -> list[Multiply]:
    """Return x -> x W^T + b for each part of a weight."""
    offset = None if bias is None else weights.load(bias)
    parts, made, at = stored(weights, weight), [], 0
    for part in parts:
        own = None if offset is None else offset[at : at + part.rows].contiguous()
        made.append(_multiply(part, own, torch_dtype(weight.type.dtype)))
        at += part.rows
    return made


def _whole(made: list[Multiply]) -> Multiply:
    if len(made) == 1:
        return made[0]
    return lambda x: torch.cat([multiply(x) for multiply in made], -1)


@kernel(Linear)
def linear(op: Linear, weights: Weights) -> Kernel:
    """X W^T + b."""
    return _whole(products(weights, op.weight, op.bias))


@kernel(LinearSplit)
def linear_split(op: LinearSplit, weights: Weights) -> Kernel:
    """Several linear maps of one input, each by itself where the weight is kept so."""
    made, sizes = products(weights, op.weight, op.bias), op.sizes
    if tuple(part.rows for part in stored(weights, op.weight)) == sizes:
        return lambda x: tuple(multiply(x) for multiply in made)
    both = _whole(made)
    return lambda x: torch.split_with_sizes(both(x), sizes, -1)


@kernel(FfnGated)
def ffn_gated(op: FfnGated, weights: Weights) -> Kernel:
    """A gated feed-forward block."""
    refs = (op.gate, op.up, op.down)
    gate, up, down = (_whole(products(weights, ref)) for ref in refs)
    act = UNARY[op.act]
    if op.act in FUNCTIONS and tape.available():
        gated = Alone(Code.GATED, fn=FUNCTIONS[op.act])

        def run(x: torch.Tensor) -> torch.Tensor:
            a, b = gate(x), up(x)
            gated([a, b], [a])
            return down(a)

        return run
    return lambda x: down(act(gate(x)).mul_(up(x)))


# ---- embeddings


def _is_table(op: Embed) -> Answer:
    if len(op.table.type.dims) != 2:
        return No("its table has not two dimensions")
    return Yes()


@kernel(Embed, _is_table)
def embed(op: Embed, weights: Weights) -> Kernel:
    """Look up rows; a table that is also the output's weight is the same memory."""
    rows = table(weights, op.table)
    if rows.in_blocks:
        return _embed_blocks(op, rows)
    return lambda ids: F.embedding(ids, rows.held)


def _embed_blocks(op: Embed, rows: Stored) -> Kernel:
    dtype = torch_dtype(op.table.type.dtype)
    held = {"weight": rows.address, "format": rows.format}
    look_up = Alone(Code.EMBED, (rows,), inner=rows.rows, **held)

    def run(ids: torch.Tensor) -> torch.Tensor:
        flat = ids.to(torch.int64).reshape(-1)
        out = torch.empty(len(flat), rows.inner, dtype=dtype)
        if not look_up([flat], [out]):
            raise IndexError("index out of range")
        return out.view(*ids.shape, rows.inner)

    return run
