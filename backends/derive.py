"""The expressions of derived weights, evaluated over loaded arguments: a function for each.

Passes write the expressions (`elidir.ir.Derived` says what each means); nothing here knows a store
or a table. A weight that is quantised must be finite: one NaN would spoil its whole row in silence.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias

import torch

from elidir.backends.errors import WeightError
from elidir.ir import Derived, nearest

Argument: TypeAlias = torch.Tensor | float

LEVELS = 127
"""The greatest level of a weight in int8; -128 is not used, so that both signs are alike."""


def derive(expr: Derived, args: list[Argument]) -> torch.Tensor:
    """Evaluate the expression of a derived weight over loaded arguments."""
    if expr.fn == "concat":
        return torch.cat([torch.as_tensor(a) for a in args], dim=expr.axis)
    if expr.fn not in _FUNCTIONS:
        known = ["concat", *_FUNCTIONS]
        raise WeightError(f"no way to derive a weight by '{expr.fn}'{nearest(expr.fn, known)}")
    return torch.as_tensor(_FUNCTIONS[expr.fn](*args))


def _columns(weight: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return weight[:, columns] * (columns >= 0)


def _scale(weight: torch.Tensor, columns: torch.Tensor | None = None) -> torch.Tensor:
    greatest = _without(weight, columns).abs().amax(1) / LEVELS
    return greatest.where(greatest > 0, 1.0)


def _without(weight: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
    if not bool(weight.isfinite().all()):
        raise WeightError("a weight holds NaN or infinity and cannot be quantized; leave it out")
    if columns is None:
        return weight.float()
    return weight.float().index_fill(1, columns[columns >= 0], 0.0)


def _quantize(weight: torch.Tensor, columns: torch.Tensor | None = None) -> torch.Tensor:
    steps = _without(weight, columns) / _scale(weight, columns)[:, None]
    return steps.round_().to(torch.int8)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lambda *args: reduce(lambda a, b: a + b, args),
    "alias": lambda a: a,
    "columns": _columns,
    "literal": lambda *numbers: torch.tensor(numbers),
    "mul": lambda *args: reduce(lambda a, b: a * b, args),
    "quantize": _quantize,
    "quantize_scale": _scale,
    "transpose": lambda a: torch.as_tensor(a).transpose(-1, -2),
}
