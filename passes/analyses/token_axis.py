"""Which dimension of each value runs over tokens, and which ops mix tokens.

The axis starts at the token ids and is followed through the program, a rule for each op kind. An
op works token by token if each of its outputs at a token needs its inputs at that token alone; any
other op that meets the axis is a mixer. Where tokens are joined with what lies behind them (the
experts of each), the axis keeps the number of rows that each token has there. A constant with a
row for each token has the axis too: what sums it up counts tokens. A program is causal if every
mixer is attention under a causal mask over its own tokens.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from elidir.ir import (
    OPS,
    AlibiBias,
    Attention,
    Concat,
    Dim,
    HeadsMerge,
    HeadsSplit,
    Iota,
    KvAppend,
    KvEvict,
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
    Tensor,
    Value,
    as_dim,
    free_symbols,
    product,
)

ANY = 0
"""Rows of a token in a value that has the same content for each of them."""

WHOLE = frozenset(("heads.split", "heads.merge", "rope", "rope.table", "ffn.experts", "embed"))
"""Ops that take tokens along an axis of their own."""

TOKENWISE_ATEN = frozenset(
    f"aten.{n}.default"
    for n in "acos asin atan cosh erfc expm1 hardsigmoid hardswish hardtanh isinf isnan log2 log10 "
    "logit nan_to_num relu6 rsqrt selu sinh softsign tan threshold trunc".split()
)

ROWWISE_ATEN = {
    **{
        f"aten.{n}": 1
        for n in "gather.default scatter.value scatter.src scatter_add.default max.dim min.dim "
        "sort.default log_softmax.int argsort.default cummax.default logsumexp.default std.dim "
        "var.dim std.correction var.correction".split()
    },
    "aten.linalg_vector_norm.default": 2,
}
"""Calls that work along the axis that this argument names."""


@dataclass(frozen=True, eq=False)
class Mixer:
    """An op that mixes tokens; `causal`: no token sees a later one, else `reason` says why."""

    op: Op
    causal: bool
    reason: str = ""


@dataclass
class TokenAxis:
    """The token axis of each value of one region and its layers, and the mixers, in order.

    `rows` has how many rows each token has along the axis, one behind the other; `ANY` for what is
    the same in all of them. `length` is the number of tokens, `lost` what comes out of mixers.
    """

    axis: dict[Value, int] = field(default_factory=dict)
    mixers: list[Mixer] = field(default_factory=list)
    rows: dict[Value, Dim] = field(default_factory=dict)
    length: Dim = 1
    lost: set[Value] = field(default_factory=set)

    @classmethod
    def of(cls, module: Module) -> "TokenAxis":
        """Analyse `@forward`."""
        region = module["forward"].region
        return token_axes(region, default_axes(region))

    @property
    def blockers(self) -> list[Mixer]:
        """The mixers that are not causal."""
        return [m for m in self.mixers if not m.causal]

    def set(self, values: Iterable[Value], axis: int, rows: Dim = 1) -> None:
        """Note the axis of some values."""
        for value in values:
            self.axis[value], self.rows[value] = axis, rows

    def copy(self, pairs: Iterable[tuple[Value, Value]]) -> None:
        """Note of the second of each pair what is known of the first, be it nothing."""
        for source, value in pairs:
            self.axis.pop(value, None)
            self.lost.discard(value)
            if source in self.axis:
                self.set([value], self.axis[source], self.rows[source])
            elif source in self.lost:
                self.lost.add(value)

    def block(self, op: Op, reason: str) -> None:
        """Note a mixer that is not causal."""
        self.mixers.append(Mixer(op, False, reason))
        self.lost.update(op.results)


def default_axes(region: Region) -> dict[Value, int]:
    """Return axis 1 for each parameter of the shape [B, T] of the token ids."""
    ids = region.params[0].type.dims
    return {p: 1 for p in region.params if len(ids) >= 2 and p.type.dims[:2] == ids[:2]}


def token_axes(region: Region, start: Mapping[Value, int]) -> TokenAxis:
    """Follow the token axis of some parameters through a region and the layers it calls."""
    found = TokenAxis(length=next((v.type.dims[a] for v, a in start.items()), 1))
    for value, axis in start.items():
        found.set([value], axis)
    _walk(region, found, _causal_masks(region, set()))
    return found


def _walk(region: Region, found: TokenAxis, causal: set[Value]) -> None:
    for op in region.ops:
        if isinstance(op, Layer):
            _enter(op, found, causal)
        elif any(v in found.axis for v in op.operands()):
            _step(op, found, causal)
        elif any(v in found.lost for v in op.operands()):
            found.lost.update(op.results)
        else:
            _constant(op, found)


def _enter(op: Layer, found: TokenAxis, causal: set[Value]) -> None:
    """Analyse a layer's body for this layer; bodies are shared, so their values are overwritten."""
    pairs = list(zip(op.inputs, op.body.region.params, strict=True))
    found.copy(pairs)
    inner = _causal_masks(op.body.region, {p for v, p in pairs if v in causal})
    _walk(op.body.region, found, inner)
    found.copy(zip(op.body.region.results, op.results, strict=True))


