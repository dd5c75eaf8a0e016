"""What records of int8 ops refer to: the numbers of a grid, and a weight as the product reads it.

A weight is kept once: the native product of few rows reads it as oneDNN packs it for many. Whether
oneDNN's bytes lie as expected is found out by comparing all of them; where they do not, the native
library has a copy of its own.
"""

import ctypes
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from elidir.backends.cpu.native import tape
from elidir.backends.cpu.native.records import BLOCK_OUTPUTS, FUNCTIONS
from elidir.backends.cpu.stored import vector
from elidir.backends.protocol import BackendError
from elidir.backends.reference import ZERO_POINT
from elidir.backends.weights import Weights
from elidir.ir import (
    LinearInt8,
    Quantize,
    QuantizeAddNorm,
    QuantizeGated,
    QuantizeNorm,
    Value,
    Weight,
)

Rounding: TypeAlias = Quantize | QuantizeNorm | QuantizeAddNorm | QuantizeGated
Outs: TypeAlias = tuple[Any, Any, Any]

KINDS = (Quantize, QuantizeNorm, QuantizeAddNorm, QuantizeGated)
_DEPTHS = (4, 16, 32, 64)  # of what oneDNN rounds the inputs up to


# ---- grids


def rounding(op: Rounding, weights: Weights) -> tuple[list[Any], dict[str, Any]]:
    """Return what the record of an op that makes a grid refers to, and its fields.

    Raises `BackendError` if a column is no channel.
    """
    columns = None
    if op.columns is not None:
        columns = weights.prepare("columns", [op.columns], lambda c: c.to(torch.int64).contiguous())
        _check(columns, int(next(iter(op.operands())).tensor.dims[-1]), op.columns)
    normed = isinstance(op, QuantizeNorm | QuantizeAddNorm)
    weight = vector(weights, op.weight) if normed else None
    fields = {
        "weight": 0 if weight is None else weight.data_ptr(),
        "bias": 0 if columns is None else columns.data_ptr(),
        "extra": (KINDS.index(type(op)), 0 if columns is None else len(columns), 0, 0),
        "number": op.eps if normed else 0.0,
        "limit": 1.0 / weights.load(op.scale).item(),
        "fn": FUNCTIONS[op.act] if isinstance(op, QuantizeGated) else 0,
    }
    return [weight, columns], fields


def _check(columns: torch.Tensor, width: int, weight: Weight) -> None:
    if bool(((columns < -width) | (columns >= width)).any()):
        raise BackendError(f"@{weight.name} names a channel that is not among the {width}")


def outputs(op: Rounding) -> tuple[Value, Value | None, Value | None]:
    """Return the grid, the columns apart and the sum, of which an op may lack the last two."""
    *total, grid, apart = op.results if op.columns is not None else (*op.results, None)
    assert grid is not None
    return grid, apart, (total[0] if total else None)


# ---- weights


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight [out, in] for products in int8.

    Args:
        many: as oneDNN packs it.
        own: the native library's copy, where it cannot read `many`.
        address: of the blocks that the native library reads.
        block: bytes of one.
        offsets: of each output, -128 times the sum of its weights, i32.
    """

    many: torch.Tensor
    own: torch.Tensor | None
    address: int
    block: int
    offsets: torch.Tensor


def packed(weights: Weights, weight: Weight) -> Packed:
    """Return a weight for products in int8, shared by all that ask for it."""
    made: Any = weights.prepare("int8", [weight], _pack)
    assert isinstance(made, Packed)
    return made


def scales(op: LinearInt8, weights: Weights) -> torch.Tensor:
    """Return the scales of both grids together, f32 [out]."""
    return weights.prepare("int8.scales", [op.scales, op.in_scale], _product)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.double() * b.double()).float().contiguous()


def _pack(weight: torch.Tensor) -> Any:
    many = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    if not tape.available():
        return Packed(many, None, 0, 0, torch.empty(0))
    rows = -(-len(weight) // BLOCK_OUTPUTS) * BLOCK_OUTPUTS
    offsets = torch.zeros(rows, dtype=torch.int32)
    offsets[: len(weight)] = weight.sum(1, dtype=torch.int32) * -ZERO_POINT
    if block := _block(many, weight):
        return Packed(many, None, _address(many), block, offsets)
    own = _blocks(weight, _DEPTHS[0])
    return Packed(many, own, own.data_ptr(), own[0].nbytes, offsets)


def _blocks(weight: torch.Tensor, step: int) -> torch.Tensor:
    """Return blocks of outputs, in each four inputs of every output side by side, as words."""
    outs, inner = weight.shape
    rows, depth = -(-outs // BLOCK_OUTPUTS) * BLOCK_OUTPUTS, -(-inner // step) * step
    padded = torch.nn.functional.pad(weight, (0, depth - inner, 0, rows - outs)).contiguous()
    words = padded.view(torch.int32).view(-1, BLOCK_OUTPUTS, depth // 4)
    return words.transpose(1, 2).contiguous()


def _block(many: torch.Tensor, weight: torch.Tensor) -> int:
    """Return the bytes of a block of what oneDNN packed; 0 if it lies in another way."""
    if not weight.numel() or not many.is_mkldnn:
        return 0
    size = torch.ops.mkldnn._nbytes(many)
    memory = (ctypes.c_int8 * size).from_address(_address(many))
    found = torch.frombuffer(memory, dtype=torch.int8)
    for step in _DEPTHS:
        own = _blocks(weight, step)
        if own.nbytes <= size and torch.equal(found[: own.nbytes].view(torch.int32), own.view(-1)):
            return own[0].nbytes
    return 0


def _address(many: torch.Tensor) -> int:
    address: int = torch.ops.mkldnn.data_ptr(many)
    return address
