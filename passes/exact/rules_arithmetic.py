"""Rules of canonicalize for elementwise arithmetic: numbers, neutral elements, broadcast operands.

A rule returns the value to use instead of an op's result, or None; the pass refuses a value of
another type, so that `%i + 0.0` over integers stays.
"""

from typing import Any, TypeAlias

from elidir.ir import (
    Add,
    Builder,
    Compare,
    Div,
    DType,
    Expand,
    Full,
    IRTypeError,
    Maximum,
    Minimum,
    Mul,
    Op,
    Operand,
    Pow,
    Sub,
    Unary,
    Value,
)
from elidir.passes.exact.rules_shape import Simplify

Arithmetic: TypeAlias = Add | Sub | Mul | Div | Pow | Maximum | Minimum

_FLIPPED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}
_NEUTRAL: dict[type[Op], float] = {
    Add: 0,
    Sub: 0,
    Mul: 1,
    Div: 1,
    Pow: 1,
    Maximum: float("-inf"),
    Minimum: float("inf"),
}


def _number_second(op: Arithmetic, b: Builder) -> Value | None:
    return None if isinstance(op.a, Value) else b.emit(op.clone(a=op.b, b=op.a))


def _compare_number_second(op: Compare, b: Builder) -> Value | None:
    if isinstance(op.a, Value):
        return None
    return b.emit(op.clone(a=op.b, b=op.a, fn=_FLIPPED.get(op.fn, op.fn)))


def _neutral(op: Arithmetic, b: Builder) -> Value | None:
    """Adding zero, multiplying by one."""
    if not isinstance(op.a, Value) or isinstance(op.b, Value):
        return None
    return op.a if op.b == _NEUTRAL[type(op)] else None


def _plain_operand(op: Arithmetic | Compare, b: Builder) -> Value | None:
    """An operand that is one number everywhere becomes the number, an expanded one its source."""
    for name, operand, other in (("a", op.a, op.b), ("b", op.b, op.a)):
        plain = _plainer(b.op_of(operand), other)
        value = None if plain is None else _with_operand(op, b, name, plain)
        if value is not None:
            return value
    return None


def _plainer(inner: Op | None, other: Operand) -> Operand | None:
    if isinstance(inner, Expand):
        return inner.x
    if not isinstance(inner, Full) or not isinstance(other, Value):
        return None
    if inner.dtype is not other.tensor.dtype or inner.dtype is DType.BOOL:
        return None
    if inner.dtype.is_float:
        return float(inner.value)
    return int(inner.value) if inner.value == inner.value // 1 else None


def _with_operand(op: Op, b: Builder, name: str, operand: Operand) -> Value | None:
    changes: dict[str, Any] = {name: operand}
    try:
        new = op.clone(**changes)
    except IRTypeError:
        return None
    return b.emit(new) if new.result.type == op.result.type else None


def _twice(op: Unary, b: Builder) -> Value | None:
    """Negating twice."""
    inner = b.op_of(op.x)
    if not isinstance(inner, Unary) or op.fn != inner.fn or op.fn not in ("neg", "not"):
        return None
    return inner.x


_COMMUTATIVE: tuple[Simplify, ...] = (_number_second, _neutral, _plain_operand)
_ORDERED: tuple[Simplify, ...] = (_neutral, _plain_operand)
ARITHMETIC_RULES: dict[type[Op], tuple[Simplify, ...]] = {
    Add: _COMMUTATIVE,
    Mul: _COMMUTATIVE,
    Maximum: _COMMUTATIVE,
    Minimum: _COMMUTATIVE,
    Sub: _ORDERED,
    Div: _ORDERED,
    Pow: _ORDERED,
    Compare: (_compare_number_second, _plain_operand),
    Unary: (_twice,),
}
