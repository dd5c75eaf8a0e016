"""fuse-add-norm: a residual add and the norm that follows it become one op.

The sum lives on (it is the residual stream), so the op has two results; what it saves is one trip
of the sum to memory and back.
"""

from dataclasses import dataclass

from elidir.ir import Add, AddNorm, Builder, Module, Op, RmsNorm, Value
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.exact.dce import sweep
from elidir.passes.registry import register


@register
@dataclass(frozen=True)
class FuseAddNorm(Pass):
    """Fuse an add of two equal types and the root-mean-square norm of the sum.

    Before::

        %r = add %h, %o : f32[B, T, 32]
        %n = norm.rms %r, weight=@norm : f32[B, T, 32]

    After::

        %r, %n = add_norm %h, %o, @norm : f32[B, T, 32], f32[B, T, 32]
    """

    name = "fuse-add-norm"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        """Match at the norm; whatever reads the sum after it reads the fused op's."""

        def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
            add = b.op_of(op.x) if isinstance(op, RmsNorm) else None
            if not isinstance(op, RmsNorm) or not isinstance(add, Add):
                return None
            if reason := _obstacle(add, op, b):
                cx.missed(op, reason)
                return None
            return _fuse(add, op, b)

        new = cx.rewrite(module, rule)
        return cx.result(new if new is module else sweep(new))


def _obstacle(add: Add, norm: RmsNorm, b: Builder) -> str:
    if norm.weight is None:
        return "the norm has no weight"
    if not isinstance(add.a, Value) or not isinstance(add.b, Value) or add.a.type != add.b.type:
        return "the two sides of the add differ in type"
    if any(add.result in o.operands() for o in b.ops):
        return "the sum is read before the norm"
    return ""


def _fuse(add: Add, norm: RmsNorm, b: Builder) -> tuple[Value, ...] | None:
    if not isinstance(add.a, Value) or not isinstance(add.b, Value) or norm.weight is None:
        return None
    total, normed = b.append(AddNorm(add.a, add.b, norm.weight, norm.eps))
    total.name = add.result.name
    old = [r for o in b.old.ops for r in o.results if b.mapped(r) is add.result]
    b.replace(old, (total,) * len(old))
    return (normed,)
