"""Ops that move, select or make elements without arithmetic on them.

Dimensions among their attributes may be symbolic, so a program is made once for all sizes.
"""

from elidir.ir.errors import IRTypeError
from elidir.ir.op import Op, Scalar, Value, op
from elidir.ir.symbols import Dim, as_dim, ceildiv, format_dim, product
from elidir.ir.types import DType, Tensor, Type, axis_of, broadcast, replace_dim


def _same(a: Dim, b: Dim) -> bool:
    return bool(a == b) or bool((as_dim(a) - b) == 0)


@op("reshape")
class Reshape(Op):
    """out = the elements of x, in order, as `shape`."""

    x: Value
    shape: tuple[Dim, ...]

    def infer(self) -> Type:
        x = self.x.tensor
        a, b = product(x.dims), product(self.shape)
        if not _same(a, b) and not _same(_expanded(a), _expanded(b)):
            raise IRTypeError(f"cannot reshape {x} of {format_dim(a)} to {format_dim(b)} elements")
        return Tensor(self.shape, x.dtype)


def _expanded(dim: Dim) -> Dim:
    return dim if isinstance(dim, int) else as_dim(dim.expand())


@op("permute")
class Permute(Op):
    """out[i0, i1, ..] = x with its axes in the given order: axis k of out is axis order[k] of x."""

    x: Value
    order: tuple[int, ...]

    def infer(self) -> Type:
        x = self.x.tensor
        if sorted(self.order) != list(range(len(x.dims))):
            raise IRTypeError(f"order {self.order} is no permutation of the axes of {x}")
        return Tensor(tuple(x.dims[i] for i in self.order), x.dtype)


@op("slice")
class Slice(Op):
    """out = x[start:stop:step] along one axis; 0 <= start <= stop <= size, step >= 1."""

    x: Value
    axis: int
    start: Dim
    stop: Dim
    step: int = 1

    def infer(self) -> Type:
        x = self.x.tensor
        size = x.dims[axis_of(self.axis, len(x.dims))]
        if self.step < 1:
            raise IRTypeError(f"the step is {self.step}; it must be at least 1")
        marks = [0, *(m for m in (self.start, self.stop, size) if isinstance(m, int))]
        if marks != sorted(marks):
            span = f"{format_dim(self.start)}:{format_dim(self.stop)}"
            raise IRTypeError(f"slice {span} does not lie in the {format_dim(size)} of {x}")
        length = ceildiv(as_dim(self.stop - self.start), self.step)
        return Tensor(replace_dim(x.dims, self.axis, length), x.dtype)


@op("concat")
class Concat(Op):
    """out = the parts one after another along `axis`."""

    parts: tuple[Value, ...]
    axis: int

    def infer(self) -> Type:
        if not self.parts:
            raise IRTypeError("there are no parts to join")
        first = self.parts[0].tensor
        axis = axis_of(self.axis, len(first.dims))
        total: Dim = 0
        for part in (p.tensor for p in self.parts):
            if len(part.dims) != len(first.dims) or part.dtype != first.dtype:
                raise IRTypeError(f"parts {first} and {part} differ in rank or dtype")
            if replace_dim(part.dims, axis, 0) != replace_dim(first.dims, axis, 0):
                raise IRTypeError(f"parts {first} and {part} differ beside axis {self.axis}")
            total = total + part.dims[axis]
        return Tensor(replace_dim(first.dims, axis, total), first.dtype)


@op("expand")
class Expand(Op):
    """out = x broadcast to `shape`."""

    x: Value
    shape: tuple[Dim, ...]

    def infer(self) -> Type:
        x = self.x.tensor
        if broadcast(x.dims, self.shape) != tuple(self.shape):
            raise IRTypeError(f"{x} does not broadcast to the shape asked for")
        return Tensor(self.shape, x.dtype)


@op("pad")
class Pad(Op):
    """out = x with `before` and `after` elements of `value` along one axis; negative ones crop."""

    x: Value
    axis: int
    before: int
    after: int
    value: Scalar = 0.0

    def infer(self) -> Type:
        x = self.x.tensor
        size = as_dim(x.dims[axis_of(self.axis, len(x.dims))] + self.before + self.after)
        if isinstance(size, int) and size < 0:
            raise IRTypeError(f"{x} has not the {-self.before - self.after} elements to crop")
        return Tensor(replace_dim(x.dims, self.axis, size), x.dtype)


@op("take")
class Take(Op):
    """out = x indexed along one axis by `index`, whose shape takes the place of that axis."""

    x: Value
    index: Value
    axis: int

    def infer(self) -> Type:
        x = self.x.tensor
        axis = axis_of(self.axis, len(x.dims))
        if not self.index.tensor.dtype.is_int:
            raise IRTypeError(f"the index is {self.index.tensor}, not integers")
        return Tensor((*x.dims[:axis], *self.index.tensor.dims, *x.dims[axis + 1 :]), x.dtype)


@op("iota")
class Iota(Op):
    """out[i] = start + i, of `length` elements."""

    length: Dim
    start: int = 0
    dtype: DType = DType.I64

    def infer(self) -> Type:
        return _made((self.length,), self.dtype)


def _made(shape: tuple[Dim, ...], dtype: DType) -> Tensor:
    out = Tensor(shape, dtype)
    if any(isinstance(d, int) and d < 0 for d in shape):
        raise IRTypeError(f"{out} has a negative size")
    return out


@op("full")
class Full(Op):
    """out = `value` everywhere."""

    shape: tuple[Dim, ...]
    value: Scalar
    dtype: DType

    def infer(self) -> Type:
        return _made(self.shape, self.dtype)
