"""The native forms of ops: for each kind, when it has one, and the records that it becomes.

A form gives the same numbers as the op's own kernel within the dtype's tolerance; what is between
is float32 in a bfloat16 program too. An op without a form ends a run.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from elidir.backends.cpu.grids import KINDS, Rounding, outputs, packed, rounding, scales
from elidir.backends.cpu.maker import Maker, Spot, dense, padded, storage_type
from elidir.backends.cpu.native.records import (
    FUNCTIONS,
    RUN_OF_KEYS,
    SEEDS,
    TYPES,
    WIDEST_HEAD,
    Code,
)
from elidir.ir import (
    Add,
    AddNorm,
    Attention,
    Concat,
    Div,
    DType,
    Embed,
    FfnGated,
    HeadsMerge,
    HeadsSplit,
    LayerNorm,
    Linear,
    LinearInt8,
    LinearSplit,
    Mul,
    Op,
    Permute,
    QuantizeGated,
    Reshape,
    RmsNorm,
    Rope,
    RopeLayout,
    RopeTable,
    ScoreAttention,
    Slice,
    Sub,
    Tensor,
    TokensTake,
    Unary,
    Value,
    Weight,
)

Form: TypeAlias = Callable[[Any, Maker], None]
Test: TypeAlias = Callable[[Any], bool]

FORMS: dict[str, tuple[Form, Test]] = {}


def form(kind: type[Op], test: Test = lambda op: True) -> Callable[[Form], Form]:
    """Register the native form of an op kind, for ops that pass `test`."""

    def register(make: Form) -> Form:
        FORMS[kind.kind] = (make, test)
        return make

    return register


# ---- linear maps


def _product(m: Maker, x: Spot, y: Spot, weight: Weight, bias: Weight | None = None) -> None:
    """Write x W^T + b into y, a record for each part of the weight."""
    offset, at = m.vector(bias), 0
    for part in m.matrix(weight):
        own = offset + 4 * at if offset else 0
        m.emit(
            Code.LINEAR,
            [x],
            [y.cut(at, part.rows)],
            weight=part.address,
            format=part.format,
            inner=part.inner,
            bias=own,
        )
        at += part.rows


@form(Linear)
def linear(op: Linear, m: Maker) -> None:
    """X W^T + b."""
    _product(m, m.spot(op.x), m.new(op.result), op.weight, op.bias)


@form(LinearSplit)
def linear_split(op: LinearSplit, m: Maker) -> None:
    """Several linear maps of one input, side by side in one room."""
    x = m.spot(op.x)
    whole = m.room((*x.dims[:3], sum(op.sizes)))
    _product(m, x, whole, op.weight, op.bias)
    at = 0
    for result, width in zip(op.results, op.sizes, strict=True):
        m.put(result, whole.cut(at, width))
        at += width


@form(FfnGated, lambda op: op.act in FUNCTIONS)
def ffn_gated(op: FfnGated, m: Maker) -> None:
    """A gated feed-forward block."""
    x = m.spot(op.x)
    gate, up = (m.room((*x.dims[:3], int(op.up.type.dims[0]))) for _ in range(2))
    _product(m, x, gate, op.gate)
    _product(m, x, up, op.up)
    m.emit(Code.GATED, [gate, up], [gate], fn=FUNCTIONS[op.act])
    _product(m, gate, m.new(op.result), op.down)


@form(Embed, lambda op: op.ids.tensor.dtype is DType.I64)
def embed(op: Embed, m: Maker) -> None:
    """Look up rows."""
    table = m.table(op.table)
    fields = {"weight": table.address, "format": table.format, "inner": table.rows}
    m.emit(Code.EMBED, [m.spot(op.ids)], [m.new(op.result)], **fields)


# ---- int8


def _quantize(op: Rounding, m: Maker) -> None:
    held, fields = rounding(op, m.weights)
    m.held += held
    grid, *others = outputs(op)
    outs = [m.grid(grid), *(None if value is None else m.new(value) for value in others)]
    m.emit(Code.QUANTIZE, [m.spot(x) for x in op.operands()], outs, **fields)


def _has_function(op: Rounding) -> bool:
    return not isinstance(op, QuantizeGated) or op.act in FUNCTIONS


for _rounding in KINDS:
    form(_rounding, _has_function)(_quantize)


@form(LinearInt8)
def linear_int8(op: LinearInt8, m: Maker) -> None:
    """(x - 128) W^T, scaled, and what is added."""
    weight, factors = packed(m.weights, op.weight), scales(op, m.weights)
    m.held += (weight, factors)
    fields = {
        "weight": weight.address,
        "format": weight.block,
        "inner": op.weight.type.dims[1],
        "bias": m.vector(op.bias),
        "fn": int(op.plus is not None),
        "extra": (factors.data_ptr(), weight.offsets.data_ptr(), 0, 0),
    }
    ins = [m.spot(x) for x in (op.x, op.plus) if x is not None]
    m.emit(Code.LINEAR_INT8, ins, [m.new(op.result)], **fields)


# ---- rows


def _norm(op: RmsNorm | LayerNorm, m: Maker) -> None:
    centred = isinstance(op, LayerNorm)
    bias = op.bias if isinstance(op, LayerNorm) else None
    fields = {"weight": m.vector(op.weight), "bias": m.vector(bias), "number": op.eps}
    m.emit(Code.NORM, [m.spot(op.x)], [m.new(op.result)], fn=int(centred), **fields)


form(RmsNorm)(_norm)
form(LayerNorm)(_norm)


@form(AddNorm)
def add_norm(op: AddNorm, m: Maker) -> None:
    """Add, and the norm of the sum."""
    outs = [m.new(result) for result in op.results]
    fields = {"weight": m.vector(op.weight), "number": op.eps}
    m.emit(Code.ADD_NORM, [m.spot(op.a), m.spot(op.b)], outs, **fields)


def _pairs_rows(op: Add | Sub | Mul | Div) -> bool:
    """Whether both operands have the result's channels, or one is a number."""
    width = op.result.tensor.dims[-1:]
    return all(not isinstance(x, Value) or x.tensor.dims[-1:] == width for x in (op.a, op.b))


