"""Rules of fold-constants for numbers: ops over `full` and `iota`.

Only what Python computes as the program would is folded: integers of 64 bits, and floats of at
least 32 by one operation on doubles. A rule returns the op that does instead, or None.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

from elidir.ir import (
    Add,
    Builder,
    Cast,
    Compare,
    Div,
    DType,
    Expand,
    Full,
    Iota,
    Mul,
    Op,
    Permute,
    Reshape,
    Scalar,
    Slice,
    Sub,
    Tensor,
    Unary,
)

Fn: TypeAlias = Callable[[Any, Any], Any]
_ARITHMETIC: dict[type[Op], Fn] = {
    Add: operator.add,
    Sub: operator.sub,
    Mul: operator.mul,
    Div: operator.truediv,
}
_COMPARE: dict[str, Fn] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}
_EXACT = (DType.F64, DType.F32, DType.I64, DType.BOOL)


def fold_full(op: Op, b: Builder) -> Op | None:
    """Fold an op all of whose operands are one number everywhere."""
    out = op.results[0].type
    operands = tuple(op.operands())
    if not isinstance(out, Tensor) or not operands:
        return None
    if not all(isinstance(b.op_of(v), Full) for v in operands):
        return None
    value = _evaluate(op, b, out.dtype)
    return None if value is None else Full(out.dims, value, out.dtype)


def _evaluate(op: Op, b: Builder, dtype: DType) -> Scalar | None:
    if isinstance(op, Reshape | Expand | Permute | Slice):
        return _number(op.x, b)
    if isinstance(op, Cast):
        return _as_dtype(_number(op.x, b), dtype)
    if isinstance(op, Unary):
        return -_number(op.x, b) if op.fn == "neg" and dtype in _EXACT else None
    if isinstance(op, Add | Sub | Mul | Div | Compare) and dtype in _EXACT:
        fn = _COMPARE.get(op.fn) if isinstance(op, Compare) else _ARITHMETIC[type(op)]
        return _as_dtype(_apply(fn, _number(op.a, b), _number(op.b, b)), dtype)
    return None


def _number(item: object, b: Builder) -> Scalar:
    inner = b.op_of(item)
    number: Scalar = inner.value if isinstance(inner, Full) else item  # type: ignore[assignment]
    return number


def _apply(fn: Fn | None, x: Scalar, y: Scalar) -> Scalar:
    """Return fn(x, y), or NaN where there is no answer: dividing by zero is left to the program."""
    try:
        return math.nan if fn is None else fn(x, y)
    except ArithmeticError:
        return math.nan


def _as_dtype(value: Scalar, dtype: DType) -> Scalar | None:
    if not math.isfinite(value) and not (dtype.is_float and math.isinf(value)):
        return None
    if dtype.is_float:
        return float(value)
    return int(bool(value)) if dtype is DType.BOOL else int(value)


def fold_iota(op: Op, b: Builder) -> Op | None:
    """Fold shifts, slices and casts of a row of consecutive integers."""
    iota = b.op_of(getattr(op, "x", getattr(op, "a", None)))
    if not isinstance(iota, Iota) or iota.dtype.is_float:
        return None
    if isinstance(op, Add | Sub) and isinstance(op.b, int):
        shift = op.b if isinstance(op, Add) else -op.b
        return Iota(iota.length, iota.start + shift, iota.dtype)
    if isinstance(op, Slice) and isinstance(op.start, int) and op.step == 1:
        return Iota(op.result.tensor.dims[0], iota.start + op.start, iota.dtype)
    if isinstance(op, Cast) and op.dtype in (DType.I64, DType.I32):
        return Iota(iota.length, iota.start, op.dtype)
    return None
