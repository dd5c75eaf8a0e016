"""Which slots of a store are evicted: budgets of rows, what is protected, and where slots move to.

Plain functions of tensors, for all layers and key heads of a store at once. What is left of a row
ends up in its first slots: holes are filled from behind, and nothing else moves.
"""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from elidir.ir import KvEvict

_LAST = torch.iinfo(torch.int32).max
_NONE = torch.iinfo(torch.int64).min  # below every token
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
    first, last = (t[:, :, None].int() for t in protected(rule, counts, valid))
    rounded = None if scores is None else _rounded(scores)
    if rule.shared:
        ordinals = ordinals[:, :, :1]
        rounded = None if rounded is None else rounded.mean(2, keepdim=True)
    is_one = rule.sinks < slots and bool((counts == slots - 1).all())
    if is_one and bool(held.all()):
        ends = torch.arange(slots - 1, shape.numel(), slots)
        worst = _worst(rounded, ordinals, first, last).expand(shape[:3]).flatten()
        return ends - (slots - 1) + worst, ends
    rank = _rank(rounded, ordinals, first, last)
    order = rank.masked_fill_(~held[:, None], _NONE).argsort(3, descending=True)
    front = (torch.arange(slots) < counts)[:, None]
    stays = torch.zeros_like(rank, dtype=torch.bool)
    stays = stays.scatter_(3, order, front.expand_as(order)).expand(shape)
    return _numbers(~stays & front), _numbers(stays & ~front)


def _rank(scores: Tensor | None, ordinals: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return i64 ranks: by score and then by age, those that are protected before all."""
    order = torch.zeros_like(ordinals)
    if scores is not None:
        order = _ordered(scores, order)
    order.masked_fill_((ordinals < first) | (ordinals >= last), _LAST)
    return order.long().mul_(1 << 32).add_(ordinals)


def _worst(scores: Tensor | None, ordinals: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return the slot of the lowest `_rank` in each head, if not all are protected.

    Every token goes through this in every layer. It is in integers of 32 bits, over two rooms: of
    those torch does many at once, and comparisons, fillings and new rooms take five times as long.
    """
    stays, room = last - 1 - ordinals, torch.empty_like(ordinals)
    torch.minimum(stays, torch.sub(ordinals, first, out=room), out=stays)
    if scores is not None:
        rank = _unless(stays, _ordered(scores, room))
        rank.bitwise_xor_(rank.amin(3, keepdim=True))
        stays.bitwise_or_(torch.neg(rank, out=room))
    return _unless(stays, ordinals).argmin(3)


def _ordered(scores: Tensor, room: Tensor) -> Tensor:
    """Return integers in the order of the floats, -0.0 being 0.0, in a room of their own."""
    bits = scores.add_(0.0).view(torch.int32)
    return torch.bitwise_right_shift(bits, 31, out=room).bitwise_and_(_LAST).bitwise_xor_(bits)


def _unless(negative: Tensor, numbers: Tensor) -> Tensor:
    """Return numbers, or the greatest there is where `negative` is so; in the room of that."""
    return negative.bitwise_right_shift_(31).bitwise_xor_(-_LAST - 1).clamp_(min=numbers)


def _rounded(scores: Tensor) -> Tensor:
    step = 1 << _ROUNDING
    bits = scores.contiguous().view(torch.int32) + step // 2
    return bits.bitwise_and_(-step).view(torch.float32)


def _numbers(chosen: Tensor) -> Tensor:
    return chosen.flatten().nonzero()[:, 0]
