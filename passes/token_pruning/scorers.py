"""Scorers: how much each key matters, read off one attention. f32[B, G, K], the higher the more.

A scorer emits a few ops beside an attention that stays as it is, and returns their value. Which
tokens are dropped for it is decided elsewhere; a pass names a scorer by an option.
"""

from collections.abc import Callable
from typing import TypeAlias

from elidir.ir import Attention, Op, ScoreAttention, TokensTake, Value

# Takes an attention, the wanted tokens i64[B, R], and the list that its ops go to.
Scorer: TypeAlias = Callable[[Attention, Value, list[Op]], Value]


def last_row(attention: Attention, rows: Value, ops: list[Op]) -> Value:
    """Return the attention that the wanted tokens pay to each key (LazyLLM, arXiv 2407.14057)."""
    return received(attention, rows, ops)


def received(attention: Attention, rows: Value | None, ops: list[Op]) -> Value:
    """Return what each key gets of the attention of some queries, or of all."""

    def chosen(value: Value | None, axis: int = 1) -> Value | None:
        if value is None or rows is None or value.type.dims[axis] == 1:
            return value
        ops.append(TokensTake(value, rows, axis, loc=attention.loc))
        return ops[-1].results[0]

    q, mask, bias = chosen(attention.q, 2), chosen(attention.mask), chosen(attention.bias, 2)
    assert q is not None
    scale, softcap = attention.scale, attention.softcap
    score = ScoreAttention(
        q, attention.k, mask, bias, attention.sinks, scale, softcap, loc=attention.loc
    )
    ops.append(score)
    return score.result


SCORERS: dict[str, Scorer] = {"last-row": last_row}
