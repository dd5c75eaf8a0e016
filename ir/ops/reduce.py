"""Ops that combine elements along an axis, and the plain matrix product.

What combines elements by weights of the model lives in `model.py`.
"""

from elidir.ir.errors import IRTypeError, nearest
from elidir.ir.op import Op, Value, op
from elidir.ir.types import DType, Tensor, Type, axis_of, broadcast, promote

REDUCE = frozenset("all any argmax max mean min prod sum".split())


@op("reduce")
class Reduce(Op):
    """out = fn of x over `axes`; `keep` leaves them in place with size 1."""

    x: Value
    fn: str
    axes: tuple[int, ...]
    keep: bool = False

    def infer(self) -> Type:
        if self.fn not in REDUCE:
            raise IRTypeError(f"unknown reduction '{self.fn}'{nearest(self.fn, REDUCE)}")
        x = self.x.tensor
        axes = {axis_of(a, len(x.dims)) for a in self.axes}
        if self.keep:
            dims = tuple(1 if i in axes else d for i, d in enumerate(x.dims))
        else:
            dims = tuple(d for i, d in enumerate(x.dims) if i not in axes)
        return Tensor(dims, self._dtype(x.dtype))

    def _dtype(self, dtype: DType) -> DType:
        if self.fn in ("all", "any"):
            return DType.BOOL
        if self.fn == "argmax" or (self.fn in ("sum", "prod") and not dtype.is_float):
            return DType.I64
        return dtype


@op("cumsum")
class Cumsum(Op):
    """out[i] = sum of x[..i] along one axis; integers and bools give i64."""

    x: Value
    axis: int

    def infer(self) -> Type:
        x = self.x.tensor
        axis_of(self.axis, len(x.dims))
        return x if x.dtype.is_float else Tensor(x.dims, DType.I64)


@op("softmax")
class Softmax(Op):
    """out = exp(x - max) / sum(exp(x - max)) along one axis."""

    x: Value
    axis: int

    def infer(self) -> Type:
        axis_of(self.axis, len(self.x.tensor.dims))
        return self.x.tensor


@op("matmul")
class MatMul(Op):
    """out = a @ b over the last two axes, the others broadcast; both have at least two."""

    a: Value
    b: Value

    def infer(self) -> Type:
        a, b = self.a.tensor, self.b.tensor
        if len(a.dims) < 2 or len(b.dims) < 2 or a.dims[-1] != b.dims[-2]:
            raise IRTypeError(f"{a} @ {b} does not fit")
        batch = broadcast(a.dims[:-2], b.dims[:-2])
        return Tensor((*batch, a.dims[-2], b.dims[-1]), promote(a.dtype, b.dtype))


@op("topk")
class TopK(Op):
    """values, indices = the `k` largest along the last axis, largest first."""

    x: Value
    k: int

    def infer(self) -> tuple[Type, ...]:
        x = self.x.tensor
        size = x.dims[axis_of(-1, len(x.dims))]
        if self.k < 1 or (isinstance(size, int) and self.k > size):
            raise IRTypeError(f"cannot take the {self.k} largest of {x}")
        dims = (*x.dims[:-1], self.k)
        return (Tensor(dims, x.dtype), Tensor(dims, DType.I64))