def _binary(op: Add | Sub | Mul | Div, m: Maker) -> None:
    out = m.new(op.result)
    number = next((float(x) for x in (op.a, op.b) if not isinstance(x, Value)), 0.0)
    ins = [m.spot(x).broadcast(out.dims) for x in (op.a, op.b) if isinstance(x, Value)]
    which = 0 if len(ins) == 2 else 1 if isinstance(op.a, Value) else 2
    fields = {"fn": FUNCTIONS[op.kind], "number": number, "extra": (which, 0, 0, 0)}
    m.emit(Code.BINARY, ins, [out], **fields)


for _kind in (Add, Sub, Mul, Div):
    form(_kind, _pairs_rows)(_binary)


@form(Unary, lambda op: op.fn in FUNCTIONS)
def unary(op: Unary, m: Maker) -> None:
    """Apply one function."""
    m.emit(Code.UNARY, [m.spot(op.x)], [m.new(op.result)], fn=FUNCTIONS[op.fn])


def _takes_rows(op: TokensTake) -> bool:
    x, rows = op.x.type, op.rows.type
    known = isinstance(x, Tensor) and isinstance(rows, Tensor) and rows.dtype is DType.I64
    return known and op.axis == 1 and len(x.dims) == 3


@form(TokensTake, _takes_rows)
def tokens_take(op: TokensTake, m: Maker) -> None:
    """Choose tokens in each row of the batch."""
    x = m.spot(op.x)
    m.emit(Code.TAKE, [x, m.spot(op.rows)], [m.new(op.result)], inner=x.dims[2])


# ---- heads


@form(HeadsSplit)
def heads_split(op: HeadsSplit, m: Maker) -> None:
    """[B, T, H*D] -> [B, H, T, D], a view."""
    x = m.spot(op.x)
    _, batch, tokens, width = x.dims
    strides = x.strides or (0, 0, 0)
    head = width // op.heads
    dims = (batch, op.heads, tokens, head)
    m.put(op.result, replace(x, dims=dims, strides=(strides[1], head, strides[2])))