def _constant(op: Op, found: TokenAxis) -> None:
    """Follow what depends on no token: alike for each of them, unless it counts them.

    A count over the token axis is a position only while nothing was dropped or cached.
    """
    tokens = free_symbols(found.length)
    bounds: tuple[Dim, ...] = (op.length,) if isinstance(op, Iota) else ()
    bounds = (op.start, op.stop) if isinstance(op, Slice) else bounds
    sized = isinstance(op, Opaque) and '"dim"' in op.args
    if sized or any(free_symbols(b) & tokens for b in bounds):
        found.block(op, "it counts slots instead of reading positions")
        return
    for result in op.results:
        found.axis.pop(result, None)
        axes = [i for i, d in enumerate(result.type.dims) if free_symbols(d) & tokens]
        if isinstance(result.type, Tensor) and len(axes) == 1:
            found.set([result], axes[0], ANY)
        elif isinstance(result.type, Tensor) and axes:
            found.block(op, "it has a number for each pair of tokens")


def _step(op: Op, found: TokenAxis, causal: set[Value]) -> None:
    known = {found.rows[v] for v in op.operands() if v in found.axis} - {ANY}
    rows = next(iter(known), ANY)
    for result in op.results:
        found.axis.pop(result, None)
    if isinstance(op, Attention):
        found.mixers.append(_attention(op, found, causal))
        found.set(op.results, 1)
        return
    if op.kind.startswith(("mask.", "bias.")):
        return
    if isinstance(op, Reshape):
        axes, rows = _reshaped(op, found)
    else:
        axes = RULES.get(op.kind, _never)(op, found.axis)
    fits = len(known) <= 1 and (rows in (ANY, 1) or op.kind not in WHOLE)
    if axes is None or not fits:
        found.block(op, "it mixes tokens")
        return
    found.set(op.results, axes, rows)


def _reshaped(op: Reshape, found: TokenAxis) -> tuple[int | None, Dim]:
    """Return the new axis and the rows of each token along it: elements keep their order.

    From one token to the next it is `step` elements, before and after.
    """
    axis, rows, before = found.axis[op.x], found.rows[op.x], op.x.type.dims
    if rows == ANY:
        tokens = free_symbols(found.length)
        axes = [i for i, d in enumerate(op.shape) if free_symbols(d) & tokens]
        return (axes[0] if len(axes) == 1 else None), ANY
    step = product((rows, *before[axis + 1 :]))
    for i, dim in enumerate(op.shape):
        each = _ratio(step, product(op.shape[i + 1 :]))
        if each is not None and _ratio(dim, product((found.length, each))) is not None:
            return i, each
    return None, rows


def _ratio(a: Dim, b: Dim) -> Dim | None:
    """Return a / b if it is whole for all sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    found = as_dim(a / b)
    whole = isinstance(found, int) or found.as_numer_denom()[1] == 1
    return found if whole else None


def _attention(op: Attention, found: TokenAxis, causal: set[Value]) -> Mixer:
    places = {(found.axis.get(v), found.rows.get(v)) for v in (op.q, op.k, op.v)}
    if places != {(2, 1)}:
        return Mixer(op, False, "its keys are not the tokens of its own stream")
    if op.k.type.dims[2] != op.q.type.dims[2]:
        return Mixer(op, False, "its keys are those of another stream")
    if op.mask not in causal:
        return Mixer(op, False, "its mask is not causal")
    if op.bias is not None and op.bias not in causal:
        return Mixer(op, False, "its bias is not made from positions alone")
    return Mixer(op, True)


def _causal_masks(region: Region, known: set[Value]) -> set[Value]:
    """Return the masks of a region that let no query see a later key, and biases by position."""
    causal = set(known)
    for op in region.ops:
        if isinstance(op, MaskCausal) and op.queries is op.keys:
            causal.add(op.result)
        if isinstance(op, MaskAnd) and (op.a in causal or op.b in causal):
            causal.add(op.result)
        if isinstance(op, AlibiBias):
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
    """The tokens are rows of the left side, or a batch of products on both."""
    ends = [axes[v] - len(v.type.dims) if v in axes else 0 for v in (op.a, op.b)]
    rows = ends[1] == 0 and ends[0] < -1
    return len(op.result.type.dims) + ends[0] if rows or ends[0] == ends[1] < -2 else None


def _experts(op: Any, axes: Axes) -> int | None:
    return axes.get(op.x)


def _rope_table(op: Any, axes: Axes) -> int | None:
    return axes[op.pos]


def _opaque(op: Opaque, axes: Axes) -> int | None:
    """What broadcasts, or works along the last axis; each input has a row for each token."""
    known = {axes.get(v) for v in op.inputs}
    rank = len(op.inputs[0].type.dims) if op.inputs else 0
    if len(known) != 1:
        return None
    axis, ranks = known.pop(), {len(t.dims) for t in op.out}
    if op.target in TOKENWISE_ATEN:
        return axis if ranks == {rank} else None
    along_last = op.target in ROWWISE_ATEN and _last_axis(op, rank) and ranks <= {rank, rank - 1}
    return axis if along_last and axis != rank - 1 else None


def _last_axis(op: Opaque, rank: int) -> bool:
    """Whether an ATen op that takes axes is told to work along the last one alone."""
    positional, named = json.loads(op.args)
    at = ROWWISE_ATEN[op.target]
    dim = positional[at] if len(positional) > at else named.get("dim")
    return dim in (-1, rank - 1, [-1], [rank - 1])


def _never(op: Op, axes: Axes) -> int | None:
    return None


ELEMENTWISE = "add sub mul div pow maximum minimum compare unary where cast expand".split()

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
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
    "rope.table": _rope_table,
    "rope": _same,
    "conv": _never,
    "opaque": _opaque,
    "tokens.take": _never,
    "kv.read": _never,
    KvAppend.kind: _never,
    KvEvict.kind: _never,
}

assert set(RULES) <= set(OPS), "a rule names no op"
