"""What callers hand in, turned into tensors or refused with a sentence: ids, masks, prompts.

Everything here runs before any step, and returns new tensors; a caller's own are never written to.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elidir.backends.runtime.errors import InputError


@dataclass(frozen=True)
class Prompt:
    """Token ids i64[B, T], and their validity bool[B, T], or None when all are valid."""

    ids: Tensor
    valid: Tensor | None

    @property
    def longest(self) -> int:
        """The most valid tokens in a row."""
        return self.ids.shape[1] if self.valid is None else int(self.valid.sum(1).max())


def as_ids(ids: Any, vocabulary: int | None, batch: int | None = None) -> Tensor:
    """Return token ids as i64[B, T]; one row may come as one dimension.

    Raises:
        InputError: no tokens, no integers, another number of rows, or ids out of range.
    """
    found = _as_tensor(ids, "token ids")
    if found.dim() == 1:
        found = found[None]
    if found.dim() != 2:
        raise InputError(f"token ids are [tokens] or [rows, tokens], not {list(found.shape)}")
    if found.numel() == 0:
        raise InputError("the prompt is empty; give at least one token, such as bos_token_id")
    if found.is_floating_point() or found.dtype is torch.bool:
        raise InputError(f"token ids are integers, not {found.dtype}; convert them with .long()")
    if batch is not None and found.shape[0] != batch:
        raise InputError(
            f"expected {batch} rows of tokens, got {found.shape[0]}; start a new session"
        )
    found = found.to(torch.int64)
    _check_range(found, vocabulary)
    return found


def _as_tensor(item: Any, what: str) -> Tensor:
    if isinstance(item, Tensor):
        return item
    try:
        return torch.as_tensor(item)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{what} must be a tensor or lists of equal length; pad the shorter rows on the left"
        ) from None


def _check_range(ids: Tensor, vocabulary: int | None) -> None:
    low, high = (int(x) for x in torch.aminmax(ids))
    top = high if vocabulary is None else vocabulary - 1
    if low >= 0 and high <= top:
        return
    bad = low if low < 0 else high
    row, column = (ids == bad).nonzero()[0].tolist()
    known = "nonnegative" if vocabulary is None else f"from 0 to {top}"
    raise InputError(
        f"token id {bad} (row {row}, token {column}) is out of range: ids are {known}; use the "
        "tokenizer of this model"
    )


def as_valid(valid: Any, ids: Tensor, name: str = "valid") -> Tensor | None:
    """Return validity as bool of the ids' shape, or None when all tokens are valid.

    Raises:
        InputError: another shape, or values other than 0 and 1.
    """
    if valid is None:
        return None
    found = _as_tensor(valid, name)
    if found.dim() == 1:
        found = found[None]
    if found.shape != ids.shape:
        raise InputError(
            f"{name} has shape {list(found.shape)}, the token ids {list(ids.shape)}; give one "
            "value for each token"
        )
    flags = found != 0
    if found.dtype is not torch.bool and not torch.equal(flags.to(found.dtype), found):
        raise InputError(f"{name} must hold 0 (padding) and 1 (token) only")
    return None if bool(flags.all()) else flags


def as_prompt(
    ids: Any, mask: Any, vocabulary: int | None, padding: int | None, *, either_side: bool = False
) -> Prompt:
    """Return a prompt of padded rows.

    Args:
        ids: token ids of one row or several.
        mask: 1 for a token and 0 for padding, or None.
        vocabulary: the number of token ids, or None if it is not known.
        padding: with no mask, the id that marks padding, or None.
        either_side: whether padding may follow the tokens, no new ones being put there.

    Raises:
        InputError: no tokens, ids out of range, a mask that does not fit, or padding on the right.
    """
    found = as_ids(ids, vocabulary)
    if mask is None and padding is not None:
        mask = found != padding
    valid = as_valid(mask, found, "attention_mask")
    if valid is not None:
        _check_padding(valid, either_side=either_side)
    return Prompt(found, valid)


def _check_padding(valid: Tensor, *, either_side: bool) -> None:
    empty = ~valid.any(1)
    if bool(empty.any()):
        row = int(empty.nonzero()[0])
        raise InputError(f"row {row} of the prompt is all padding; give it at least one token")
    right = ~valid[:, -1]
    if bool(right.any()) and not either_side:
        row = int(right.nonzero()[0])
        raise InputError(
            f"row {row} of the prompt is padded on the right, where new tokens go; pad on the left "
            "(tokenizer.padding_side = 'left')"
        )


def check_positions(needed: int, available: int | None) -> None:
    """Raise `InputError` if a model has fewer positions than are needed."""
    if available is not None and needed > available:
        raise InputError(
            f"{needed} positions are needed and the model has {available}; shorten the text or "
            "start a new session"
        )
