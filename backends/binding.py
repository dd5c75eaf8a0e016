"""Inputs at a call: they are checked against the parameters, and name the symbolic sizes.

A symbol takes its value from the first input dimension that is linear in it and has no other
unknown (`S + N` with N known); every other dimension is checked. KV states are asked only for
what no tensor says. Everything that can be decided at lowering is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from elidir.backends.dtypes import ir_dtype, torch_dtype
from elidir.backends.protocol import ExecutionError
from elidir.ir import KV, Dim, Mask, Symbol, Tensor, Value, as_dim, format_dim, free_symbols
from elidir.ir import symbol as make_symbol

Sizes = dict[str, int]


def compile_dim(dim: Dim) -> Callable[[Sizes], int]:
    """Return a fast function from the sizes of symbols to that of a dimension."""
    if isinstance(dim, int):
        return lambda sizes: dim
    names = sorted(free_symbols(dim))
    # Our own text of a dimension is a Python expression once its symbols have plain names.
    plain = {make_symbol(n): make_symbol(f"d{i}") for i, n in enumerate(names)}
    text = f"lambda {', '.join(s.name for s in plain.values())}: {format_dim(dim.xreplace(plain))}"
    function = eval(text, {"ceildiv": _ceildiv, "min": min, "max": max})
    return lambda sizes: int(function(*[sizes[n] for n in names]))


def _ceildiv(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class _Place:
    """One dimension of one input."""

    index: int
    axis: int
    dim: Dim


class Binder:
    """Checks the inputs of one program and finds the sizes of its symbols."""

    def __init__(self, params: Sequence[Value], symbols: Mapping[str, Symbol]) -> None:
        self.params = tuple(params)
        self.bounds = dict(symbols)
        self.steps: list[Callable[[list[tuple[int, ...] | None], Sizes], None]] = []
        self.known: set[str] = set()
        tensors = [p for p in self._places() if isinstance(params[p.index].type, Tensor)]
        others = [p for p in self._places() if isinstance(params[p.index].type, KV)]
        self._asks = {p.index for p in self._plan(others, self._plan(tensors, []))}

    def _places(self) -> list[_Place]:
        typed = [(i, p.type) for i, p in enumerate(self.params) if not isinstance(p.type, Mask)]
        return [_Place(i, a, d) for i, t in typed for a, d in enumerate(t.dims)]

    def _plan(self, places: list[_Place], used: list[_Place]) -> list[_Place]:
        """Add steps that bind from `places`; returns the KV places that were needed."""
        waiting = list(places)
        bound: list[_Place] = []
        while ready := next((p for p in waiting if self._binds(p)), None):
            waiting.remove(ready)
            self._add_binding(ready)
            bound.append(ready)
        tensors = [p for p in waiting if isinstance(self.params[p.index].type, Tensor)]
        for place in tensors:
            if free_symbols(place.dim) <= self.known:
                self.steps.append(self._check(place))
        return [p for p in bound if isinstance(self.params[p.index].type, KV)] + used

    def _binds(self, place: _Place) -> bool:
        unknown = free_symbols(place.dim) - self.known
        return len(unknown) == 1 and _slope(place.dim, min(unknown)) != 0

    def _add_binding(self, place: _Place) -> None:
        (name,) = free_symbols(place.dim) - self.known
        slope = _slope(place.dim, name)
        rest = as_dim(sympy.sympify(place.dim) - slope * make_symbol(name))
        self.known.add(name)
        offset, index, axis = compile_dim(rest), place.index, place.axis

        def bind(shapes: list[tuple[int, ...] | None], sizes: Sizes) -> None:
            shape = shapes[index] or ()
            value, left = divmod(shape[axis] - offset(sizes), slope)
            if left or value < 0:
                raise ExecutionError(self._message(place, shape, "no size fits"))
            sizes[name] = value
            self._check_bounds(name, value)

        self.steps.append(bind)

    def _check(self, place: _Place) -> Callable[[list[tuple[int, ...] | None], Sizes], None]:
        wanted, index, axis = compile_dim(place.dim), place.index, place.axis

        def check(shapes: list[tuple[int, ...] | None], sizes: Sizes) -> None:
            shape = shapes[index] or ()
            if shape[axis] != (size := wanted(sizes)):
                raise ExecutionError(self._message(place, shape, f"expected {size}"))

        return check

    def _message(self, place: _Place, shape: tuple[int, ...], what: str) -> str:
        param = self.params[place.index]
        return (
            f"input %{param.name} must be {param.type}, but its shape is {list(shape)}: {what} for "
            f"{format_dim(place.dim)} (axis {place.axis}); give inputs whose sizes agree"
        )

    def _check_bounds(self, name: str, value: int) -> None:
        bounds = self.bounds.get(name)
        if bounds is None or (bounds.lo <= value and (bounds.hi is None or value <= bounds.hi)):
            return
        hi = "any" if bounds.hi is None else bounds.hi
        raise ExecutionError(
            f"{name} is {value}, but this program takes {bounds.lo} to {hi}; change the inputs, or "
            "compile for other bounds"
        )

    def bind(self, inputs: Sequence[Any]) -> Sizes:
        """Return the sizes of all symbols; raises `ExecutionError` for inputs that do not fit."""
        if len(inputs) != len(self.params):
            names = ", ".join(f"%{p.name}" for p in self.params)
            raise ExecutionError(f"expected {len(self.params)} inputs ({names}), got {len(inputs)}")
        pairs = enumerate(zip(self.params, inputs, strict=True))
        shapes = [self._shape(i, param, item) for i, (param, item) in pairs]
        sizes: Sizes = {}
        for step in self.steps:
            step(shapes, sizes)
        return sizes

    def _shape(self, index: int, param: Value, item: Any) -> tuple[int, ...] | None:
        if isinstance(param.type, Tensor):
            return _tensor_shape(param, param.type, item)
        if isinstance(param.type, Mask) and item is not None:
            return _mask_shape(param, item)
        if index not in self._asks:
            return None
        keys, values = item.read()
        return (*keys.shape, values.shape[-1])


def _slope(dim: Dim, name: str) -> int:
    """Return the integer factor of a symbol in which a dimension is linear, else 0."""
    slope = sympy.sympify(dim).diff(make_symbol(name))
    return int(slope) if slope.is_Integer else 0


def _tensor_shape(param: Value, wanted: Tensor, item: Any) -> tuple[int, ...]:
    if not isinstance(item, torch.Tensor):
        kind = type(item).__name__
        raise ExecutionError(f"input %{param.name} must be a tensor {wanted}, not {kind}")
    if item.dtype is not (dtype := torch_dtype(wanted.dtype)):
        found = ir_dtype(item.dtype)
        raise ExecutionError(
            f"input %{param.name} must be {wanted}, but its elements are "
            f"{found.value if found else item.dtype}; convert it with .to({dtype})"
        )
    if item.dim() != len(wanted.dims):
        shape = list(item.shape)
        raise ExecutionError(
            f"input %{param.name} must be {wanted}, but its shape is {shape}; reshape it to "
            f"{len(wanted.dims)} dimensions"
        )
    return tuple(item.shape)


def _mask_shape(param: Value, item: Any) -> tuple[int, ...]:
    fits = isinstance(item, torch.Tensor) and item.dtype is torch.bool and item.dim() == 3
    if not fits:
        raise ExecutionError(
            f"input %{param.name} must be None or a bool tensor for {param.type}; True is 'may see'"
        )
    return tuple(item.shape)
