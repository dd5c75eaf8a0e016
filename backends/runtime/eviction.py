"""Which slots of a store are evicted: budgets of rows, what is protected, and where slots move to.

Plain functions of tensors, for all layers and key heads of a store at once. What is left of a row
ends up in its first slots: holes are filled from behind, and nothing else moves.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from elidir.ir import KvEvict

_TIE = 1e-12  # of equal scores the older token goes
_ROUNDING = 8  # last bits of a float32 score that do not count: repeated tokens have equal keys


@dataclass(frozen=True)
class Due:
    """What a step evicts when the next one comes, so that until then its tokens may be taken back.

    Args:
        rule: by which.
        held: i64[B, 1], how many tokens each row held before the step.
        start: the ordinal of the step's first token.
        scores: f32[L, B, G, S] of the slots behind the step, or none.
    """

    rule: KvEvict
    held: Tensor
    start: int
    scores: Tensor | None


def remaining(rule: KvEvict, held: Tensor, new: Tensor) -> Tensor:
    """Return how many tokens of each row stay, i64[B, 1]; see `KvEvict`."""
    share = Fraction(str(rule.keep)).limit_denominator(10_000)
    kept = (new * share.numerator + share.denominator - 1) // share.denominator
    few = new < rule.prompt
    if rule.keep < 1:
        kept = kept.masked_fill(few, 0)
    counts = torch.minimum(held + new, (held + kept).clamp(min=rule.at_least))
    counts = counts if rule.most is None else counts.clamp(max=rule.most)
    return counts if rule.in_step else torch.where(few, held + new, counts)


def protected(rule: KvEvict, counts: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ordinals below which and from which on the tokens of a row stay, i64[B, 1]."""
    recent = counts.new_full(counts.shape, int(rule.recent))
    if isinstance(rule.recent, float):
        recent = (counts * rule.recent).ceil().long()
    recent = torch.minimum(recent, (counts - rule.sinks).clamp(min=0))  # the first stay before all
    so_far = valid.cumsum(1)
    left = so_far[:, -1:] - so_far + valid
    return (so_far <= rule.sinks).sum(1, keepdim=True), (left > recent).sum(1, keepdim=True)


def split(
    rule: KvEvict,
    scores: Tensor | None,
    ordinals: Tensor,
    held: Tensor,
    counts: Tensor,
    valid: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the slots to write over and those to copy there, numbered over all of [L, B, G, S].

    Args:
        rule: by which.
        scores: f32[L, B, G, S], the highest of which stay; None ranks by age.
        ordinals: i32[L, B, G, S], of the tokens in the slots.
        held: bool[B, S], the slots that hold a token.
        counts: i64[B, 1], how many stay in each row.
        valid: bool[B, T], the tokens of the session.
    """
    shape, slots = ordinals.shape, ordinals.shape[3]
    first, last = (t[:, :, None] for t in protected(rule, counts, valid))
    rank = ordinals.double()
    if scores is not None:
        rank = rank.mul_(_TIE).add_(_rounded(scores))
    if rule.shared:
        rank, ordinals = rank.mean(2, keepdim=True), ordinals[:, :, :1]
    rank.masked_fill_((ordinals < first) | (ordinals >= last), math.inf)
    if bool((counts == slots - 1).all()) and bool(held.all()):
        ends = torch.arange(slots - 1, shape.numel(), slots)
        worst = rank.argmin(3).expand(shape[:3]).flatten()
        return ends - (slots - 1) + worst, ends
    order = rank.masked_fill_(~held[:, None], -math.inf).argsort(3, descending=True)
    front = (torch.arange(slots) < counts)[:, None]
    stays = torch.zeros_like(rank, dtype=torch.bool)
    stays = stays.scatter_(3, order, front.expand_as(order)).expand(shape)
    return _numbers(~stays & front), _numbers(stays & ~front)


def _rounded(scores: Tensor) -> Tensor:
    step = 1 << _ROUNDING
    bits = scores.contiguous().view(torch.int32) + step // 2
    return bits.bitwise_and_(-step).view(torch.float32)


def _numbers(chosen: Tensor) -> Tensor:
    return chosen.flatten().nonzero()[:, 0]
