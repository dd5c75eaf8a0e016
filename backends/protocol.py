"""What a backend is: it says which ops it takes, and makes one closure for each.

Here are the answers `Yes` and `No(reason)`, the protocols of backends and of KV state, and the
list of backends: built-in ones by name, third parties' by the entry point group
`elidir.backends`. No kernel lives here, and nothing here knows any backend but by its name.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import sympy
import torch

from elidir.backends.tokens import Tokens
from elidir.backends.weights import Weights
from elidir.ir import (
    Dim,
    ElidirError,
    KvEvict,
    Op,
    Opaque,
    Value,
    free_symbols,
    nearest,
    parse_dim,
)


@dataclass(frozen=True)
class Yes:
    """It can."""

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class No:
    """It cannot, and why."""

    reason: str

    def __bool__(self) -> bool:
        return False


Answer: TypeAlias = Yes | No

# Called with the values of the op's operands, then with the sizes of its `symbolic_dims`. Returns
# the result, or a tuple when the op has several.
Kernel: TypeAlias = Callable[..., Any]


class BackendError(ElidirError):
    """A backend cannot be found or cannot run here."""


class ExecutionError(ElidirError):
    """A program was given inputs that it cannot run on."""


class Backend(Protocol):
    """One way to run ops."""

    name: ClassVar[str]

    def available(self) -> Answer:
        """Say whether this machine can run it."""

    def supports(self, op: Op) -> Answer:
        """Say whether it takes this op, by its types and attributes."""

    def kernel(self, op: Op, weights: Weights) -> Kernel:
        """Return the closure that runs an op that it supports, its weights prepared."""


@dataclass(frozen=True, eq=False)
class Run:
    """Consecutive ops of a program: what they read from outside, and what is needed of them."""

    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


# Called with the sizes of symbols, a run's inputs, and a list that is given the seconds of each op,
# or None. Returns the outputs, or None where the ops must be run one by one.
RunKernel: TypeAlias = Callable[
    [dict[str, int], Sequence[Any], list[float] | None], tuple[Any, ...] | None
]


@runtime_checkable
class Joins(Protocol):
    """A backend that takes runs of consecutive ops as one call, whoever takes them one by one."""

    name: ClassVar[str]

    def runs(self, ops: Sequence[Op]) -> Sequence[range]:
        """Return the runs that it would take, as ranges of ops in order."""

    def join(self, run: Run, weights: Weights) -> RunKernel:
        """Return the closure of a run."""


class KVState(Protocol):
    """Cached keys and values of one attention, the value of a `kv` at run time."""

    def append(self, k: torch.Tensor, v: torch.Tensor) -> "KVState":
        """Return the state with [B, G, N, D] keys and values at its end; it may be itself."""

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all keys and values, [B, G, S, D] each."""

    def extend(self, new: int) -> "KVState":
        """Return the state with room for `new` tokens at its end, which the caller will write."""

    def storage(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return what keys and values [B, G, C, D] lie in, and how many of the C slots are used."""


class PlacedState(KVState, Protocol):
    """A state that keeps positions and validity of its own: the value of a placed `kv`."""

    def append(
        self, k: torch.Tensor, v: torch.Tensor, tokens: Tokens | None = None
    ) -> "PlacedState":
        """Return the state with more keys and values: the step's tokens', or a set's."""

    def positions(self) -> torch.Tensor:
        """Return the positions of what is cached, i64[B, S]."""

    def valid(self) -> torch.Tensor | None:
        """Return which cached slots hold a token, bool[B, S]; None where all do."""

    def ordinals(self) -> torch.Tensor:
        """Return the number in the session of what the first key head holds, i64[B, S]."""

    def holds(self) -> torch.Tensor:
        """Return which from before the step it holds, or are no tokens, bool[B, S]."""

    def head_positions(self) -> torch.Tensor:
        """Return the positions of what each key head holds, i64[B, G, S]."""

    def places(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ordinals i32[B, G, C] of slots, the positions i64[B, T] of those, and `since`."""

    def since(self) -> torch.Tensor:
        """Return the position after each row's first feed, i64[B, 1]."""

    number: int  # of the layer

    def evict(self, rule: KvEvict, scores: torch.Tensor | None = None) -> "PlacedState":
        """Return the state of which a rule evicts tokens; it may do so once the step is over."""


# ---- sizes that are known at run time only


def symbolic_dims(op: Op) -> tuple[sympy.Expr, ...]:
    """Return the distinct symbolic dimensions in an op's attributes, in order of appearance.

    What the op itself binds is left out.
    """
    items = json.loads(op.args) if isinstance(op, Opaque) else list(op.attributes().values())
    found = dict.fromkeys(d for d in _dims_in(items) if not isinstance(d, int))
    return tuple(d for d in found if not free_symbols(d) & op.bound().keys())


def _dims_in(item: Any) -> Iterator[Dim]:
    if isinstance(item, sympy.Expr):
        yield item
    elif isinstance(item, dict) and set(item) == {"dim"}:
        yield parse_dim(item["dim"])
    elif isinstance(item, dict):
        for inner in item.values():
            yield from _dims_in(inner)
    elif isinstance(item, tuple | list):
        for inner in item:
            yield from _dims_in(inner)


def sizes_of(op: Op, dims: tuple[Dim, ...]) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    """Return a function from the sizes of `symbolic_dims(op)` to the sizes of `dims`."""
    if all(isinstance(d, int) for d in dims):
        fixed = tuple(int(d) for d in dims)
        return lambda sizes: fixed
    known = symbolic_dims(op)
    picks = [(-1, d) if isinstance(d, int) else (known.index(d), 0) for d in dims]
    return lambda sizes: tuple(n if i < 0 else sizes[i] for i, n in picks)


# ---- the list of backends

_BUILT_IN = {
    "cpu": "elidir.backends.cpu:CpuBackend",
    "reference": "elidir.backends.reference:ReferenceBackend",
}
GROUP = "elidir.backends"


@cache
def backend(name: str) -> Backend:
    """Return a backend by name; raises `BackendError` with the nearest name."""
    known = backend_names()
    if name not in known:
        raise BackendError(f"there is no backend '{name}'{nearest(name, known)}")
    module, _, attribute = known[name].partition(":")
    made: Backend = getattr(import_module(module), attribute)()
    return made


def backend_names() -> dict[str, str]:
    """Return every known backend with the place it is loaded from."""
    known = dict(_BUILT_IN)
    for point in entry_points(group=GROUP):
        if known.setdefault(point.name, point.value) != point.value:
            raise BackendError(f"two packages bring a backend '{point.name}'; uninstall one")
    return known
