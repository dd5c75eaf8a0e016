"""Decoding without a cache: the whole sequence goes through the model again for each step.

For models that cannot be given a cache, and for encoder-decoders, whose encoder inputs are held.
The interface is that of a session, so that generation knows no difference but the time.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from elidir.backends.runtime.checks import as_ids, as_valid, check_positions
from elidir.backends.runtime.decoder import Call, Rows, Stats, Wanted, as_rows
from elidir.backends.runtime.errors import CacheError


class CachelessSession:
    """Keeps the tokens, and runs all of them at each step.

    Args:
        forward: called as forward(ids[B, T], valid[B, T], pos[B, T]); returns logits [B, T, V], or
            a sequence whose first item they are.
        batch: rows.
        max_positions: positions that the model has, None for any number.
        vocabulary: number of token ids, None if it is not known.
        padding_counts: whether padding takes positions too.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Tensor, Tensor], Tensor | Sequence[Tensor]],
        *,
        batch: int = 1,
        max_positions: int | None = None,
        vocabulary: int | None = None,
        padding_counts: bool = False,
    ) -> None:
        self.forward, self.max_positions, self.vocabulary = forward, max_positions, vocabulary
        self.padding_counts = padding_counts
        self.stats = Stats()
        self.ids = torch.zeros(batch, 0, dtype=torch.int64)
        self.valid = torch.zeros(batch, 0, dtype=torch.bool)

    @property
    def batch(self) -> int:
        """Rows."""
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        """Tokens of each row so far, invalid ones included."""
        return self.ids.shape[1]

    @torch.no_grad()
    def feed(self, ids: Any, valid: Any = None, *, rows: Wanted = Rows.ALL) -> Tensor:
        """Put new tokens [B, N] at the end; returns the logits [B, R, V] of the wanted ones.

        Raises:
            InputError: ids out of range, shapes that do not fit, or more positions than there are.
        """
        new = as_ids(ids, self.vocabulary, self.batch)
        flags = as_valid(valid, new)
        wanted = as_rows(rows, *new.shape) + self.length
        all_ids = torch.cat([self.ids, new], dim=1)
        flags = torch.ones_like(new, dtype=torch.bool) if flags is None else flags
        all_valid = torch.cat([self.valid, flags], dim=1)
        counted = torch.ones_like(all_valid) if self.padding_counts else all_valid
        counts = counted.cumsum(1)
        check_positions(int(counts.max()), self.max_positions)
        start = time.perf_counter()
        found = self.forward(all_ids, all_valid, (counts - 1).clamp(min=0))
        logits = found if isinstance(found, Tensor) else found[0]
        self.stats.calls.append(Call(new.shape[1], self.length, time.perf_counter() - start))
        self.ids, self.valid = all_ids, all_valid
        return logits.gather(1, wanted[..., None].expand(-1, -1, logits.shape[-1]))

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens; raises `CacheError` if there are fewer."""
        if not 0 <= length <= self.length:
            raise CacheError(f"cannot crop to {length} tokens; the session holds {self.length}")
        self.ids, self.valid = self.ids[:, :length], self.valid[:, :length]
