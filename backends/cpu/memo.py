"""What several layers derive from one value, derived once per step.

Rotary tables and masks are made once and read by every layer; the form that a kernel wants of
them is remembered for the last value seen, and forgotten with it.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import ref

import torch

T = TypeVar("T")


class Memo(Generic[T]):
    """A function of one tensor (and what goes with it) that remembers its last result."""

    def __init__(self, function: Callable[..., T]) -> None:
        self.function = function
        self._last: tuple[Any, T] | None = None

    def __call__(self, tensor: torch.Tensor, *rest: Any) -> T:
        """Return the function's value; `rest` must always be the same for one tensor."""
        last = self._last
        if last is not None and last[0]() is tensor:
            return last[1]
        made = self.function(tensor, *rest)
        self._last = (ref(tensor), made)
        return made
