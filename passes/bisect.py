"""Bisecting: which rewrite of which pass makes a good module bad.

Every rewrite of a pipeline spends one unit of fuel, always in the same order, so the first bad one
is found by a binary search over the limit. What "good" means is the caller's.
"""

from collections.abc import Callable
from dataclasses import dataclass

from elidir.ir import Fuel, Module
from elidir.passes.errors import BisectError
from elidir.passes.pipeline import Pipeline, PipelineLike


@dataclass(frozen=True)
class Culprit:
    """The first bad rewrite: the n-th of its pass, and the one that takes `fuel` in all."""

    by: str
    nth: int
    at: str
    fuel: int

    def __str__(self) -> str:
        return f"rewrite {self.nth} of {self.by}, at {self.at} (fuel {self.fuel})"


def bisect(module: Module, pipeline: PipelineLike, is_good: Callable[[Module], bool]) -> Culprit:
    """Return the first rewrite that makes the module bad; raises `BisectError` if there is none."""
    pipeline = Pipeline.of(pipeline)
    full = Fuel()
    if is_good(pipeline.run(module, fuel=full).module):
        raise BisectError("the pipeline's result is good; there is nothing to bisect")
    if not is_good(pipeline.run(module, fuel=Fuel(0)).module):
        raise BisectError(
            "the module is bad without any rewrite; check the input, or passes that spend no fuel"
        )
    good, bad = 0, full.used
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_good(pipeline.run(module, fuel=Fuel(middle)).module):
            good = middle
        else:
            bad = middle
    return _culprit(module, pipeline, bad)


def _culprit(module: Module, pipeline: Pipeline, limit: int) -> Culprit:
    fuel = Fuel(limit)
    pipeline.run(module, fuel=fuel)
    by, _, at = fuel.log[-1].partition(" at ")
    nth = sum(entry.partition(" at ")[0] == by for entry in fuel.log)
    return Culprit(by, nth, at, limit)
