"""The prompt of a vision-language model: words, and what is left of the tokens of pictures.

Placeholders whose tokens were dropped go; the others become ids behind the vocabulary, each of
which names a row of a table of features. Nothing runs here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elidir.frontends import NEWLINE
from elidir.ir import ElidirError


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt over words and features.

    Args:
        ids: i64[B, T]; from the number of words on, rows of `table`.
        valid: bool[B, T].
        positions: i64[B, T] where each token stood before others were dropped.
        table: the features of all pictures f[F, D], and the newline behind them.
        dropped: how much shorter the rows are than they were given.
    """

    ids: Tensor
    valid: Tensor
    positions: Tensor
    table: Tensor
    dropped: int

    @property
    def top(self) -> int:
        """Positions that it takes where its tokens keep their own."""
        return int(self.positions.max()) + 1

    @property
    def gap(self) -> int:
        """By how much those are more than its tokens."""
        return self.top - int(self.valid.sum(1).max())

    def placed(self, counted: Tensor) -> Tensor:
        """Return positions i64[B, T] of the tokens so far, from counted ones: the prompt's own."""
        own = self.positions[:, : counted.shape[1]]
        width = own.shape[1]
        gap = own[:, -1:] - counted[:, width - 1 : width]
        return torch.cat((own, counted[:, width:] + gap), dim=1)


@dataclass(frozen=True, eq=False)
class Seen:
    """Features of one picture [K, D], and which of its tokens they are."""

    features: Tensor
    index: Tensor


def partitions(pixels: Tensor, counts: list[int]) -> Sequence[Tensor]:
    """Return those of each picture, of pixels that have them apart or one behind the other.

    Raises `ElidirError` if pixels have fewer.
    """
    if pixels.dim() == 4 and sum(counts) == len(pixels):
        return pixels.split(counts)
    if pixels.dim() == 4 or pixels.shape[1] < max(counts):
        raise ElidirError(
            f"pictures of these sizes have {counts} partitions, but pixels are "
            f"{list(pixels.shape)}; make both with the model's processor"
        )
    return [each[:count] for each, count in zip(pixels, counts, strict=True)]


def with_newlines(places: Tensor, layout: Tensor, newline: int, whole_picture: int) -> Tensor:
    """Return places with the newline's row where all of the row before it is left.

    The first tokens, those of the whole picture made small, stand before the rows and in none.
    """
    found, whole = places.clone(), True
    for i, (place, what) in enumerate(zip(places.tolist(), layout.tolist(), strict=True)):
        if what == NEWLINE:
            found[i], whole = (newline if whole else -1), True
        elif what >= whole_picture:
            whole &= place >= 0
    return found


def spliced(
    ids: Tensor, valid: Tensor, image: int, words: int, places: Tensor, table: Tensor
) -> Prompt:
    """Put rows of a table in the place of placeholders, and leave out those that have none.

    Args:
        ids: i64[B, T], where `image` is a placeholder.
        valid: bool[B, T].
        image: the id of a placeholder.
        words: the number of words, behind which rows of the table are numbered.
        places: i64[N] a row of the table for each placeholder, -1 for none.
        table: features f[F, D].

    Raises `ElidirError` if there are not as many placeholders as places.
    """
    marks = ids == image
    if int(marks.sum()) != len(places):
        raise ElidirError(
            f"the prompt has {int(marks.sum())} tokens for pictures (id {image}), but the pictures "
            f"have {len(places)}; make both with the model's processor"
        )
    new, stays = ids.clone(), valid.clone()
    new[marks] = torch.where(places >= 0, words + places, 0)
    stays[marks] = places >= 0
    at = (valid.cumsum(1) - 1).clamp(min=0)
    order = stays.long().argsort(dim=1, stable=True)  # what is left stands at the end, in order
    width = int(stays.sum(1).max())
    kept = order[:, ids.shape[1] - width :]
    found = (x.gather(1, kept) for x in (new, stays, at))
    left, flags, positions = found
    return Prompt(
        left.masked_fill(~flags, 0), flags, positions * flags, table, ids.shape[1] - width
    )
