"""Scorers: how much each key matters, read off one attention: the higher the more.

A scorer emits a few ops beside an attention that stays as it is, and returns their value. Which
tokens are dropped for it is decided elsewhere; a pass names a scorer by an option. Those of
`prune-tokens` look at the wanted rows, for all heads: f32[B, K]. Those of `evict-kv` are in
`EVICTION`, for each key head: f32[B, G, K], each with what stays whatever its score.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy

from elidir.ir import (
    Add,
    Attention,
    Concat,
    ElidirError,
    Expand,
    Iota,
    KvAppend,
    Maximum,
    Op,
    Pad,
    ScoreAttention,
    Slice,
    Value,
    as_dim,
    emit,
)

# Takes an attention, the wanted tokens i64[B, R], and the list that its ops go to.
Scorer: TypeAlias = Callable[[Attention, Value, list[Op]], Value]


def last_row(attention: Attention, rows: Value, ops: list[Op]) -> Value:
    """Return the attention that the wanted tokens pay to each key (LazyLLM, arXiv 2407.14057)."""
    return received(attention, ops, rows=rows, shared=True)


def received(attention: Attention, ops: list[Op], **how: Any) -> Value:
    """Return what each key gets of the attention of all queries, or as `how` says."""
    read = (attention.q, attention.k, attention.mask, attention.bias, attention.sinks)
    given = {"scale": attention.scale, "softcap": attention.softcap, "loc": attention.loc, **how}
    return emit(ops, ScoreAttention(*read, **given))


SCORERS: dict[str, Scorer] = {"last-row": last_row}


# ---- scorers by which a cache evicts


class EvictingError(ElidirError):
    """What stands in the way of evicting tokens."""


@dataclass(frozen=True)
class Seen:
    """Where a token may be evicted: an attention, the append before it, whether in a prompt."""

    attention: Attention
    append: KvAppend
    prompt: bool

    @property
    def new(self) -> Any:
        """How many tokens the append brings."""
        return self.append.k.type.dims[2]


@dataclass(frozen=True)
class Eviction:
    """A method of eviction: by what, its scorer, and what stays in any case.

    Args:
        by: as in `kv.evict`.
        scorer: takes what is seen, the list that its ops go to, and the options of the pass.
        recent: the part of what stays that is the newest; None for a prompt's `window`.
        sinks: first tokens that stay.
        in_step: whether it evicts behind each step too.
    """

    by: str
    scorer: Callable[[Seen, list[Op], Any], Value] | None = None
    recent: float | None = 0.0
    sinks: int = 0
    in_step: bool = True


def h2o(seen: Seen, ops: list[Op], options: Any) -> Value:
    """Return what each key got of all attention (H2O, arXiv 2306.14048)."""
    return received(seen.attention, ops)


def keyformer(seen: Seen, ops: list[Op], options: Any) -> Value:
    """Return the same with Gumbel noise and a rising temperature (Keyformer, arXiv 2403.09054)."""
    if not options.noise:
        return received(seen.attention, ops)
    if seen.attention.q.type.dims[2] != seen.new:
        raise EvictingError("only some tokens are queries; give noise=false, or another scorer")
    (tau, tau_end), steps = options.tau, options.tau_steps
    noise = {"seed": options.seed, "tau": tau, "tau_end": tau_end, "tau_steps": steps}
    return received(seen.attention, ops, state=seen.append.result, **noise)


def snapkv(seen: Seen, ops: list[Op], options: Any) -> Value:
    """Return what each key, or a neighbour, gets of a prompt's last queries (arXiv 2404.14469)."""
    new, (batch, _, queries, _) = seen.new, seen.attention.q.type.dims
    first = as_dim(sympy.Max(queries - options.window, 0))  # a prompt may have fewer queries
    last = emit(ops, Slice(emit(ops, Iota(queries)), 0, first, queries))
    rows = emit(ops, Expand(last, (batch, as_dim(queries - first))))
    scores = received(seen.attention, ops, rows=rows)
    length = seen.append.result.type.dims[2]
    held = as_dim(length - new)
    old, fresh = (
        emit(ops, Slice(scores, 2, start, stop)) for start, stop in ((0, held), (held, length))
    )
    best, join, near = fresh, Maximum if options.pool == "max" else Add, options.near
    wide = emit(ops, Pad(fresh, 2, near, near)) if near else fresh
    for start in (near + n for i in range(1, near + 1) for n in (-i, i)):
        beside = emit(ops, Slice(wide, 2, as_dim(start), as_dim(start + new)))
        best = emit(ops, join(best, beside))
    return emit(ops, Concat((old, best), 2))


EVICTION: dict[str, Eviction] = {
    "h2o": Eviction("scores", h2o, recent=0.5),
    "keyformer": Eviction("scores", keyformer, recent=0.3),
    "snapkv": Eviction("scores", snapkv, recent=None, in_step=False),
    "streaming": Eviction("age", sinks=4),  # arXiv 2309.17453
    "knorm": Eviction("norm", recent=0.1),  # arXiv 2406.11430
}