@form(HeadsMerge)
def heads_merge(op: HeadsMerge, m: Maker) -> None:
    """[B, H, T, D] -> [B, T, H*D], a copy."""
    x, out = m.spot(op.x), m.new(op.result)
    head = x.dims[3]
    step = dense(out.dims)
    m.emit(Code.LOAD, [x], [replace(out, dims=x.dims, strides=(step[1], head, step[2]))])


def _cuts_channels(op: Slice) -> bool:
    rank = len(op.x.tensor.dims)
    known = isinstance(op.start, int) and isinstance(op.stop, int)
    return op.axis % rank == rank - 1 and op.step == 1 and known


@form(Slice, _cuts_channels)
def slice_(op: Slice, m: Maker) -> None:
    """Some of the channels, a view."""
    start, stop = int(op.start), int(op.stop)
    m.put(op.result, m.spot(op.x).cut(start, stop - start))


@form(Permute, lambda op: op.order[-1] == len(op.order) - 1 and op.x.tensor.dtype.is_float)
def permute(op: Permute, m: Maker) -> None:
    """Axes in another order, the channels last as before: a view."""
    x, lead = m.spot(op.x), 4 - len(op.order)
    order = [*range(lead), *(lead + axis for axis in op.order)]
    strides = x.strides or (0, 0, 0)
    a, b, c = (strides[i] for i in order[:3])
    m.put(op.result, replace(x, dims=padded([x.dims[i] for i in order]), strides=(a, b, c)))


@form(Reshape, lambda op: op.x.tensor.dtype.is_float)
def reshape(op: Reshape, m: Maker) -> None:
    """The same rows in other sizes; they are copied first unless they lie one after another."""
    x, dims = m.spot(op.x), m.dims(op.result)
    if x.strides != dense(x.dims):
        copy = m.room(x.dims)
        m.emit(Code.LOAD, [x], [copy])
        x = copy
    m.put(op.result, replace(x, dims=dims, strides=dense(dims)))


def _joins_channels(op: Concat) -> bool:
    rank = len(op.result.tensor.dims)
    return op.axis % rank == rank - 1 and op.result.tensor.dtype.is_float


@form(Concat, _joins_channels)
def concat(op: Concat, m: Maker) -> None:
    """Channels side by side."""
    out, at = m.new(op.result), 0
    for part in op.parts:
        x = m.spot(part)
        m.emit(Code.LOAD, [x], [out.cut(at, x.dims[3])])
        at += x.dims[3]


@form(RopeTable, lambda op: op.pos.tensor.dtype is DType.I64)
def rope_table(op: RopeTable, m: Maker) -> None:
    """Cosine and sine of each position's angles."""
    outs = [m.new(result) for result in op.results]
    fields = {"weight": m.vector(op.freqs), "number": op.scale}
    m.emit(Code.ROPE_TABLE, [m.spot(op.pos)], outs, **fields)


@form(Rope)
def rope(op: Rope, m: Maker) -> None:
    """Rotate channel pairs."""
    x, out = m.spot(op.x), m.new(op.result)
    rows = (1, x.dims[0], x.dims[2])
    tables = [m.spot(t) for t in (op.cos, op.sin)]
    half = tables[0].dims[3]
    ins = [x, *(t.broadcast((*rows, half)) for t in tables)]
    m.emit(Code.ROPE, ins, [out], inner=half, fn=int(op.layout is RopeLayout.INTERLEAVED))


# ---- attention; the runs of keys and values that it reads are the cache's, or values like others


def _has_narrow_heads(op: Attention) -> bool:
    widths = (op.q.tensor.dims[3], op.v.tensor.dims[3])
    return all(isinstance(w, int) and w <= WIDEST_HEAD for w in widths)


@form(Attention, _has_narrow_heads)
def attention(op: Attention, m: Maker) -> None:
    """Scores, softmax, mix: for each run of keys, then put together."""
    q, k, v, out = m.spot(op.q), m.spot(op.k), m.spot(op.v), m.new(op.result)
    beside = m.scored.get(op.result)
    rows = replace(out, dims=(*q.dims[:3], q.dims[3]), strides=dense(out.dims))
    ins, fields = _attending(op, m, k, v.dims[3], beside)
    ins.insert(2, v)
    m.emit(Code.ATTEND, ins, [rows], **fields)
    m.emit(Code.MERGE, ins, [rows], **fields)
    if beside is not None:
        _gain(beside, m, ins, fields)


