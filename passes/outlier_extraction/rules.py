"""The rewriting of linear maps to int8, by a plan.

Two rules, each a function of an op and a builder: gated blocks are taken apart so that their last
map can be reached, and a linear map becomes a grid, a product in int8 and a product beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from elidir.ir import (
    Builder,
    Derived,
    DType,
    FfnGated,
    Linear,
    LinearInt8,
    LinearSplit,
    Op,
    Quantize,
    Slice,
    Tensor,
    Value,
    Weight,
    decompose,
    resolve,
)
from elidir.passes.outlier_extraction.plan import MAPS, Choice, Map, Plan

Wanted = Callable[[Op], bool]


def take_apart(wanted: Wanted) -> Callable[[Op, Builder], tuple[Value, ...] | None]:
    """Return the rule that takes apart the gated blocks that are wanted."""

    def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
        if not isinstance(op, FfnGated) or not wanted(op):
            return None
        values = decompose(op, b)
        return None if values is None else tuple(values)

    return rule


@dataclass
class ToInt8:
    """The rule for linear maps, and the grids that it has made, by builder and value."""

    plan: Plan
    grids: dict[tuple[Builder, Value], tuple[Value, ...]] = field(default_factory=dict)

    def __call__(self, op: Op, b: Builder) -> tuple[Value, ...] | None:
        """Rewrite one linear map."""
        if not isinstance(op, MAPS) or (choice := self.plan.of(b.scopes[0], op)) is None:
            return None
        scale = self._define(b, choice, "in_scale", (), DType.F32, lambda c: (c.scale,))
        columns = None
        if choice.room:
            columns = self._define(
                b, choice, "in_columns", (choice.room,), DType.I64, lambda c: c.columns
            )
        key = (b, op.x)
        if key not in self.grids:
            self.grids[key] = b.append(Quantize(op.x, scale, columns))
        grid, *apart = self.grids[key]
        plus = _beside(op, apart[0], columns, b) if columns else None
        whole = b.emit(_product(op, grid, scale, columns, plus, b))
        return _cut(op, whole, b)

    def _define(
        self,
        b: Builder,
        choice: Choice,
        what: str,
        dims: tuple[int, ...],
        dtype: DType,
        numbers: Callable[[Choice], tuple[int | float, ...]],
    ) -> Weight:
        """Return a weight of numbers that each scope chose for itself."""

        def literal(scope: str) -> Derived:
            return Derived("literal", numbers(self.plan.choices[resolve(scope, choice.name)]))

        return b.define(f"{choice.name}.{what}", Tensor(dims, dtype), literal)


def _of(fn: str, name: str, columns: Weight | None) -> Callable[[str], Derived]:
    names = [name] if columns is None else [name, columns.name]
    return lambda scope: Derived(fn, tuple(resolve(scope, n) for n in names))


def _beside(op: Map, apart: Value, columns: Weight, b: Builder) -> Value:
    """Emit the product of the channels that are beside the grid."""
    name, kind = op.weight.name, op.weight.type
    dims = (kind.dims[0], columns.type.dims[0])
    weight = b.define(f"{name}.apart", Tensor(dims, kind.dtype), _of("columns", name, columns))
    return b.emit(Linear(apart, weight))


def _product(
    op: Map, grid: Value, scale: Weight, columns: Weight | None, plus: Value | None, b: Builder
) -> LinearInt8:
    name, dims = op.weight.name, op.weight.type.dims
    weight = b.define(f"{name}.int8", Tensor(dims, DType.I8), _of("quantize", name, columns))
    rows = Tensor(dims[:1], DType.F32)
    scales = b.define(f"{name}.scales", rows, _of("quantize_scale", name, columns))
    return LinearInt8(grid, weight, scales, scale, op.bias, plus, op.x.tensor.dtype)


def _cut(op: Map, whole: Value, b: Builder) -> tuple[Value, ...]:
    if not isinstance(op, LinearSplit):
        return (whole,)
    axis = len(whole.tensor.dims) - 1
    ends = [sum(op.sizes[: i + 1]) for i in range(len(op.sizes))]
    return tuple(
        b.emit(Slice(whole, axis, end - n, end)) for end, n in zip(ends, op.sizes, strict=True)
    )
