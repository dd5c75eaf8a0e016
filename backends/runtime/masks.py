"""Which key slot each new token may see: bool[B, N, S + N], True where it may.

A mask of None says that every new token sees every slot. Triangles are cached by size and trees
by their parents, since a session asks for the same few again and again.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from elidir.backends.runtime.errors import InputError

_CACHED_ELEMENTS = 1 << 22


@dataclass(frozen=True, eq=False)
class Tree:
    """Drafted tokens that branch.

    Args:
        sees: bool[1 or B, N, N], whether a token is another's ancestor or itself.
        depth: i64[1 or B, N], the number of ancestors among the drafted tokens.
    """

    sees: Tensor
    depth: Tensor


def causal(new: int, cached: int) -> Tensor:
    """Return bool[1, new, cached + new]: each token sees all cached, itself and those before."""
    small = new * (cached + new) <= _CACHED_ELEMENTS
    return _cached_causal(new, cached) if small else _causal(new, cached)


def _causal(new: int, cached: int) -> Tensor:
    slots = torch.arange(cached + new)
    return slots <= slots[cached:, None].unsqueeze(0)


_cached_causal = lru_cache(maxsize=8)(_causal)


def tree(parents: Tensor) -> Tree:
    """Return the ancestry of drafted tokens.

    Args:
        parents: i64[N] or i64[B, N]; each token's parent among the new ones, which comes before it,
            or -1 for one that follows the cached text.

    Raises:
        InputError: a parent that does not come before its child.
    """
    rows = parents[None] if parents.dim() == 1 else parents
    if rows.dim() != 2:
        raise InputError(f"parents are [N] or [B, N], not {list(parents.shape)}")
    trees = [_tree(tuple(row)) for row in rows.tolist()]
    return Tree(torch.cat([t.sees for t in trees]), torch.cat([t.depth for t in trees]))


@lru_cache(maxsize=64)
def _tree(parents: tuple[int, ...]) -> Tree:
    for child, parent in enumerate(parents):
        if not -1 <= parent < child:
            raise InputError(
                f"token {child} of the draft has parent {parent}; a parent comes before its child, "
                "and -1 stands for the cached text"
            )
    sees = torch.eye(len(parents), dtype=torch.bool)
    for child, parent in enumerate(parents):
        if parent >= 0:
            sees[child] |= sees[parent]
    return Tree(sees[None], sees.sum(1)[None] - 1)


def step_mask(new: int, valid: Tensor, branches: Tree | None, *, dense: bool) -> Tensor | None:
    """Return the mask of a step over `new` tokens, None when every token sees every slot.

    An invalid token sees itself alone: no row of a softmax is empty, and what keys receive is of
    valid queries. No other token sees it.

    Args:
        new: tokens of this step.
        valid: bool[B, S + N] of all slots, cached then new.
        branches: the ancestry of the new tokens, None when they are one line.
        dense: whether all slots are known to be valid.
    """
    batch, slots = valid.shape
    if dense and branches is None:
        return None if new == 1 else causal(new, slots - new).expand(batch, -1, -1)
    order = causal(new, slots - new) if branches is None else _after(slots - new, branches.sees)
    mask = order & valid[:, None, :] & valid[:, slots - new :, None]
    mask.diagonal(slots - new, 1, 2).fill_(True)
    return mask


def _after(cached: int, sees: Tensor) -> Tensor:
    past = torch.ones(*sees.shape[:2], cached, dtype=torch.bool)
    return torch.cat([past, sees], dim=2)
