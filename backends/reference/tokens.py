"""Ops over sets of tokens in plain torch: scores, the choice by them, and what follows it.

What a set is at run time is in `elidir.backends.tokens`. Which ops a pass puts together is the
pass's affair.
"""

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from elidir.backends.protocol import Kernel, PlacedState, sizes_of
from elidir.backends.reference.attention import probabilities
from elidir.backends.reference.noise import Noise
from elidir.backends.reference.registry import kernel
from elidir.backends.tokens import Tokens, take
from elidir.backends.weights import Weights
from elidir.ir import (
    KV,
    MaskKeep,
    MaskState,
    ScoreAttention,
    TokensAllot,
    TokensFind,
    TokensIndex,
    TokensNew,
    TokensRevive,
    TokensSelect,
    TokensTake,
    TokensValid,
    TokensWithin,
)

ROWS_AT_ONCE = 64


@kernel(ScoreAttention)
def score_attention(op: ScoreAttention, weights: Weights) -> Kernel:
    """Attention of the given queries, some rows at a time, added up over them."""
    softmax = probabilities(op, weights)
    given = [n for n in ("mask", "bias", "state", "rows") if getattr(op, n) is not None]

    def run(q: Tensor, k: Tensor, *rest: Any) -> Tensor:
        found = dict(zip(given, rest, strict=True))
        q, mask, bias = wanted(found.get("rows"), q, found.get("mask"), found.get("bias"))
        batch, heads, rows, _ = q.shape
        noise = Noise(op, found["state"], heads, rows) if "state" in found else None
        groups = k.shape[1]
        total = torch.zeros(batch, groups, k.shape[2])
        for start in range(0, rows, ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            adjust = None if noise is None else noise.of(some)
            part = softmax(q[:, :, some], k, _rows(mask, some, 1), _rows(bias, some, 2), adjust)
            total += part.sum(2).float().unflatten(1, (groups, heads // groups)).mean(2)
        return total.mean(1) if op.shared else total

    return run


def wanted(
    rows: Tensor | None, q: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the queries that rows i64[B, R] name, and what mask and bias say of them."""

    def named(x: Tensor | None, axis: int) -> Tensor | None:
        return x if x is None or rows is None or x.shape[axis] == 1 else take(x, rows, axis)

    return q if rows is None else take(q, rows, 2), named(mask, 1), named(bias, 2)


def _rows(x: Tensor | None, some: slice, axis: int) -> Tensor | None:
    if x is None or x.shape[axis] == 1:
        return x
    return x[(slice(None),) * axis + (some,)]


@kernel(TokensSelect)
def select(op: TokensSelect, weights: Weights) -> Kernel:
    """The highest scores of each row; of equal ones the first."""
    share = Fraction(str(op.keep)).limit_denominator(10_000)

    def kept(n: Tensor) -> Tensor:
        part = (n * share.numerator + share.denominator - 1) // share.denominator
        return part.clamp(min=op.at_least)

    def run(scores: Tensor, valid: Tensor, rows: Tensor) -> Tokens:
        size = int(kept(torch.tensor(scores.shape[1])))
        counts = valid.sum(1)
        counts = torch.minimum(kept(counts), counts)
        scores = scores.masked_fill(~valid, -math.inf).scatter(1, rows, math.inf)
        index = scores.argsort(dim=1, descending=True, stable=True)[:, :size]
        chosen = torch.arange(size) < counts[:, None]
        index = torch.where(chosen, index, -1).sort(dim=1).values
        filled = bool((index < 0).any())
        return Tokens(index.clamp(min=0), index >= 0 if filled else None)

    return run


@kernel(TokensAllot)
def allot(op: TokensAllot, weights: Weights) -> Kernel:
    """One choice over all parts: the token of rank r of a part comes at its due less r.

    That is the method of greatest remainders, a full part standing aside.
    """

    def run(scores: Tensor, shares: Tensor | None = None) -> Tokens:
        rows, parts, tokens = scores.shape
        whole = math.floor(Fraction(str(op.keep)).limit_denominator(10_000) * parts * tokens)
        order = scores.argsort(dim=2, descending=True, stable=True)
        rank = order.argsort(dim=2).double()
        if shares is None:
            due = torch.full((rows, 1), whole, dtype=torch.float64)
        else:
            due = _due(shares.double(), whole, tokens, op.first)
        urgency = due[:, :, None] - rank
        urgency[:, 0] += torch.where(urgency[:, 0] > 0, math.inf, -2.0 * parts * tokens)
        chosen = urgency.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :whole]
        return Tokens(chosen.sort(dim=1).values)

    return run


def _due(shares: Tensor, whole: int, tokens: int, first: float) -> Tensor:
    """Return how many tokens each part is due, f64[I, P]; a share of nothing is an equal one."""
    part = min(math.floor(Fraction(str(first)).limit_denominator(10_000) * whole), tokens)
    total = shares.sum(1, keepdim=True)
    equal = torch.full_like(shares, 1 / shares.shape[1])
    rest = torch.where(total > 0, shares / total, equal) * (whole - part)
    return torch.cat((torch.full_like(total, part), rest), 1)


@kernel(TokensIndex)
def tokens_index(op: TokensIndex, weights: Weights) -> Kernel:
    """Places among those that a set was chosen from."""
    return lambda tokens: tokens.index.masked_fill(~tokens.is_valid(), -1)


@kernel(TokensTake)
def tokens_take(op: TokensTake, weights: Weights) -> Kernel:
    """Choose tokens in each row of the batch."""
    axis = op.axis

    def run(x: Tensor | None, rows: Tensor | Tokens) -> Tensor | None:
        if x is None or (x.dtype is torch.bool and x.shape[axis] == 1):
            return x  # a mask that is the same for all queries
        return take(x, rows.index if isinstance(rows, Tokens) else rows, axis)

    return run


@kernel(TokensWithin)
def within(op: TokensWithin, weights: Weights) -> Kernel:
    """A set of a set's tokens."""
    return lambda inner, outer: inner.within(outer)


@kernel(TokensValid)
def tokens_valid(op: TokensValid, weights: Weights) -> Kernel:
    """Which are no filling."""
    return lambda tokens: tokens.is_valid()


@kernel(TokensFind)
def find(op: TokensFind, weights: Weights) -> Kernel:
    """Places in a set."""
    return lambda tokens, rows: tokens.find(rows)


@kernel(TokensNew)
def new(op: TokensNew, weights: Weights) -> Kernel:
    """Those behind the cached ones."""
    cached = sizes_of(op, (op.cached,))

    def run(pos: Tensor, *sizes: int) -> Tokens:
        (start,) = cached(sizes)
        return Tokens(torch.arange(start, start + pos.shape[1]).expand(pos.shape))

    return run


@kernel(TokensRevive)
def revive(op: TokensRevive, weights: Weights) -> Kernel:
    """The highest scores of those that one state holds and the other does not."""
    parked_type = op.parked.type
    placed = isinstance(parked_type, KV) and parked_type.placed

    def run(scores: Tensor, parked: Any, kv: PlacedState, fresh: Tokens) -> Any:
        there = kv.holds()
        past, held = there.shape[1], parked.ordinals() if placed else None
        if held is not None:  # what is of this step is behind the last of them
            there = pad(there, (0, 1), value=True).gather(1, held.clamp(max=past))
            known = parked.valid()
            there = there if known is None else there | ~known
        scores = scores[:, : there.shape[1]].masked_fill(there, -math.inf)
        best = scores.topk(min(op.most, scores.shape[1]), dim=1)
        counts = [sum(v > op.above for v in row) for row in best.values.tolist()]
        count = max(counts)
        slots, given = best.indices[:, :count], None
        if min(counts) < count:
            given = torch.arange(count) < torch.tensor(counts)[:, None]
        names = slots if held is None else held.gather(1, slots)
        return Tokens(slots, given), fresh.followed(names, given)

    return run


# ---- masks of a step


@kernel(MaskKeep)
def keep(op: MaskKeep, weights: Weights) -> Kernel:
    """Queries and new keys of a set."""

    def run(mask: Tensor | None, tokens: Tokens) -> Tensor | None:
        if mask is None and tokens.valid is None:
            return None
        mask = torch.ones(1, 1, 1, dtype=torch.bool) if mask is None else mask
        queries = take(mask, tokens.index, 1)
        cached = mask.shape[2] - mask.shape[1]
        new = take(queries[:, :, cached:], tokens.index, 2)
        if tokens.valid is not None:
            new = new & tokens.valid[:, None, :]
            new.diagonal(0, 1, 2).logical_or_(~tokens.valid)
        return torch.cat([queries[:, :, :cached], new], dim=2) if cached else new

    return run


@kernel(MaskState)
def of_state(op: MaskState, weights: Weights) -> Kernel:
    """Cached keys by the state's own validity, new ones as the caller says.

    A mask of None comes with one new token: it sees all.
    """

    def run(mask: Tensor | None, kv: PlacedState, tokens: Tokens | None = None) -> Tensor | None:
        if tokens is not None and len(tokens) > (1 if mask is None else mask.shape[1]):
            return _with_revived(mask, kv, tokens)
        valid, length = kv.valid(), kv.storage()[2]
        if mask is None and valid is None:
            return None
        new = torch.ones(1, 1, 1, dtype=torch.bool) if mask is None else mask
        tokens = new.shape[1]
        if length == 0 and new.shape[2] == tokens:
            return new
        cached = torch.ones(1, length, dtype=torch.bool) if valid is None else valid
        batch, past = max(len(cached), len(new)), new.shape[2] - tokens
        seen = cached[:, None].expand(batch, tokens, length)
        if past:  # a query that sees nothing of the past is no token
            seen = seen & new[:, :, :past].any(-1, keepdim=True)
        return torch.cat([seen, new[:, :, past:].expand(batch, -1, -1)], dim=2)

    return run


def _with_revived(mask: Tensor | None, kv: PlacedState, tokens: Tokens) -> Tensor:
    """Return the mask of new tokens and such as come back: by number in the session, but for new.

    What new tokens see of each other the caller says; one that sees nothing cached is no token.
    """
    slots, known, own = kv.ordinals(), kv.valid(), tokens.index
    keys = torch.cat([slots, own], 1)
    seen = keys[:, None] <= own[:, :, None]
    if mask is known is tokens.valid is None:
        return seen
    known = torch.ones_like(slots, dtype=torch.bool) if known is None else known
    ours = tokens.is_valid()
    seen &= torch.cat([known, ours], 1)[:, None]
    length, count = slots.shape[1], 1 if mask is None else mask.shape[1]
    if mask is not None:
        past = mask.shape[2] - count
        if past:
            seen[:, :count] &= mask[:, :, :past].any(-1, keepdim=True)
        seen[:, :count, length : length + count] = mask[:, :, past:]
    seen.diagonal(length, 1, 2).logical_or_(~ours)
    return seen
