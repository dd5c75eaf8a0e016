"""Merging tokens in plain torch: bipartite matching, and the weighted mean of what goes together.

Which signal tokens are matched by, and where, is the pass's affair. Rows are independent: a row's
padding takes no part, wherever it stands.
"""

from fractions import Fraction

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor

from elidir.backends.protocol import Kernel
from elidir.backends.reference.registry import kernel
from elidir.backends.tokens import take
from elidir.backends.weights import Weights
from elidir.ir import TokensMatch, TokensMerge


@kernel(TokensMatch)
def match(op: TokensMatch, weights: Weights) -> Kernel:
    """Of equal pairs the first is merged."""
    share, protect = Fraction(str(op.share)).limit_denominator(10_000), op.protect

    def run(signal: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        batch, tokens = sizes.shape
        valid = sizes > 0
        counts = valid.sum(1, keepdim=True)
        order = (~valid).long().argsort(dim=1, stable=True)  # valid ones first, in their order
        fewer = (counts - protect) * share.numerator // share.denominator
        gone, partner = _sides(take(signal, order, 1), counts, fewer, protect)
        left = tokens - (tokens - protect) * share.numerator // share.denominator
        place = _places(gone, counts, protect).clamp(max=left - 1)
        place = torch.where(gone, place.gather(1, partner), place)
        into = torch.zeros_like(place).scatter(1, order, place)
        merged = torch.zeros(batch, left, dtype=sizes.dtype).scatter_add(1, into, sizes)
        return into, merged

    return run


def _sides(x: Tensor, counts: Tensor, fewer: Tensor, protect: int) -> tuple[Tensor, Tensor]:
    """Return which tokens of [B, T, D] go into others, bool[B, T], and into which, i64[B, T]."""
    batch, tokens, _ = x.shape
    gone, partner = torch.zeros(batch, tokens, dtype=torch.bool), torch.zeros_like(counts)
    partner = partner.repeat(1, tokens)
    if tokens < 2:
        return gone, partner
    at = torch.arange(tokens)
    free = (at >= protect) & (at < counts)
    x = F.normalize(x, dim=-1)
    scores = (x[:, ::2] @ x[:, 1::2].transpose(1, 2)).float()
    fits = free[:, ::2, None] & free[:, None, 1::2]
    best, which = scores.masked_fill(~fits, -torch.inf).max(-1)
    ranked = best.argsort(dim=1, descending=True, stable=True)
    gone[:, ::2] = torch.zeros_like(free[:, ::2]).scatter(1, ranked, at[: ranked.shape[1]] < fewer)
    partner[:, ::2] = 2 * which + 1
    return gone, partner


def _places(gone: Tensor, counts: Tensor, protect: int) -> Tensor:
    """Return where tokens come to stand that go into no other: i64[B, T]."""
    at = torch.arange(gone.shape[1])
    kind = torch.where(at < protect, 0, 1 + at % 2).expand(gone.shape)
    kind = torch.where(at < counts, kind, 3).masked_fill(gone, 4)
    return torch.empty_like(kind).scatter(
        1, kind.argsort(dim=1, stable=True), at.expand(kind.shape)
    )


@kernel(TokensMerge)
def merge(op: TokensMerge, weights: Weights) -> Kernel:
    """Sums by place in float32 at least, then divided."""

    def run(x: Tensor, sizes: Tensor, into: Tensor, merged: Tensor) -> Tensor:
        batch, left = merged.shape
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight = torch.where(merged.gather(1, into) > 0, sizes, 1).to(dtype)
        flat = (into + left * torch.arange(batch)[:, None]).flatten()
        total = torch.zeros(batch * left, dtype=dtype).index_add(0, flat, weight.flatten())
        sums = torch.zeros(batch * left, x.shape[2], dtype=dtype)
        sums.index_add_(0, flat, (x.to(dtype) * weight[:, :, None]).flatten(0, 1))
        means = sums / torch.where(total > 0, total, 1)[:, None]
        return means.view(batch, left, -1).to(x.dtype)

    return run
