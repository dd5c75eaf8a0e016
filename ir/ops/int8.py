"""Products in int8: values are rounded to a static grid, multiplied as integers, and scaled back.

A value on the grid is u8 with zero point 128, so that both signs have a place. Channels that would
stretch the grid for all others are named by `columns`: they leave as they are, beside the grid.
What is rounded often comes from a norm or a gate; the fused forms keep that out of memory.
"""

from elidir.ir.errors import IRTypeError, nearest
from elidir.ir.op import Op, Value, Weight, op
from elidir.ir.ops.elementwise import UNARY
from elidir.ir.symbols import Dim
from elidir.ir.types import DType, Tensor, Type, check_rank, replace_dim


def _quantized(x: Tensor, scale: Weight, columns: Weight | None) -> tuple[Type, ...]:
    if not x.dtype.is_float or not x.dims:
        raise IRTypeError(f"{x} has no channels of floats to quantize")
    _check_scalar(scale)
    grid = Tensor(x.dims, DType.U8)
    if columns is None:
        return (grid,)
    check_rank(columns.type, 1, "columns [K]")
    if not columns.type.dtype.is_int:
        raise IRTypeError(f"the columns are {columns.type}, not integers")
    return (grid, Tensor(replace_dim(x.dims, -1, columns.type.dims[0]), x.dtype))


def _check_scalar(scale: Weight) -> None:
    if scale.type.dims or not scale.type.dtype.is_float:
        raise IRTypeError(f"the scale is {scale.type}, not one float")


@op("quantize")
class Quantize(Op):
    """out = clamp(round(x / scale) + 128, 0, 255); with `columns`, also x[.., columns] as it is."""

    x: Value
    scale: Weight
    columns: Weight | None = None

    def infer(self) -> tuple[Type, ...]:
        return _quantized(self.x.tensor, self.scale, self.columns)


@op("quantize.norm")
class QuantizeNorm(Op):
    """quantize(norm.rms(x)), without the norm in memory."""

    x: Value
    weight: Weight
    scale: Weight
    columns: Weight | None = None
    eps: float = 1e-6

    def infer(self) -> tuple[Type, ...]:
        return _quantized(_normed(self.x.tensor, self.weight), self.scale, self.columns)


def _normed(x: Tensor, weight: Weight) -> Tensor:
    if weight.type.dims != x.dims[-1:]:
        raise IRTypeError(f"the weight {weight.type} does not fit the last axis of {x}")
    return x


@op("quantize.add_norm")
class QuantizeAddNorm(Op):
    """sum = a + b, and quantize(norm.rms(sum)): a residual add and the norm behind it."""

    a: Value
    b: Value
    weight: Weight
    scale: Weight
    columns: Weight | None = None
    eps: float = 1e-6

    def infer(self) -> tuple[Type, ...]:
        a, b = self.a.tensor, self.b.tensor
        if a != b:
            raise IRTypeError(f"{a} and {b} differ")
        return (a, *_quantized(_normed(a, self.weight), self.scale, self.columns))


@op("quantize.gated")
class QuantizeGated(Op):
    """quantize(act(gate) * up): the inside of a gated feed-forward block."""

    gate: Value
    up: Value
    scale: Weight
    columns: Weight | None = None
    act: str = "silu"

    def infer(self) -> tuple[Type, ...]:
        if self.act not in UNARY:
            raise IRTypeError(f"unknown activation '{self.act}'{nearest(self.act, UNARY)}")
        if self.gate.type != self.up.type:
            raise IRTypeError(f"gate {self.gate.type} and up {self.up.type} differ")
        return _quantized(self.gate.tensor, self.scale, self.columns)


@op("linear.int8")
class LinearInt8(Op):
    """out = (x - 128) W^T * in_scale * scales + bias + plus; sums are exact, in i32.

    x is a grid that `quantize` made with `in_scale`, W is i8 [out, in], scales and bias are [out].
    `plus` is what was computed apart.
    """

    x: Value
    weight: Weight
    scales: Weight
    in_scale: Weight
    bias: Weight | None = None
    plus: Value | None = None
    dtype: DType = DType.F32

    def infer(self) -> Type:
        x, w = self.x.tensor, self.weight.type
        if x.dtype is not DType.U8 or w.dtype is not DType.I8:
            raise IRTypeError(f"needs x of u8 and a weight of i8, not {x} and {w}")
        if len(w.dims) != 2 or x.dims[-1:] != w.dims[1:]:
            raise IRTypeError(f"{x} does not fit the weight @{self.weight.name}: {w}")
        _check_scalar(self.in_scale)
        self._check_rows(w.dims[:1])
        out = Tensor(replace_dim(x.dims, -1, w.dims[0]), self.dtype)
        if self.plus is not None and self.plus.type != out:
            raise IRTypeError(f"plus is {self.plus.type}, but the product is {out}")
        return out

    def _check_rows(self, rows: tuple[Dim, ...]) -> None:
        for name, weight in (("scales", self.scales), ("bias", self.bias)):
            if weight is not None and weight.type.dims != rows:
                raise IRTypeError(f"the {name} {weight.type} do not fit the {rows[0]} outputs")
