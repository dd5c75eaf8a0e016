"""The types of values: tensors, masks, KV caches and token sets, all frozen and equal by value.

A type says what a value is, never where it is stored or how it is computed.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from elidir.ir.errors import IRTypeError
from elidir.ir.symbols import Dim, as_dim, format_dim


class DType(Enum):
    """Element types; the value is the name in IR text."""

    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    U8 = "u8"
    BOOL = "bool"
    C64 = "c64"

    @property
    def bytes(self) -> int:
        """Bytes of one element."""
        return _BYTES[self]

    @property
    def is_float(self) -> bool:
        """Whether this is a floating-point type."""
        return self in _FLOATS

    @property
    def is_int(self) -> bool:
        """Whether this is an integer type, bool not counted."""
        return self not in _FLOATS and self is not DType.BOOL


_FLOATS = (DType.F64, DType.F32, DType.BF16, DType.F16)
_BYTES = {
    DType.F64: 8,
    DType.F32: 4,
    DType.F16: 2,
    DType.BF16: 2,
    DType.I64: 8,
    DType.I32: 4,
    DType.I16: 2,
    DType.I8: 1,
    DType.U8: 1,
    DType.BOOL: 1,
    DType.C64: 8,
}


@dataclass(frozen=True)
class Tensor:
    """A dense array of `dims` (outermost first)."""

    dims: tuple[Dim, ...]
    dtype: DType

    def __str__(self) -> str:
        return f"{self.dtype.value}[{', '.join(map(format_dim, self.dims))}]"


@dataclass(frozen=True)
class Mask:
    """A predicate over (batch, query, key): True where the query may see the key."""

    dims: tuple[Dim, Dim, Dim]

    def __str__(self) -> str:
        return f"mask[{', '.join(map(format_dim, self.dims))}]"


@dataclass(frozen=True)
class KV:
    """Cached keys `[batch, heads, length, key_dim]` and values `[.., value_dim]` of one attention.

    `rotated` says whether keys are stored after their rotary embedding, `placed` whether the state
    knows which tokens it holds: it may then hold others than its neighbours. A `scored` one keeps a
    score f32[batch, heads, length] beside each key, by which it evicts.
    """

    batch: Dim
    heads: Dim
    length: Dim
    key_dim: Dim
    value_dim: Dim
    dtype: DType
    rotated: bool = False
    placed: bool = False
    scored: bool = False

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The five dimensions, in the order of the fields."""
        return (self.batch, self.heads, self.length, self.key_dim, self.value_dim)

    def __str__(self) -> str:
        dims = ", ".join(map(format_dim, self.dims))
        marks = "".join(f", {name}" for name in KV_MARKS if getattr(self, name))
        return f"kv<{dims}, {self.dtype.value}{marks}>"


KV_MARKS = ("rotated", "placed", "scored")


@dataclass(frozen=True)
class TokenSet:
    """Some of the `of` tokens of each row, in their order; rows with fewer are filled up.

    What fills up is invalid: no query may see it, and nothing reads what is computed for it.
    """

    batch: Dim
    length: Dim
    of: Dim

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The three dimensions, in the order of the fields."""
        return (self.batch, self.length, self.of)

    def __str__(self) -> str:
        return f"tokens<{', '.join(map(format_dim, self.dims))}>"


Type: TypeAlias = Tensor | Mask | KV | TokenSet


def promote(a: DType, b: DType) -> DType:
    """Return the dtype of an elementwise op over `a` and `b`, as torch promotes tensors."""
    if a == b:
        return a
    if a.is_float != b.is_float:
        return a if a.is_float else b
    if {a, b} == {DType.F16, DType.BF16}:
        return DType.F32
    if DType.BOOL in {a, b}:
        return b if a is DType.BOOL else a
    if {a, b} == {DType.U8, DType.I8}:
        return DType.I16
    return a if a.bytes > b.bytes else b


def broadcast(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Return the broadcast shape; raises `IRTypeError` if the two do not fit."""
    n = max(len(a), len(b))
    left, right = (1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b)
    return tuple(_broadcast_dim(x, y) for x, y in zip(left, right, strict=True))


def _broadcast_dim(x: Dim, y: Dim) -> Dim:
    if x == y or y == 1:
        return x
    if x == 1:
        return y
    raise IRTypeError(f"dimensions {format_dim(x)} and {format_dim(y)} do not broadcast")


def check_rank(x: Tensor, rank: int, shape: str) -> None:
    """Raise `IRTypeError` unless a tensor has `rank` dimensions; `shape` says which."""
    if len(x.dims) != rank:
        raise IRTypeError(f"needs {shape}, not {x}")


def axis_of(axis: int, rank: int) -> int:
    """Return a nonnegative axis; raises `IRTypeError` if it is out of range."""
    if not -rank <= axis < rank:
        raise IRTypeError(f"axis {axis} is out of range for {rank} dimensions")
    return axis % rank


def replace_dim(dims: tuple[Dim, ...], axis: int, dim: Dim) -> tuple[Dim, ...]:
    """Return `dims` with one entry replaced."""
    axis = axis_of(axis, len(dims))
    return (*dims[:axis], as_dim(dim), *dims[axis + 1 :])
