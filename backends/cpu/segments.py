"""Which consecutive ops of a program make a run that the native library takes as one call.

An op belongs to a run if it has a native form, if what it reads and makes is of few dimensions, and
if none of these grows with the cache: records hold for any number of cached tokens.
"""

from collections.abc import Sequence
from typing import Any

from elidir.backends.cpu.forms import FORMS
from elidir.backends.cpu.registry import check_dtypes
from elidir.ir import (
    KV,
    Attention,
    Embed,
    FfnGated,
    KvAppend,
    KvEvict,
    KvRead,
    Linear,
    LinearInt8,
    LinearSplit,
    Op,
    Quantize,
    QuantizeAddNorm,
    QuantizeGated,
    QuantizeNorm,
    RopeTable,
    ScoreAttention,
    Tensor,
    TokensTake,
    Value,
    free_symbols,
)

ATTENDS = (Attention, ScoreAttention)
LOOKS_UP = (Embed, RopeTable, ScoreAttention, TokensTake)
PRODUCTS = (Linear, LinearSplit, FfnGated, LinearInt8)
_LEAST = 4  # ops, of which one is a product; fewer are as fast one by one


def segments(ops: Sequence[Op]) -> list[range]:
    """Return the runs of ops that have native forms, as ranges of their numbers."""
    cached = {v for op in ops if isinstance(op, KvRead) for v in op.results}
    biases = {op.bias for op in ops if isinstance(op, ATTENDS) and op.bias is not None}
    scores = {op.result for op in ops if isinstance(op, ScoreAttention)}
    apart = biases | scores  # as long as the cache: in the caller's memory, not the run's
    growing = {s for op in ops for s in _grows(op)}
    fits = [_has_form(op, cached, apart, growing) for op in ops]
    found, start = [], 0
    for at, op in enumerate(ops):
        if not fits[at] or _reads_before(op, ops[start:at], cached):
            found.append(range(start, at))
            start = at + 1
    found.append(range(start, len(ops)))
    return [run for run in found if _pays(ops[run.start : run.stop])]


def _reads_before(op: Op, run: Sequence[Op], cached: set[Value]) -> bool:
    """Whether an op attends to a cache that was read, or evicts by scores made, before its run."""
    if isinstance(op, KvEvict) and op.scores is not None:
        return not any(op.scores in o.results for o in run)
    if not isinstance(op, ATTENDS) or op.k not in cached:
        return False
    return not any(op.k in o.results for o in reversed(run) if isinstance(o, KvRead))


def _pays(run: Sequence[Op]) -> bool:
    return len(run) >= _LEAST and any(isinstance(op, PRODUCTS) for op in run)


def _grows(op: Op) -> frozenset[Any]:
    """What says how much was cached before: records must not depend on it."""
    if not isinstance(op, KvAppend) or not isinstance(op.kv.type, KV):
        return frozenset()
    given = frozenset().union(*[free_symbols(d) for d in op.k.tensor.dims])
    return frozenset(free_symbols(op.kv.type.length)) - given


def _has_form(op: Op, cached: set[Value], apart: set[Value], growing: set[Any]) -> bool:
    if isinstance(op, KvAppend | KvEvict | KvRead):
        return _fixed_kv(op.kv.type) and not cached & set(op.operands())
    known = FORMS.get(op.kind)
    if known is None or not _is_float(op) or not check_dtypes(op) or not known[1](op):
        return False
    if isinstance(op, ATTENDS):
        return _attends(op, cached, apart)
    if (cached | apart) & {*op.operands(), *op.results}:
        return False
    return all(_is_small(v, growing) for v in (*op.operands(), *op.results))


def _fixed_kv(kv: Any) -> bool:
    return isinstance(kv, KV) and isinstance(kv.heads, int)


def _attends(op: Attention | ScoreAttention, cached: set[Value], apart: set[Value]) -> bool:
    """Keys and values must both be the cache's, or both not; scores are of a cache's keys."""
    bias_fits = op.bias is None or len(op.bias.tensor.dims) == 4
    full = op.bias is None or op.bias.tensor.dims[3] == op.k.tensor.dims[2]
    fixed = isinstance(op.k.tensor.dims[1], int)
    values = True if isinstance(op, ScoreAttention) else op.v in cached
    return (
        bias_fits and full and fixed and op.q not in cached | apart and (op.k in cached) == values
    )


def _is_small(value: Value, growing: set[Any]) -> bool:
    """Whether a value has few dimensions, none of which grows from step to step."""
    if not isinstance(value.type, Tensor):
        return False
    dims = value.type.dims
    fixed = not value.type.dtype.is_float or (len(dims) > 0 and isinstance(dims[-1], int))
    return fixed and len(dims) <= 4 and not any(free_symbols(d) & growing for d in dims)


def _is_float(op: Op) -> bool:
    """Whether an op makes floats, and of floats unless it looks something up; or goes by a grid."""
    if isinstance(op, LinearInt8 | Quantize | QuantizeNorm | QuantizeAddNorm | QuantizeGated):
        return True
    read = () if isinstance(op, LOOKS_UP) else op.operands()
    types = [v.type for v in (*read, *op.results)]
    return all(t.dtype.is_float for t in types if isinstance(t, Tensor))
