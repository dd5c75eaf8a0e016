"""Elementwise ops: they broadcast and promote as torch does, and never mix tokens.

An op belongs here if each element of its result depends on one element of each operand.
"""

from elidir.ir.errors import IRTypeError, nearest
from elidir.ir.op import Op, Operand, Value, op
from elidir.ir.types import DType, Tensor, Type, broadcast, promote

UNARY = frozenset(
    "abs ceil cos elu erf exp floor gelu gelu_tanh leaky_relu log log1p mish neg not quick_gelu "
    "reciprocal relu relu2 round rsqrt sigmoid sign silu sin softplus sqrt tanh".split()
)
_TO_BOOL = frozenset({"not"})
_ROUNDING = frozenset({"abs", "neg", "relu", "relu2", "sign", "floor", "ceil", "round"})
COMPARE = frozenset("and eq ge gt le lt ne or xor".split())


def binary_type(a: Operand, b: Operand) -> Tensor:
    """Return the type of an elementwise op over two tensors, or a tensor and a Python number."""
    if isinstance(a, Value) and isinstance(b, Value):
        x, y = a.tensor, b.tensor
        return Tensor(broadcast(x.dims, y.dims), _promote(x, y))
    value, number = (a, b) if isinstance(a, Value) else (b, a)
    if not isinstance(value, Value):
        raise IRTypeError("one operand must be a value")
    tensor = value.tensor
    raised = _category(_number_dtype(number)) > _category(tensor.dtype)
    return Tensor(tensor.dims, _number_dtype(number) if raised else tensor.dtype)


def _number_dtype(number: Operand) -> DType:
    """Return the dtype that a Python number has where no tensor says otherwise."""
    if isinstance(number, bool):
        return DType.BOOL
    return DType.F32 if isinstance(number, float) else DType.I64


def _category(dtype: DType) -> int:
    return dtype.is_float + (dtype is not DType.BOOL)


def _promote(x: Tensor, y: Tensor) -> DType:
    """A tensor without dimensions yields to one with them, within its category (as in torch)."""
    wide, scalar = (x.dtype, y.dtype) if x.dims else (y.dtype, x.dtype)
    if bool(x.dims) != bool(y.dims) and _category(wide) >= _category(scalar):
        return wide
    return promote(x.dtype, y.dtype)


@op("add")
class Add(Op):
    """out = a + b."""

    a: Operand
    b: Operand

    def infer(self) -> Type:
        return binary_type(self.a, self.b)


@op("sub")
class Sub(Op):
    """out = a - b."""

    a: Operand
    b: Operand

    def infer(self) -> Type:
        return binary_type(self.a, self.b)


@op("mul")
class Mul(Op):
    """out = a * b."""

    a: Operand
    b: Operand

    def infer(self) -> Type:
        return binary_type(self.a, self.b)


@op("div")
class Div(Op):
    """out = a / b, a true division: integers give f32."""

    a: Operand
    b: Operand

    def infer(self) -> Type:
        out = binary_type(self.a, self.b)
        return out if out.dtype.is_float else Tensor(out.dims, DType.F32)


@op("pow")
class Pow(Op):
    """out = a ** b."""

    a: Operand
    b: Operand

    def infer(self) -> Type:
        return binary_type(self.a, self.b)


@op("maximum")
class Maximum(Op):
    """out = max(a, b)."""

    a: Operand
    b: Operand

    def infer(self) -> Type:
        return binary_type(self.a, self.b)


@op("minimum")
class Minimum(Op):
    """out = min(a, b)."""

    a: Operand
    b: Operand

    def infer(self) -> Type:
        return binary_type(self.a, self.b)


@op("compare")
class Compare(Op):
    """out = a fn b, as bool; fn in eq ne lt le gt ge, or and or xor of truth values."""

    a: Operand
    b: Operand
    fn: str

    def infer(self) -> Type:
        if self.fn not in COMPARE:
            raise IRTypeError(f"unknown comparison '{self.fn}'{nearest(self.fn, COMPARE)}")
        return Tensor(binary_type(self.a, self.b).dims, DType.BOOL)


@op("unary")
class Unary(Op):
    """out = fn(x), elementwise. `gelu_tanh` is the tanh approximation, `relu2` is relu squared."""

    x: Value
    fn: str

    def infer(self) -> Type:
        if self.fn not in UNARY:
            raise IRTypeError(f"unknown function '{self.fn}'{nearest(self.fn, UNARY)}")
        x = self.x.tensor
        if self.fn in _TO_BOOL:
            return Tensor(x.dims, DType.BOOL)
        keeps = x.dtype.is_float or self.fn in _ROUNDING
        return x if keeps else Tensor(x.dims, DType.F32)


@op("where")
class Where(Op):
    """out = a where cond else b."""

    cond: Value
    a: Operand
    b: Operand

    def infer(self) -> Type:
        cond = self.cond.tensor
        if cond.dtype is not DType.BOOL:
            raise IRTypeError(f"the condition is {cond}, not bool")
        if not isinstance(self.a, Value) and not isinstance(self.b, Value):
            a, b = _number_dtype(self.a), _number_dtype(self.b)
            return Tensor(cond.dims, a if _category(a) > _category(b) else b)
        out = binary_type(self.a, self.b)
        return Tensor(broadcast(cond.dims, out.dims), out.dtype)


@op("cast")
class Cast(Op):
    """out = x in another dtype."""

    x: Value
    dtype: DType

    def infer(self) -> Type:
        return Tensor(self.x.tensor.dims, self.dtype)
