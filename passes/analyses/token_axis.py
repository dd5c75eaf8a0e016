"""Which dimension of each value runs over tokens, and which ops mix tokens.

The axis starts at the token ids and is followed through the program, a rule for each op kind. An
op works token by token if each of its outputs at a token needs its inputs at that token alone; any
other op that meets the axis is a mixer. A program is causal if every mixer is attention under a
causal mask over its own tokens.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from elidir.ir import (
    OPS,
    Attention,
    Concat,
    Dim,
    Expand,
    HeadsMerge,
    HeadsSplit,
    Iota,
    KvAppend,
    Layer,
    MaskAnd,
    MaskCausal,
    MatMul,
    Module,
    Op,
    Opaque,
    Permute,
    Reduce,
    Region,
    Reshape,
    Slice,
    Take,
    Value,
    free_symbols,
    product,
)

TOKENWISE_ATEN = frozenset(
    f"aten.{n}.default"
    for n in "acos asin atan cosh erfc expm1 hardsigmoid hardswish hardtanh isinf isnan log2 log10 "
    "logit nan_to_num relu6 rsqrt selu sinh softsign tan threshold trunc".split()
)

ROWWISE_ATEN = frozenset(
    f"aten.{n}"
    for n in "gather.default scatter.value scatter.src scatter_add.default max.dim min.dim "
    "sort.default log_softmax.int argsort.default cummax.default".split()
)


@dataclass(frozen=True, eq=False)
class Mixer:
    """An op that mixes tokens; `causal`: no token sees a later one, else `reason` says why."""

    op: Op
    causal: bool
    reason: str = ""


@dataclass
class TokenAxis:
    """The token axis of each value of one region and its layers, and the mixers, in order."""

    axis: dict[Value, int] = field(default_factory=dict)
    mixers: list[Mixer] = field(default_factory=list)

    @classmethod
    def of(cls, module: Module) -> "TokenAxis":
        """Analyse `@forward`."""
        region = module["forward"].region
        return token_axes(region, default_axes(region))

    @property
    def blockers(self) -> list[Mixer]:
        """The mixers that are not causal."""
        return [m for m in self.mixers if not m.causal]


def default_axes(region: Region) -> dict[Value, int]:
    """Return axis 1 for each parameter of the shape [B, T] of the token ids."""
    ids = region.params[0].type.dims
    return {p: 1 for p in region.params if len(ids) >= 2 and p.type.dims[:2] == ids[:2]}


def token_axes(region: Region, start: Mapping[Value, int]) -> TokenAxis:
    """Follow the token axis of some parameters through a region and the layers it calls."""
    found = TokenAxis(dict(start))
    _walk(region, found, _causal_masks(region, set()))
    return found


def _walk(region: Region, found: TokenAxis, causal: set[Value]) -> None:
    for op in region.ops:
        if isinstance(op, Layer):
            _enter(op, found, causal)
        elif not any(v in found.axis for v in op.operands()):
            _count_slots(op, found)
        else:
            _step(op, found, causal)


def _enter(op: Layer, found: TokenAxis, causal: set[Value]) -> None:
    """Analyse a layer's body for this layer; bodies are shared, so their values are overwritten."""
    pairs = list(zip(op.body.region.params, op.inputs, strict=True))
    found.axis.update({p: found.axis[v] for p, v in pairs if v in found.axis})
    inner = _causal_masks(op.body.region, {p for p, v in pairs if v in causal})
    _walk(op.body.region, found, inner)
    results = zip(op.results, op.body.region.results, strict=True)
    found.axis.update({r: found.axis[v] for r, v in results if v in found.axis})


def _count_slots(op: Op, found: TokenAxis) -> None:
    """A count over the token axis is a position only while nothing was dropped or cached."""
    tokens = free_symbols(next(iter(found.axis)).type.dims[1]) if found.axis else set()
    bounds: tuple[Dim, ...] = (op.length,) if isinstance(op, Iota) else ()
    bounds = (op.start, op.stop) if isinstance(op, Slice) else bounds
    sized = isinstance(op, Opaque) and '"dim"' in op.args
    if sized or any(free_symbols(b) & tokens for b in bounds):
        found.mixers.append(Mixer(op, False, "it counts slots instead of reading positions"))


def _step(op: Op, found: TokenAxis, causal: set[Value]) -> None:
    if isinstance(op, Attention):
        found.mixers.append(_attention(op, found, causal))
        found.axis[op.result] = 1
        return
    if op.kind.startswith(("mask.", "bias.")):
        return
    axes = RULES.get(op.kind, _elementwise)(op, found.axis)
    if axes is None:
        found.mixers.append(Mixer(op, False, "it mixes tokens"))
        return
    found.axis.update(dict.fromkeys(op.results, axes))


def _attention(op: Attention, found: TokenAxis, causal: set[Value]) -> Mixer:
    if op.k not in found.axis or found.axis[op.k] != 2 or found.axis.get(op.q) != 2:
        return Mixer(op, False, "its keys are not the tokens of its own stream")
    if op.k.type.dims[2] != op.q.type.dims[2]:
        return Mixer(op, False, "its keys are those of another stream")
    if op.mask not in causal:
        return Mixer(op, False, "its mask is not causal")
    return Mixer(op, True)


def _causal_masks(region: Region, known: set[Value]) -> set[Value]:
    """Return the masks of a region that let no query see a later key."""
    causal = set(known)
    for op in region.ops:
        if isinstance(op, MaskCausal) and op.queries is op.keys:
            causal.add(op.result)
        if isinstance(op, MaskAnd) and (op.a in causal or op.b in causal):
            causal.add(op.result)
    return causal


