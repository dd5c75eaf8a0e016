"""canonicalize: one way of writing things, so that other passes match one form.

The rules are in `rules_shape.py` and `rules_arithmetic.py`: functions of an op and the builder that
return the value to use instead, or None. None may change a type; that is checked once, here.
"""

from dataclasses import dataclass

from elidir.ir import Builder, Module, Op, Value
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.exact.rules_arithmetic import ARITHMETIC_RULES
from elidir.passes.exact.rules_shape import SHAPE_RULES
from elidir.passes.registry import register

_RULES = SHAPE_RULES | ARITHMETIC_RULES


@register
@dataclass(frozen=True)
class Canonicalize(Pass):
    """Drop ops that do nothing, join pairs that make one, put numbers second.

    Before::

        %a = reshape %x {shape=(B, T, 4, 8)} : f32[B, T, 4, 8]
        %b = reshape %a {shape=(B, T, 32)} : f32[B, T, 32]
        %c = mul 0.5, %b : f32[B, T, 32]
        %d = add %c, 0 : f32[B, T, 32]

    After (`%d` is `%c`)::

        %c = mul %x, 0.5 : f32[B, T, 32]
    """

    name = "canonicalize"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        """Apply the rules until none fires."""
        return cx.result(cx.rewrite_all(module, _rule))


def _rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
    for simplify in _RULES.get(type(op), ()):
        value = simplify(op, b)
        if value is not None and value.type == op.result.type:
            return (value,)
    return None
