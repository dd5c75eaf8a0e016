"""What several layers derive from one value, derived once per step.

Rotary tables and masks are made once and read by every layer; the form that a kernel wants of
them is remembered for the last few values seen (some models alternate between two masks), and is
of no use once they are gone.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import ref

import torch

T = TypeVar("T")

KEPT = 4


class Memo(Generic[T]):
    """A function of one tensor (and what goes with it) that remembers its last results."""

    def __init__(self, function: Callable[..., T]) -> None:
        self.function = function
        self._kept: tuple[tuple[Callable[[], Any], T], ...] = ()

    def __call__(self, tensor: torch.Tensor, *rest: Any) -> T:
        """Return the function's value; `rest` must always be the same for one tensor."""
        for seen, made in self._kept:
            if seen() is tensor:
                return made
        made = self.function(tensor, *rest)
        alive = tuple(pair for pair in self._kept if pair[0]() is not None)
        self._kept = ((ref(tensor), made), *alive[: KEPT - 1])
        return made
