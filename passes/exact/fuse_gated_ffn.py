"""fuse-gated-ffn: a gated feed-forward block becomes one op.

Backends may then keep the hidden activations out of memory; one that does not takes the op apart.
"""

from dataclasses import dataclass

from elidir.ir import Builder, FfnGated, Linear, Module, Mul, Op, Unary, Value
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.exact.dce import sweep
from elidir.passes.registry import register


@register
@dataclass(frozen=True)
class FuseGatedFfn(Pass):
    """Fuse act(gate(x)) * up(x) and the linear after it, where nothing else reads the parts.

    Before::

        %g = linear %x, @gate : f32[B, T, 64]
        %a = unary %g {fn="silu"} : f32[B, T, 64]
        %u = linear %x, @up : f32[B, T, 64]
        %m = mul %a, %u : f32[B, T, 64]
        %y = linear %m, @down : f32[B, T, 32]

    After::

        %y = ffn.gated %x, @gate, @up, @down : f32[B, T, 32]
    """

    name = "fuse-gated-ffn"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        """Match at the last linear of a block."""

        def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
            parts = _match(op, b)
            if parts is None:
                return None
            if reason := _obstacle(parts, b):
                cx.missed(op, reason)
                return None
            return (b.emit(parts.fused()),)

        new = cx.rewrite(module, rule)
        return cx.result(new if new is module else sweep(new))


@dataclass(frozen=True)
class _Parts:
    gate: Linear
    act: Unary
    up: Linear
    product: Mul
    down: Linear

    def fused(self) -> FfnGated:
        return FfnGated(
            self.gate.x, self.gate.weight, self.up.weight, self.down.weight, self.act.fn
        )


def _match(op: Op, b: Builder) -> _Parts | None:
    if not isinstance(op, Linear) or not isinstance(product := b.op_of(op.x), Mul):
        return None
    for a, other in ((product.a, product.b), (product.b, product.a)):
        act, up = b.op_of(a), b.op_of(other)
        gate = b.op_of(act.x) if isinstance(act, Unary) else None
        if not isinstance(act, Unary) or not isinstance(gate, Linear) or not isinstance(up, Linear):
            continue
        if gate.x is up.x:
            return _Parts(gate, act, up, product, op)
    return None


def _obstacle(parts: _Parts, b: Builder) -> str:
    if any(linear.bias is not None for linear in (parts.gate, parts.up, parts.down)):
        return "a gated block with a bias has no fused op"
    if parts.gate.weight.type.dims != parts.up.weight.type.dims:
        return "gate and up differ in shape"
    inner = (parts.gate, parts.act, parts.up, parts.product)
    read = [o.kind for o in inner if b.uses(o.result) > 1]
    return f"the {read[0]} inside the block is read elsewhere too" if read else ""
