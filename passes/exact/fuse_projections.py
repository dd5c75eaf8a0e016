"""fuse-projections: linear maps of one input run as one.

One product with the weights on top of each other reads its input once and is one launch. The
stacked weight is a derived entry of the table, so no data moves here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from elidir.ir import Builder, Linear, LinearSplit, Module, Op, Rule, Tensor, Value, Weight
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.exact.common import joined
from elidir.passes.registry import register


@register
@dataclass(frozen=True)
class FuseProjections(Pass):
    """Fuse the linears that share an input, all with a bias or all without.

    Before::

        %q = linear %x, @attn.q : f32[B, T, 64]
        %k = linear %x, @attn.k : f32[B, T, 32]

    After (`@attn.q+k: f32[96, 64] = concat(@attn.q, @attn.k; axis=0)` is in the table)::

        %q, %k = linear.split %x, @attn.q+k {sizes=(64, 32)} : f32[B, T, 64], f32[B, T, 32]
    """

    name = "fuse-projections"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        """Fuse at the first linear of each group."""
        return cx.result(cx.rewrite(module, projections_rule(lambda op: True, cx.missed)))


def projections_rule(
    wanted: Callable[[Op], bool], missed: Callable[[Op, str], None] = lambda op, reason: None
) -> Rule:
    """Return the rule that fuses the linears that are wanted; it tells `missed` of one left out."""

    def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
        if not isinstance(op, Linear) or not wanted(op):
            return None
        linears = [o for o in b.siblings(op, Linear) if isinstance(o, Linear) and wanted(o)]
        group = [o for o in linears if _alike(o, op)]
        if len(linears) > len(group) == 1:
            missed(op, "no other linear of this input is like it in bias and dtype")
        # The first of a group stands for all; the others are gone when the walk comes to them.
        if len(group) < 2 or group[0].weight != op.weight:
            return None
        return _fuse(op.x, group, b)

    return rule


def _alike(a: Linear, b: Linear) -> bool:
    return (a.bias is None) == (b.bias is None) and a.weight.type.dtype is b.weight.type.dtype


def _fuse(x: Value, group: list[Linear], b: Builder) -> tuple[Value, ...] | None:
    sizes = tuple(d for o in group if isinstance(d := o.weight.type.dims[0], int))
    if len({o.weight for o in group}) < len(group) or len(sizes) < len(group):
        return None
    weight = _stacked([o.weight for o in group], b)
    biases = [o.bias for o in group if o.bias is not None]
    bias = _stacked(biases, b) if biases else None
    values = b.append(LinearSplit(x, weight, sizes, bias))
    for linear, value in zip(group[1:], values[1:], strict=True):
        b.replace(linear.results, (value,))
    return values[:1] if len(values) == 1 else _first(group[0], values)


def _first(linear: Linear, values: tuple[Value, ...]) -> tuple[Value, ...]:
    values[0].name = values[0].name or linear.result.name
    return values[:1]


def _stacked(weights: list[Weight], b: Builder) -> Weight:
    first = weights[0].type
    rows = sum(d for w in weights if isinstance(d := w.type.dims[0], int))
    kind = Tensor((rows, *first.dims[1:]), first.dtype)
    return b.derive(joined([w.name for w in weights]), kind, "concat", *weights, axis=0)
