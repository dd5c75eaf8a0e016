"""fold-constants: what is known before the program runs is computed before it runs.

Weights fold into derived entries of the weight table, which a backend evaluates when it loads them;
what the table has no expression for stays an op. Numbers fold in `rules_numbers.py`.
"""

import math
from dataclasses import dataclass, field

from elidir.ir import (
    Add,
    Builder,
    Concat,
    Const,
    Linear,
    MatMul,
    Module,
    Mul,
    Op,
    Permute,
    Tensor,
    Value,
    Weight,
)
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.exact.common import joined
from elidir.passes.exact.rules_numbers import fold_full, fold_iota
from elidir.passes.registry import register


@register
@dataclass(frozen=True)
class FoldConstants(Pass):
    """Fold ops over numbers, `full`, `iota` and weights; a product with a weight is a `linear`.

    Before::

        %w = const @w : f32[8, 16]
        %y = matmul %x, %w : f32[B, T, 16]

    After (`@w.T: f32[16, 8] = transpose(@w)` is in the table)::

        %y = linear %x, @w.T : f32[B, T, 16]
    """

    name = "fold-constants"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        """Fold until nothing folds."""
        return cx.result(cx.rewrite_all(module, _Folder().rule))


@dataclass
class _Folder:
    """The rule, and which weight of a region is the transpose of which."""

    transposes: dict[tuple[Builder, Weight], Weight] = field(default_factory=dict)

    def rule(self, op: Op, b: Builder) -> tuple[Value, ...] | None:
        new = self._folded(op, b)
        if new is None or new.result.type != op.result.type:
            return None
        return (b.emit(new),)

    def _folded(self, op: Op, b: Builder) -> Op | None:
        if isinstance(op, MatMul):
            return self._linear(op, b)
        if isinstance(op, Concat):
            return _concat(op, b)
        if isinstance(op, Permute) and isinstance(const := b.op_of(op.x), Const):
            turned = op.order == (1, 0)
            return Const(self._transpose(const.weight, b)) if turned else None
        return fold_full(op, b) or fold_iota(op, b) or _sum_or_product(op, b)

    def _linear(self, op: MatMul, b: Builder) -> Op | None:
        const = b.op_of(op.b)
        if not isinstance(const, Const) or len(const.weight.type.dims) != 2:
            return None
        if op.a.tensor.dtype is not const.weight.type.dtype:
            return None
        return Linear(op.a, self._transpose(const.weight, b))

    def _transpose(self, weight: Weight, b: Builder) -> Weight:
        if (b, weight) in self.transposes:
            return self.transposes[b, weight]
        turned = Tensor(weight.type.dims[::-1], weight.type.dtype)
        new = b.derive(f"{weight.name}.T", turned, "transpose", weight)
        self.transposes |= {(b, weight): new, (b, new): weight}
        return new


_DERIVED: dict[type[Op], tuple[str, str]] = {Add: ("add", "+"), Mul: ("mul", "*")}


def _sum_or_product(op: Op, b: Builder) -> Op | None:
    """Fold a sum or product of two weights of one type, or of a weight and a number."""
    if not isinstance(op, Add | Mul) or not isinstance(a := b.op_of(op.a), Const):
        return None
    fn, sign = _DERIVED[type(op)]
    other = _weight_or_number(op.b, a.weight, b)
    if other is None or a.weight.type != op.result.type:
        return None
    second = other.name if isinstance(other, Weight) else repr(other)
    name = f"{a.weight.name}{sign}{second}"
    return Const(b.derive(name, a.weight.type, fn, a.weight, other))


def _weight_or_number(item: object, like: Weight, b: Builder) -> Weight | float | None:
    const = b.op_of(item)
    if isinstance(const, Const):
        return const.weight if const.weight.type == like.type else None
    if not isinstance(item, int | float) or not math.isfinite(item):
        return None
    return float(item) if like.type.dtype.is_float else None


def _concat(op: Concat, b: Builder) -> Op | None:
    parts = [b.op_of(p) for p in op.parts]
    weights = [p.weight for p in parts if isinstance(p, Const)]
    if len(weights) < len(parts):
        return None
    axis = op.axis % len(weights[0].type.dims)
    name = f"{joined([w.name for w in weights])}.axis{axis}"
    return Const(b.derive(name, op.result.tensor, "concat", *weights, axis=axis))
