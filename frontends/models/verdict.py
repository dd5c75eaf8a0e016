"""Verdicts: what is wrong with a module, by running it beside the one that passes began from.

Three kinds of judge: numbers that are off, the first greedy token that flips, a bound on quality
that is missed. Exact passes are judged by the first, all others by one of the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp
from typing import Protocol, TypeAlias

from torch import Tensor

from elidir.frontends.evaluation import Bound, read_bounds
from elidir.frontends.evaluation.scoring import compare
from elidir.frontends.numerics import Oracle
from elidir.ir import ElidirError, Embed, Module, nearest

NUMBERS, TOKENS = "numbers", "tokens"


class Wrong(Protocol):
    """What is wrong, as text, and in which function."""

    @property
    def function(self) -> str:
        """The function."""


Judge: TypeAlias = Callable[[Module], Wrong | None]


@dataclass(frozen=True)
class Flip:
    """The first greedy token that is another: the one that follows `position` in the text."""

    function: str
    position: int
    old: int
    new: int

    def said(self, text: Callable[[int], str] = lambda token: "") -> str:
        """Return it in words, the tokens with their text."""
        old, new = (f"{t} {text(t)!r}" if text(t) else str(t) for t in (self.old, self.new))
        after = f"the first greedy token to flip follows position {self.position}"
        return f"{after}: {old} becomes {new}"

    def __str__(self) -> str:
        return self.said()


@dataclass(frozen=True)
class Beyond:
    """A bound on quality that is missed."""

    function: str
    bound: Bound
    value: float

    def __str__(self) -> str:
        return f"{self.bound} is missed, {self.bound.metric} is {self.value:.3g}"


def judge(by: str, oracle: Oracle) -> Judge:
    """Return the judge of a name, or of bounds on quality such as `kl<=0.02`.

    Raises:
        ElidirError: it is neither, or needs tokens and the module reads none.
    """
    bounds = read_bounds(by) if "=" in by else ()
    if not bounds and by not in (NUMBERS, TOKENS):
        raise ElidirError(f"there is no judge '{by}'{nearest(by, (NUMBERS, TOKENS))}")
    if by == NUMBERS:
        return oracle.difference
    if not reads_tokens(oracle.module):
        raise ElidirError(
            f"the module gives no score to each token, so it cannot be judged by {by}; "
            f"use {NUMBERS}"
        )
    if bounds:
        return lambda module: first_missed(bounds, module, oracle)
    return lambda module: first_flip(module, oracle)


def reads_tokens(module: Module) -> bool:
    """Whether `@forward` reads token ids [B, T] and gives scores [B, T, V] of each token."""
    if "forward" not in module.functions:
        return False
    region = module["forward"].region
    ids = {p for p in region.params if p.name == "ids"}
    tables = [o.table for o in region.ops if isinstance(o, Embed) and o.ids in ids]
    dims = getattr(region.results[0].type, "dims", ()) if region.results else ()
    size = dims[-1] if len(dims) == 3 and isinstance(dims[-1], int) else 0
    return any(size >= table.type.dims[0] for table in tables)


def first_flip(module: Module, oracle: Oracle) -> Flip | None:
    """Return the first greedy token that is not what it was, in any function; None if none is."""
    for name, found, wanted in oracle.compared(module):
        a, b = wanted[0].argmax(-1), found[0].argmax(-1)
        if a.shape == b.shape and (a != b).any():
            row, at = (a != b).nonzero()[(a != b).nonzero()[:, 1].argmin()].tolist()
            return Flip(name, at, int(a[row, at]), int(b[row, at]))
    return None


def first_missed(bounds: Sequence[Bound], module: Module, oracle: Oracle) -> Beyond | None:
    """Return the first bound that a function misses on the text; None if all hold."""
    for name, found, wanted in oracle.compared(module):
        if found[0].shape != wanted[0].shape:
            continue
        values = _quality(wanted[0], found[0], oracle.ids)
        if wrong := [b for b in bounds if not b.holds(values[b.metric])]:
            return Beyond(name, wrong[0], values[wrong[0].metric])
    return None


def _quality(wanted: Tensor, found: Tensor, ids: Tensor) -> dict[str, float]:
    """Return means over a text i64[B, T]; what follows its last token is not known."""
    means = compare(wanted[:, :-1], found[:, :-1], ids[:, 1:]).mean((1, 2))
    kl, top1, nll, nll_found = means.tolist()
    return {"kl": kl, "top1": top1, "ppl": exp(nll_found), "ppl_ratio": exp(nll_found - nll)}
