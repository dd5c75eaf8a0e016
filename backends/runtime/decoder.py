"""What generation needs of a model: tokens go in, logits come out, the past is kept.

`Decoder` is the protocol; `Session` keeps a KV cache and `CachelessSession` runs the whole sequence
again. Here too are the choice of rows and the counters that both share. No model runs here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from elidir.backends.runtime.errors import InputError


class Rows(Enum):
    """Which of the new tokens' logits are wanted."""

    ALL = "all"
    LAST = "last"


Wanted: TypeAlias = Rows | Tensor | Sequence[int]


class Decoder(Protocol):
    """A sequence under way, in `batch` rows."""

    stats: "Stats"

    @property
    def batch(self) -> int:
        """Rows."""

    @property
    def length(self) -> int:
        """Tokens of each row so far, invalid ones included."""

    def feed(self, ids: Any, valid: Any = None, *, rows: Wanted = Rows.ALL) -> Tensor:
        """Put new tokens [B, N] at the end; returns the logits [B, R, V] of the wanted ones."""

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""


@dataclass(frozen=True)
class Call:
    """One step: new tokens in each row, tokens that were there, seconds."""

    new: int
    past: int
    seconds: float


@dataclass
class Stats:
    """What a decoder has done, and the bytes that its cache holds.

    `layer_tokens` counts the tokens that each layer with a cache was given in each row.
    """

    calls: list[Call] = field(default_factory=list)
    kv_bytes: int = 0
    layer_tokens: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens fed in each row, over all steps."""
        return sum(c.new for c in self.calls)

    @property
    def seconds(self) -> float:
        """Seconds in the model, over all steps."""
        return sum(c.seconds for c in self.calls)

    @property
    def counts(self) -> dict[str, Any]:
        """What was done, as plain data; layers per token are those with a cache."""
        layers = sum(self.layer_tokens) / max(self.tokens, 1)
        return {
            "tokens": self.tokens,
            "steps": len(self.calls),
            "seconds": self.seconds,
            "kv_bytes": self.kv_bytes,
            "layer_tokens": list(self.layer_tokens),
            "layers_per_token": layers,
        }


def as_rows(wanted: Wanted, batch: int, new: int) -> Tensor:
    """Return the indices of the wanted rows among the new ones, i64[B, R].

    Raises:
        InputError: an index that is not one of the new tokens'.
    """
    if isinstance(wanted, Rows):
        return _known_rows(wanted, batch, new)
    rows = torch.as_tensor(wanted, dtype=torch.int64)
    rows = rows.expand(batch, -1) if rows.dim() == 1 else rows
    if rows.dim() != 2 or rows.shape[0] != batch or not rows.numel():
        raise InputError(f"rows are [R] or [{batch}, R], not {list(rows.shape)}")
    if not 0 <= int(rows.min()) <= int(rows.max()) < new:
        raise InputError(f"rows must be from 0 to {new - 1}: they name the tokens of this step")
    return rows


@lru_cache(maxsize=32)
def _known_rows(wanted: Rows, batch: int, new: int) -> Tensor:
    first = new - 1 if wanted is Rows.LAST else 0
    return torch.arange(first, new).expand(batch, -1).contiguous()