def _has_narrow_queries(op: ScoreAttention) -> bool:
    width = op.q.tensor.dims[3]
    return isinstance(width, int) and width <= WIDEST_HEAD


@form(ScoreAttention, _has_narrow_queries)
def score_attention(op: ScoreAttention, m: Maker) -> None:
    """What each key gets, in memory that the caller gives: it is as long as the cache."""
    if op in m.scored.values():
        return  # the attention beside it has made it
    q, k, out = m.spot(op.q), m.spot(op.k), m.spot(op.result)
    ins, fields = _attending(op, m, k, 0, op)
    ins.insert(2, k)
    m.emit(Code.ATTEND, ins, [replace(out, dims=q.dims)], **fields)
    _gain(op, m, ins, fields)


def _gain(op: ScoreAttention, m: Maker, ins: list[Spot], fields: dict[str, Any]) -> None:
    """Add up what keys get, of scores with noise where an op asks for it."""
    dims = m.spot(op.q).dims
    if op.seed is not None:
        slot, seed = m.noise[op.result], op.seed * SEEDS & 0xFFFFFFFF
        outs = [Spot(slot + i, dims, None) for i in range(3)]
        own = {"number": op.tau, "limit": op.tau_end, "inner": op.tau_steps, "format": seed}
        m.emit(Code.NOISE, ins, outs, **fields | own)
    if op.rows is not None:  # in the place of values, which no score reads
        rows = m.spot(op.rows)
        ins, fields = [*ins[:2], rows, *ins[3:]], fields | {"inner": rows.dims[3]}
    m.emit(Code.GAIN, ins, [replace(m.spot(op.result), dims=dims)], **fields)


def _attending(
    op: Attention | ScoreAttention,
    m: Maker,
    k: Spot,
    mixed: int,
    scored: ScoreAttention | None,
) -> tuple[list[Spot], dict[str, Any]]:
    """Return what the records read but for values of so many channels, and their fields."""
    q, step = m.spot(op.q), mixed + 2 + (0 if scored is None else RUN_OF_KEYS)
    m.scratch = max(m.scratch, q.dims[0] * q.dims[1] * q.dims[2] * step)
    m.keys = max(m.keys, k.dims[2])
    keys = -1 if k.strides is None else k.dims[2]
    mask = -1 if op.mask is None else m.spot(op.mask).slot
    fields = attending(op, m.vector(op.sinks), k.dtype, scored)
    fields["extra"] = (k.dims[1], mixed, keys, mask)
    return [q, k, *([] if op.bias is None else [m.spot(op.bias)])], fields


def attending(
    op: Attention | ScoreAttention, sinks: int, dtype: torch.dtype, scored: ScoreAttention | None
) -> dict[str, Any]:
    """Return what a record says of an op that attends: sinks by address, and what it keeps."""
    kept = 0
    if scored is not None:
        kept = (2 if scored.seed is None else 6) + 8 * scored.shared
    return {
        "type": TYPES[dtype],
        "fn": int(op.bias is not None) + kept,
        "number": op.scale,
        "limit": op.softcap or 0.0,
        "weight": sinks,
        "inner": -1,  # queries that a score is of: all
    }


def append(m: Maker, new: Value, cache: Spot) -> None:
    """Write new keys or values [B, G, N, D] behind the last in the cache."""
    x = m.spot(new)
    m.emit(Code.APPEND, [x], [replace(cache, dims=x.dims)], type=TYPES[cache.dtype])


def load(m: Maker, value: Value, outer: Spot) -> None:
    """Take a value of the caller into the arena, in float32."""
    m.emit(Code.LOAD, [outer], [m.new(value)], type=TYPES[storage_type(value)])


def store(m: Maker, value: Value, slot: int) -> None:
    """Give a value to the caller."""
    spot = m.spot(value)
    dtype = storage_type(value)
    outer = Spot(slot, spot.dims, dense(spot.dims), dtype=dtype)
    if dtype not in TYPES:
        m.emit(Code.COPY, [spot], [outer])
        return
    m.emit(Code.STORE, [spot], [outer], type=TYPES[dtype])
