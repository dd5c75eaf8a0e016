"""Features of pictures among the words of a prompt: token ids behind the vocabulary name them.

A session, its cache and the generation loop go on as over words alone. Only the program that reads
tokens is another where some of them are features: it takes embeddings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elidir.backends.runtime.decoder import Decoder, Rows, Stats, Wanted


@dataclass(frozen=True, eq=False)
class Reader:
    """A step or a forward whose ids from `words` on name rows of a table of features.

    Args:
        run: over ids; called where all of them are words.
        read: the same over embeddings.
        embed: returns embeddings f[B, N, D] of ids i64[B, N], as its first result.
        words: the number of words.
        features: f[F, D]; id `words + i` is row i.
    """

    run: Any
    read: Callable[..., Sequence[Any]]
    embed: Callable[[Tensor], Sequence[Any]]
    words: int
    features: Tensor

    @property
    def params(self) -> Any:
        """The parameters of the program over ids."""
        return self.run.params

    def __call__(self, ids: Tensor, *rest: Any) -> Sequence[Any]:
        """Run what fits the ids."""
        named = ids >= self.words
        if not bool(named.any()):
            found: Sequence[Any] = self.run(ids, *rest)
            return found
        embeds = self.embed(ids.masked_fill(named, 0))[0].clone()
        embeds[named] = self.features[ids[named] - self.words].to(embeds.dtype)
        return self.read(embeds, *rest)


@dataclass(frozen=True, eq=False)
class AtPositions:
    """A decoder whose first tokens stand at positions i64[B, N] of their own."""

    decoder: Any
    positions: Tensor

    @property
    def stats(self) -> Stats:
        """Those of the decoder."""
        found: Stats = self.decoder.stats
        return found

    @property
    def batch(self) -> int:
        """Rows."""
        return int(self.decoder.batch)

    @property
    def length(self) -> int:
        """Tokens of each row so far, invalid ones included."""
        return int(self.decoder.length)

    def feed(self, ids: Any, valid: Any = None, *, rows: Wanted = Rows.ALL) -> Tensor:
        """Put new tokens at the end, as `Decoder.feed` does."""
        start = self.length
        given = self.positions[:, start : start + torch.as_tensor(ids).shape[-1]]
        positions = given if given.shape[1] else None
        found: Tensor = self.decoder.feed(ids, valid, positions=positions, rows=rows)
        return found

    def crop(self, length: int) -> None:
        """Forget all but the first tokens."""
        self.decoder.crop(length)


def at_positions(decoder: Decoder, positions: Tensor) -> Decoder:
    """Return a session whose prompt stands at positions i64[B, N]; later tokens are counted on."""
    return AtPositions(decoder, positions)
