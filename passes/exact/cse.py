"""cse: common subexpressions are computed once.

Two ops are one if kind, operands, weights and attributes are equal; names and locations do not
count. Regions are searched one by one, never across a layer's border.
"""

from dataclasses import dataclass

from elidir.ir import (
    Add,
    Body,
    Builder,
    Field,
    Kind,
    MaskAnd,
    Maximum,
    Minimum,
    Module,
    Mul,
    Op,
    Value,
    fields_of,
    format_attribute,
)
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.exact.common import is_random, mutates
from elidir.passes.registry import register

_COMMUTATIVE = (Add, Mul, Maximum, Minimum, MaskAnd)


@register
@dataclass(frozen=True)
class Cse(Pass):
    """Compute equal ops of a region once: masks, tables and opaque ops too.

    Before::

        %m = mask.causal %pos, %pos : mask[B, T, T]
        %n = mask.causal %pos, %pos : mask[B, T, T]

    After (`%n` is `%m`)::

        %m = mask.causal %pos, %pos : mask[B, T, T]
    """

    name = "cse"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        """Walk each region once; operands are unified before the ops that read them."""
        seen: dict[tuple[object, ...], Op] = {}

        def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
            if mutates(op) or is_random(op):
                return None
            first = seen.setdefault((b, *_key(op)), op)
            return None if first is op else first.results

        return cx.result(cx.rewrite(module, rule))


def _key(op: Op) -> tuple[object, ...]:
    parts = [_part(f, getattr(op, f.name)) for f in fields_of(type(op))]
    if isinstance(op, _COMMUTATIVE):
        parts.sort(key=repr)
    return (op.kind, *parts)


def _part(f: Field, item: object) -> object:
    """Return what an op's field is equal by; numbers count with their type (0, 0.0 and -0.0)."""
    if f.kind is Kind.ATTRIBUTE:
        return format_attribute(f, item)
    if isinstance(item, tuple):
        return tuple(_part(f, i) for i in item)
    if isinstance(item, Value | Body):
        return id(item)
    return repr(item) if isinstance(item, int | float) else item
