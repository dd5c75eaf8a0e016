"""Gumbel noise on attention, drawn by a counter: the same whatever the batch and the chunks are.

A number depends on the seed, the layer, the head and the positions of query and key alone. It comes
from two words, one of the query and one of the key, which are added and mixed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from elidir.backends.protocol import PlacedState
from elidir.ir import ScoreAttention

_BITS = 23  # of a uniform number: what a float32 holds
_ODD = 0x9E3779B9


class Noise:
    """The noise and the temperature of one call of `score.attention`."""

    def __init__(self, op: ScoreAttention, state: PlacedState, heads: int, rows: int) -> None:
        """Make the words of the last tokens of a state, which are the queries, and of its keys."""
        pos = state.positions()[:, -rows:]
        seed = _mix(_word((op.seed or 0) * _ODD + state.number + 1))
        head = _mix(torch.arange(heads, dtype=torch.int32) + seed)
        self.queries = _mix(pos.int()[:, None] + head[:, None])  # [B, H, R]
        keys = _mix(state.head_positions().int() ^ _word(_ODD))  # [B, G, S]
        self.keys = keys.repeat_interleave(heads // keys.shape[1], dim=1)
        behind = (pos - state.since() + 1).clamp(0, op.tau_steps) / op.tau_steps
        self.tau = (op.tau + (op.tau_end - op.tau) * behind)[:, None, :, None]

    def words(self, rows: slice, end: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return words [B, H, R, 1] of some queries and [B, H, 1, S] of keys, and temperatures."""
        keys = self.keys[:, :, None, :end]
        return self.queries[:, :, rows, None], keys, self.tau[:, :, rows]

    def of(self, rows: slice) -> Callable[[Tensor], Tensor]:
        """Return what makes of scores [B, H, R, S] of some queries (scores + noise) / tau."""

        def adjust(scores: Tensor) -> Tensor:
            queries, keys, tau = self.words(rows)
            words = _mix(queries + keys)
            uniform = words.bitwise_and_((1 << _BITS) - 1).to(scores.dtype)
            uniform.add_(0.5).mul_(2.0**-_BITS)
            noise = uniform.log_().neg_().log_().neg_()
            return noise.add_(scores).div_(tau)

        return adjust


def _word(number: int) -> Tensor:
    """Return the low 32 bits of a number."""
    low = number % (1 << 32)
    return torch.tensor(low - (1 << 32) if low >= 1 << 31 else low, dtype=torch.int32)


def _mix(x: Tensor) -> Tensor:
    """Mix the bits of words, over the tensor itself (a hash of two multiplications and shifts)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << 32 - shift) - 1)).mul_(_word(factor))
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
