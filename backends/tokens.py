"""A set of tokens at run time, the value of the IR's `TokenSet`.

Which tokens are chosen is decided by a kernel; here is what a set is and how it takes them along.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tokens:
    """Some tokens of each row, in their order, filling first.

    Args:
        index: i64[B, K], the place of each among those it was chosen from; 0 for filling.
        valid: bool[B, K], False for filling; None where there is none.
    """

    index: Tensor
    valid: Tensor | None = None

    def __len__(self) -> int:
        return self.index.shape[1]

    def is_valid(self) -> Tensor:
        """Return which are no filling, bool[B, K]."""
        if self.valid is not None:
            return self.valid
        return torch.ones(self.index.shape, dtype=torch.bool)

    def within(self, outer: "Tokens") -> "Tokens":
        """Return this set of another's tokens as a set of what that one was chosen from."""
        index = outer.index.gather(1, self.index)
        if outer.valid is None:
            return Tokens(index, self.valid)
        return Tokens(index, self.is_valid() & outer.valid.gather(1, self.index))

    def followed(self, index: Tensor, valid: Tensor | None) -> "Tokens":
        """Return a set of these and then of others i64[B, R] of the same whole."""
        both = torch.cat([self.index.expand(len(index), -1), index], 1)
        if self.valid is None and valid is None:
            return Tokens(both)
        known = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
        return Tokens(both, torch.cat([self.is_valid().expand(len(index), -1), known], 1))

    def find(self, rows: Tensor) -> Tensor:
        """Return where tokens i64[B, R] of the whole stand in this set, which must hold them."""
        same = self.index[:, None, :] == rows[:, :, None]
        if self.valid is not None:
            same &= self.valid[:, None, :]
        return same.to(torch.int8).argmax(-1)


def take(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Return the tokens i64[B, R] of each batch row of x along an axis."""
    if x.shape[axis] == index.shape[1] == 1 and len(index) in (1, len(x)):
        return x  # the only one there is
    if len(index) == 1:
        return x.index_select(axis, index[0])
    shape = [1] * x.dim()
    shape[0], shape[axis] = index.shape
    wanted = list(x.shape)
    wanted[0], wanted[axis] = index.shape
    return x.expand(len(index), *x.shape[1:]).gather(axis, index.view(shape).expand(wanted))
