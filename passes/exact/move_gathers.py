"""move-gathers: where only some tokens are read of a value, only those are computed.

A `tokens.take` moves before the op that made what it takes from, if that op works token by token
and all its readers take, or score some of it. It passes attention too, whose queries are rows on
their own, and stops where tokens are mixed: at keys and values.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from elidir.ir import (
    Add,
    Attention,
    Builder,
    Cast,
    Div,
    FfnGated,
    HeadsMerge,
    HeadsSplit,
    LayerNorm,
    Linear,
    Mask,
    Maximum,
    Minimum,
    Module,
    Mul,
    Op,
    Pow,
    RmsNorm,
    Rope,
    ScoreAttention,
    Sub,
    TokensTake,
    Unary,
    Value,
)
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.exact.dce import sweep
from elidir.passes.registry import register

# The operands of an op that have the tokens of its result along an axis, with their own axes; None
# where the tokens are no rows of it.
Axes: TypeAlias = Callable[[Any, int], "dict[Value, int] | None"]


@register
@dataclass(frozen=True)
class MoveGathers(Pass):
    """Move `tokens.take` before token-wise ops and before the queries of attention.

    Before::

        %y = linear %x, @w : f32[B, N, 8]
        %t = tokens.take %y, %rows : f32[B, R, 8]

    After::

        %x1 = tokens.take %x, %rows : f32[B, R, 8]
        %t = linear %x1, @w : f32[B, R, 8]
    """

    name = "move-gathers"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        """Move them as far as they go."""
        return cx.result(move_gathers(module, cx))


def move_gathers(module: Module, cx: Context) -> Module:
    """Return a module whose takes come as early as they may."""
    while (new := cx.rewrite(module, _move)) is not module:
        module = sweep(new)
    return module


def _move(op: Op, b: Builder) -> tuple[Value, ...] | None:
    if isinstance(op, ScoreAttention) and op.rows is not None and _only_taken(op.q, b):
        return b.append(_of_taken(op, op.rows, b))
    if not isinstance(op, TokensTake) or isinstance(op.x.type, Mask):
        return None
    maker = b.op_of(op.x)
    if maker is None or type(maker) not in AXES:
        return None
    axes = AXES[type(maker)](maker, op.axis)
    if not axes or not _only_taken(op.x, b) or not all(_fits(v, a, op) for v, a in axes.items()):
        return None
    taken = {v: b.emit(TokensTake(v, op.rows, axis)) for v, axis in axes.items()}
    return b.append(maker.clone(lambda v: taken.get(v, v)))


def _only_taken(value: Value, b: Builder) -> bool:
    """Whether all that reads a value takes some of its tokens: what it is made by is then dead."""
    readers = [o for o in b.old.ops if any(b.mapped(v) is value for v in o.operands())]
    taken = all(_takes(o) and _source(o, b) is value for o in readers)
    return taken and not any(b.mapped(r) is value for r in b.old.results)


def _takes(op: Op) -> bool:
    """Whether an op reads only some rows of one operand."""
    return isinstance(op, TokensTake) or (isinstance(op, ScoreAttention) and op.rows is not None)


def _source(op: Any, b: Builder) -> Value | None:
    """Return the operand of which some rows are read, None if another operand is the same."""
    value = op.x if isinstance(op, TokensTake) else op.q
    return None if [*op.operands()].count(value) > 1 else b.mapped(value)


def _of_taken(op: ScoreAttention, rows: Value, b: Builder) -> ScoreAttention:
    """Return the score of queries that are taken first, and what mask and bias say of them."""

    def some(value: Value, axis: int) -> Value:
        single = value.type.dims[axis] == 1
        return value if single else b.emit(TokensTake(value, rows, axis))

    q = some(op.q, 2)
    mask = None if op.mask is None else some(op.mask, 1)
    bias = None if op.bias is None else some(op.bias, 2)
    return replace(op, q=q, mask=mask, bias=bias, rows=None)


def _fits(value: Value, axis: int, op: TokensTake) -> bool:
    """Whether an operand has a row of its own for each row of the batch."""
    batch = op.result.type.dims[0]
    known = isinstance(value.type, Mask) or 0 < axis < len(value.type.dims)
    return known and value.type.dims[0] == batch


# ---- where the tokens of the operands are


def _elementwise(op: Op, axis: int) -> dict[Value, int] | None:
    """Operands are broadcast from the right; one with a single row is left as it is."""
    out = op.results[0].type.dims
    found = {}
    for value in op.operands():
        own = axis - len(out) + len(value.type.dims)
        if own >= 0 and value.type.dims[own] == out[axis]:
            found[value] = own
        elif own >= 0 and value.type.dims[own] != 1:
            return None
    return found


def _rows(op: Any, axis: int) -> dict[Value, int] | None:
    return {op.x: axis} if axis < len(op.x.type.dims) - 1 else None


def _split(op: HeadsSplit, axis: int) -> dict[Value, int] | None:
    return {op.x: 1} if axis == 2 else None


def _merge(op: HeadsMerge, axis: int) -> dict[Value, int] | None:
    return {op.x: 2} if axis == 1 else None


def _rope(op: Rope, axis: int) -> dict[Value, int] | None:
    return {op.x: 2, op.cos: 1, op.sin: 1} if axis == 2 else None


def _queries(op: Attention, axis: int) -> dict[Value, int] | None:
    """Queries are independent; the mask and a bias have a row for each, or one for all."""
    found = {op.q: 2}
    if op.mask is not None and op.mask.type.dims[1] != 1:
        found[op.mask] = 1
    if op.bias is not None and op.bias.type.dims[-2] != 1:
        found[op.bias] = len(op.bias.type.dims) - 2
    return found if axis == 1 else None


AXES: dict[type[Op], Axes] = {
    **dict.fromkeys((Add, Cast, Div, Maximum, Minimum, Mul, Pow, Sub, Unary), _elementwise),
    **dict.fromkeys((FfnGated, LayerNorm, Linear, RmsNorm), _rows),
    Attention: _queries,
    HeadsMerge: _merge,
    HeadsSplit: _split,
    Rope: _rope,
}
