"""Weights as the native kernels read them: rows of float32, bfloat16 or blocks, by address.

A weight is taken as it is stored: in its blocks where the kernels know their format, and a
concatenation in its parts. Whoever keeps a `Stored` keeps the memory behind it.
"""

from dataclasses import dataclass, replace

import torch

from elidir.backends.cpu.native import tape
from elidir.backends.cpu.native.records import FORMATS, TYPES
from elidir.backends.weights import Blocks, Weights
from elidir.ir import DType, Weight

BLOCK_FORMATS = frozenset(FORMATS) - {"f32", "bf16"}
_BLOCK = 32


@dataclass(frozen=True, eq=False)
class Stored:
    """Rows of a matrix [rows, inner]; `held` is a tensor of them, or their bytes in blocks."""

    held: torch.Tensor
    format: int
    rows: int
    inner: int

    @property
    def address(self) -> int:
        """Where the first row begins."""
        return self.held.data_ptr()

    @property
    def in_blocks(self) -> bool:
        """Whether it must be dequantised before torch can use it."""
        return self.format not in TYPES.values()


def stored(weights: Weights, weight: Weight) -> tuple[Stored, ...]:
    """Return a matrix [rows, inner], one over the other if it is kept in several parts."""
    fits = tape.available() and weight.type.dims[1] % _BLOCK == 0
    parts = weights.parts(weight, BLOCK_FORMATS if fits else ())
    return tuple(_blocks(p) if isinstance(p, Blocks) else dense(p) for p in parts)


def table(weights: Weights, weight: Weight) -> Stored:
    """Return a matrix in one part, joined if it is kept in several."""
    parts = stored(weights, weight)
    return parts[0] if len(parts) == 1 else dense(weights.load(weight))


def _blocks(part: Blocks) -> Stored:
    return Stored(part.raw.contiguous(), FORMATS[part.format], *part.shape)


def dense(part: torch.Tensor) -> Stored:
    """Return a matrix that is a tensor."""
    rows, inner = part.shape
    return Stored(part.contiguous(), TYPES[part.dtype], rows, inner)


def vector(weights: Weights, weight: Weight | None) -> torch.Tensor | None:
    """Return a vector in float32, as the kernels take biases and the weights of norms."""
    if weight is None:
        return None
    wide = replace(weight, type=replace(weight.type, dtype=DType.F32))
    return weights.prepare("vector", [wide], torch.Tensor.contiguous)
