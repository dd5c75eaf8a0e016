"""Elementwise ops in plain torch, with torch's own promotion of tensors and Python numbers.

A number on the left, or where torch wants tensors, becomes a tensor without dimensions, which
promotes as a number does.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from elidir.backends.dtypes import torch_dtype
from elidir.backends.protocol import Kernel
from elidir.backends.reference.registry import kernel
from elidir.backends.weights import Weights
from elidir.ir import (
    Add,
    Cast,
    Compare,
    Div,
    DType,
    Maximum,
    Minimum,
    Mul,
    Op,
    Pow,
    Sub,
    Unary,
    Value,
    Where,
)

Binary = Callable[[Any, Any], torch.Tensor]
_TAKES_NUMBERS = (torch.add, torch.sub, torch.mul, torch.true_divide)


def number_tensor(number: float, beside: Value) -> torch.Tensor:
    """Return a number as a tensor without dimensions that promotes beside a value as it would."""
    dtype = beside.tensor.dtype
    if isinstance(number, int) and not dtype.is_float:
        return torch.tensor(number, dtype=torch.int64)
    return torch.tensor(number, dtype=torch.float64 if dtype is DType.F64 else torch.float32)


def binary(op: Op, fn: Binary) -> Kernel:
    """Return the closure of `fn` over the operands `a` and `b`, either of which may be a number.

    torch's arithmetic takes a number on the right as it is, not rounded to the tensor's type.
    """
    a, b = op.a, op.b  # type: ignore[attr-defined]
    wanted = torch_dtype(op.result.tensor.dtype)
    if isinstance(a, Value) and isinstance(b, Value):
        return fn
    if isinstance(a, Value):
        right = b if fn in _TAKES_NUMBERS else number_tensor(b, a)
        return lambda x: fn(x, right).to(wanted)
    left = number_tensor(a, b)
    return lambda x: fn(left, x).to(wanted)


@kernel(Add)
def add(op: Add, weights: Weights) -> Kernel:
    """Add."""
    return binary(op, torch.add)


@kernel(Sub)
def sub(op: Sub, weights: Weights) -> Kernel:
    """Subtract."""
    return binary(op, torch.sub)


@kernel(Mul)
def mul(op: Mul, weights: Weights) -> Kernel:
    """Multiply."""
    return binary(op, torch.mul)


@kernel(Div)
def div(op: Div, weights: Weights) -> Kernel:
    """Divide."""
    return binary(op, torch.true_divide)


@kernel(Pow)
def power(op: Pow, weights: Weights) -> Kernel:
    """Raise to a power; an exponent that is a number keeps torch's exact squares and roots."""
    if isinstance(op.a, Value) and not isinstance(op.b, Value):
        exponent = op.b
        return lambda x: torch.pow(x, exponent)
    return binary(op, torch.pow)


@kernel(Maximum)
def maximum(op: Maximum, weights: Weights) -> Kernel:
    """Take the larger."""
    return binary(op, torch.maximum)


@kernel(Minimum)
def minimum(op: Minimum, weights: Weights) -> Kernel:
    """Take the smaller."""
    return binary(op, torch.minimum)


COMPARE: dict[str, Binary] = {
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "xor": torch.logical_xor,
}


@kernel(Compare)
def compare(op: Compare, weights: Weights) -> Kernel:
    """Compare, or combine truth values."""
    return binary(op, COMPARE[op.fn])


Function = Callable[[torch.Tensor], torch.Tensor]

UNARY: dict[str, Function] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "elu": F.elu,
    "erf": torch.erf,
    "exp": torch.exp,
    "floor": torch.floor,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": F.leaky_relu,
    "log": torch.log,
    "log1p": torch.log1p,
    "mish": F.mish,
    "neg": torch.neg,
    "not": torch.logical_not,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "reciprocal": torch.reciprocal,
    "relu": torch.relu,
    "relu2": lambda x: torch.square(torch.relu(x)),
    "round": torch.round,
    "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "softplus": F.softplus,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
}


@kernel(Unary)
def unary(op: Unary, weights: Weights) -> Kernel:
    """Apply one function."""
    fn, wanted = UNARY[op.fn], op.result.tensor.dtype
    if op.fn == "not" or op.x.tensor.dtype is wanted:
        return fn
    dtype = torch_dtype(wanted)
    return lambda x: fn(x.to(dtype))


@kernel(Where)
def where(op: Where, weights: Weights) -> Kernel:
    """Choose elementwise."""
    a, b = op.a, op.b
    dtype = torch_dtype(op.result.tensor.dtype)
    if isinstance(a, Value) and isinstance(b, Value):
        return torch.where
    if isinstance(a, Value):
        right = number_tensor(b, a)
        return lambda c, x: torch.where(c, x, right).to(dtype)
    if isinstance(b, Value):
        left = number_tensor(a, b)
        return lambda c, y: torch.where(c, left, y).to(dtype)
    return lambda c: torch.where(c, torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype))


@kernel(Cast)
def cast(op: Cast, weights: Weights) -> Kernel:
    """Convert."""
    dtype = torch_dtype(op.dtype)
    return lambda x: x.to(dtype)
