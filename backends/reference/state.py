"""KV state ops, and the plainest state there is.

The kernels call whatever state they are given. `FunctionalKV` never changes its tensors and
makes new ones; the runtime has the state with preallocated storage.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from elidir.backends.protocol import Kernel
from elidir.backends.reference.registry import kernel
from elidir.backends.tokens import Tokens
from elidir.backends.weights import Weights
from elidir.ir import KvAppend, KvEvict, KvPositions, KvRead


@dataclass(frozen=True)
class FunctionalKV:
    """Keys and values [B, G, S, D]; appending copies, so every state stays as it was."""

    k: torch.Tensor
    v: torch.Tensor

    @classmethod
    def empty(
        cls, batch: int, heads: int, key_dim: int, value_dim: int, dtype: torch.dtype
    ) -> "FunctionalKV":
        """Return a state of no tokens."""
        keys = torch.empty(batch, heads, 0, key_dim, dtype=dtype)
        return cls(keys, torch.empty(batch, heads, 0, value_dim, dtype=dtype))

    def append(self, k: torch.Tensor, v: torch.Tensor) -> "FunctionalKV":
        """Return a longer state."""
        return FunctionalKV(torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2))

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all keys and values."""
        return self.k, self.v

    def extend(self, new: int) -> "FunctionalKV":
        """Return a longer state, its last tokens to be written."""
        k, v = (t.new_empty(*t.shape[:2], new, t.shape[3]) for t in (self.k, self.v))
        return self.append(k, v)

    def storage(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return keys and values, and their number."""
        return self.k, self.v, self.k.shape[2]


@dataclass(frozen=True, eq=False)
class PlacedFunctionalKV(FunctionalKV):
    """A placed state of a session without padding: each token stands where its number says.

    Args:
        numbers: i64[B, S], of the tokens in the session.
        start: how many came before the step.
    """

    numbers: torch.Tensor
    start: int
    number: ClassVar[int] = 0

    def append(
        self, k: torch.Tensor, v: torch.Tensor, tokens: Tokens | None = None
    ) -> "PlacedFunctionalKV":
        """Return a longer state."""
        new = torch.arange(self.start, self.start + k.shape[2])[None]
        new = (new if tokens is None else tokens.index).expand(len(k), -1)
        k, v = torch.cat([self.k, k], 2), torch.cat([self.v, v], 2)
        return replace(self, k=k, v=v, numbers=torch.cat([self.numbers, new], 1))

    def positions(self) -> torch.Tensor:
        """Return the numbers, which are positions."""
        return self.numbers

    ordinals = positions

    def valid(self) -> None:
        """Say that all are tokens."""

    def holds(self) -> torch.Tensor:
        """Return which tokens from before the step it holds, bool[B, S]."""
        there = torch.zeros(len(self.k), self.start, dtype=torch.bool)
        return there.scatter(1, self.numbers, True)

    def head_positions(self) -> torch.Tensor:
        """Return the positions of what each key head holds, i64[B, G, S]."""
        return self.numbers[:, None].expand(-1, self.k.shape[1], -1)

    def since(self) -> torch.Tensor:
        """Return the position after the first feed, which is all that came before the step."""
        return torch.full((len(self.k), 1), self.start)

    def evict(self, rule: KvEvict, scores: torch.Tensor | None = None) -> "PlacedFunctionalKV":
        """Return it as it is: what goes is gone when the next step comes."""
        return self


@kernel(KvAppend)
def append(op: KvAppend, weights: Weights) -> Kernel:
    """Put new keys and values at the end."""
    if op.tokens is not None:
        return lambda kv, k, v, tokens: kv.append(k, v, tokens)
    return lambda kv, k, v: kv.append(k, v)


@kernel(KvRead)
def read(op: KvRead, weights: Weights) -> Kernel:
    """All keys and values."""
    return lambda kv: kv.read()


@kernel(KvEvict)
def evict(op: KvEvict, weights: Weights) -> Kernel:
    """Leave the tokens that matter least; how many are new the state knows itself."""
    if op.scores is None:
        return lambda kv, *sizes: kv.evict(op)
    return lambda kv, scores, *sizes: kv.evict(op, scores)


@kernel(KvPositions)
def positions(op: KvPositions, weights: Weights) -> Kernel:
    """Positions of what is cached."""
    return lambda kv: kv.positions()