# ---- rules: the axis of the results, or None if the op mixes tokens

Axes = Mapping[Value, int]
Rule = Callable[[Any, Axes], int | None]


def _elementwise(op: Op, axes: Axes) -> int | None:
    """Operands are broadcast from the right, so axes are compared counted from the end."""
    rank = len(op.results[0].type.dims)
    ends = {axes[v] - len(v.type.dims) for v in op.operands() if v in axes}
    if len(ends) > 1:
        return None
    return rank + ends.pop()


def _same(op: Op, axes: Axes) -> int | None:
    return axes[next(v for v in op.operands() if v in axes)]


def _rowwise(op: Any, axes: Axes) -> int | None:
    """Works along the last axis, which must not be the tokens'."""
    axis = axes.get(op.x)
    return None if axis is None or axis == len(op.x.type.dims) - 1 else axis


def _reshape(op: Reshape, axes: Axes) -> int | None:
    """The axis keeps its place in the order of elements; batch and tokens may merge to axis 0."""
    axis, before = axes[op.x], op.x.type.dims
    lead = product(before[:axis])
    for i, dim in enumerate(op.shape):
        if dim == before[axis] and product(op.shape[:i]) == lead:
            return i
    if axis == 1 and op.shape and op.shape[0] == product(before[:2]):
        return 0
    if axis == 0 and len(op.shape) > 1 and product(op.shape[:2]) == before[0]:
        return 1
    return None


def _permute(op: Permute, axes: Axes) -> int | None:
    return op.order.index(axes[op.x])


def _along(op: Any, axes: Axes) -> int | None:
    """Selects or joins along `op.axis`, which must not be the tokens'."""
    first = next(v for v in op.operands() if v in axes)
    axis = op.axis % len(first.type.dims)
    found = {axes.get(v) for v in op.operands()}
    if isinstance(op, Concat):
        return axes[first] if len(found) == 1 and axes[first] != axis else None
    return None if axes[first] == axis else axes[first]


def _slice(op: Slice, axes: Axes) -> int | None:
    whole: tuple[Dim, Dim] = (0, op.x.type.dims[op.axis])
    return axes[op.x] if (op.start, op.stop) == whole else _along(op, axes)


def _reduce(op: Reduce, axes: Axes) -> int | None:
    axis, rank = axes[op.x], len(op.x.type.dims)
    dropped = {a % rank for a in op.axes}
    if axis in dropped:
        return None
    return axis if op.keep else axis - sum(a < axis for a in dropped)


def _take(op: Take, axes: Axes) -> int | None:
    """A lookup by token keeps its index's token axis; one along another axis keeps its input's."""
    cut = op.axis % len(op.x.type.dims)
    if op.x not in axes:
        return cut + axes[op.index]
    if op.index in axes or axes[op.x] == cut:
        return None
    axis = axes[op.x]
    return axis if axis < cut else axis + len(op.index.type.dims) - 1


def _matmul(op: MatMul, axes: Axes) -> int | None:
    rank = len(op.result.type.dims)
    if op.b in axes:
        return None
    end = axes[op.a] - len(op.a.type.dims)
    return None if end == -1 else rank + end


def _experts(op: Any, axes: Axes) -> int | None:
    return axes.get(op.x)


def _rope_table(op: Any, axes: Axes) -> int | None:
    return axes[op.pos]


def _opaque(op: Opaque, axes: Axes) -> int | None:
    known = {axes.get(v) for v in op.inputs}
    rank = len(op.inputs[0].type.dims) if op.inputs else 0
    if len(known) != 1 or any(len(t.dims) != rank for t in op.out):
        return None
    axis = known.pop()
    if op.target in TOKENWISE_ATEN:
        return axis
    return axis if op.target in ROWWISE_ATEN and _last_axis(op, rank) and axis != rank - 1 else None


def _last_axis(op: Opaque, rank: int) -> bool:
    """Whether an ATen op that takes `dim` after its input is told to work along the last axis."""
    positional, named = json.loads(op.args)
    dim = positional[1] if len(positional) > 1 else named.get("dim")
    return dim in (-1, rank - 1)


def _never(op: Op, axes: Axes) -> int | None:
    return None


RULES: dict[str, Rule] = {
    "reshape": _reshape,
    "permute": _permute,
    "slice": _slice,
    "pad": _along,
    "concat": _along,
    "take": _take,
    "reduce": _reduce,
    "cumsum": _along,
    "softmax": _along,
    "topk": _rowwise,
    "matmul": _matmul,
    "linear": _rowwise,
    "linear.split": _rowwise,
    "linear.int8": _rowwise,
    "quantize": _rowwise,
    "quantize.norm": _rowwise,
    "quantize.add_norm": _same,
    "quantize.gated": _same,
    "norm.rms": _rowwise,
    "norm.layer": _rowwise,
    "ffn.gated": _rowwise,
    "ffn.experts": _experts,
    "embed": _same,
    "add_norm": _same,
    HeadsSplit.kind: lambda op, axes: 2,
    HeadsMerge.kind: lambda op, axes: 1 if axes[op.x] == 2 else None,
    Expand.kind: _elementwise,
    "rope.table": _rope_table,
    "rope": _same,
    "conv": _never,
    "opaque": _opaque,
    "tokens.take": _never,
    "kv.read": _never,
    KvAppend.kind: _never,
}

assert set(RULES) <= set(OPS), "a rule names no op"
