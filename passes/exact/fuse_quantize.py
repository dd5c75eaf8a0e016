"""fuse-quantize: what goes onto a grid is made there, without a copy of it in floats.

A norm, a sum and its norm, or a gate before `quantize` become one op with it. Backends that have no
kernel for one take it apart again.
"""

from dataclasses import dataclass

from elidir.ir import (
    AddNorm,
    Builder,
    Module,
    Mul,
    Op,
    Quantize,
    QuantizeAddNorm,
    QuantizeGated,
    QuantizeNorm,
    RmsNorm,
    Unary,
    Value,
)
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.exact.dce import sweep
from elidir.passes.registry import register


@register
@dataclass(frozen=True)
class FuseQuantize(Pass):
    """Fuse `quantize` with the norm or the gate before it, where nothing else reads that.

    Before::

        %n = norm.rms %x, weight=@norm : f32[B, T, 32]
        %q, %o = quantize %n, @scale, columns=@columns : u8[B, T, 32], f32[B, T, 2]

    After::

        %q, %o = quantize.norm %x, @norm, @scale, columns=@columns : u8[B, T, 32], f32[B, T, 2]
    """

    name = "fuse-quantize"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        """Match at each grid."""
        return cx.result(fuse_quantize(module, cx))


def fuse_quantize(module: Module, cx: Context) -> Module:
    """Fuse the grids of a module, for passes that make some."""

    def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
        if not isinstance(op, Quantize) or b.uses(op.x) > 1:
            return None
        before = b.op_of(op.x)
        if isinstance(before, RmsNorm) and before.weight is not None:
            rest = (op.scale, op.columns, before.eps)
            return b.append(QuantizeNorm(before.x, before.weight, *rest))
        if isinstance(before, AddNorm):
            return _sum_and_norm(op, before, b)
        return _gate(op, before, b) if isinstance(before, Mul) else None

    new = cx.rewrite(module, rule)
    return new if new is module else sweep(new)


def _sum_and_norm(op: Quantize, before: AddNorm, b: Builder) -> tuple[Value, ...] | None:
    total = before.results[0]
    if any(total in o.operands() for o in b.ops):  # read before the place of the fused op
        return None
    rest = (op.scale, op.columns, before.eps)
    new, *grids = b.append(QuantizeAddNorm(before.a, before.b, before.weight, *rest))
    new.name = total.name
    old = [r for o in b.old.ops for r in o.results if b.mapped(r) is total]
    b.replace(old, (new,) * len(old))
    return tuple(grids)


def _gate(op: Quantize, before: Mul, b: Builder) -> tuple[Value, ...] | None:
    for gate, up in ((before.a, before.b), (before.b, before.a)):
        act = b.op_of(gate)
        alone = isinstance(gate, Value) and b.uses(gate) == 1
        if isinstance(act, Unary) and alone and isinstance(up, Value) and act.x.type == up.type:
            return b.append(QuantizeGated(act.x, up, op.scale, op.columns, act.fn))
    return None
