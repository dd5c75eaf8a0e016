"""Bisecting: which rewrite of which pass makes a good module bad.

Every rewrite of a pipeline spends one unit of fuel, always in the same order, so the first bad one
is found by a binary search over the limit. A pass that changes a module without the rewriter spends
none; it is found by looking at what each pass made. What "good" means is the caller's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from elidir.ir import Fuel, Module
from elidir.passes.base import Pass, PassResult
from elidir.passes.errors import BisectError
from elidir.passes.instruments import Instrument
from elidir.passes.pipeline import Pipeline, PipelineLike

IsGood: TypeAlias = Callable[[Module], bool]


@dataclass(frozen=True)
class Culprit:
    """The first bad rewrite: the n-th of its pass, and the one that takes `fuel` in all.

    `nth` is 0 for a change that no rewriter made. The pass is `step`, what it was given `before`;
    `good` and `bad` are the modules without and with the change.
    """

    by: str
    nth: int
    at: str
    fuel: int
    step: Pass = field(repr=False)
    before: Module = field(repr=False)
    good: Module = field(repr=False)
    bad: Module = field(repr=False)

    def __str__(self) -> str:
        if not self.nth:
            return f"{self.by}, outside of the rewriter"
        return f"rewrite {self.nth} of {self.by}, at {self.at} (fuel {self.fuel})"


def bisect(module: Module, pipeline: PipelineLike, is_good: IsGood, **running: Any) -> Culprit:
    """Return the first rewrite that makes the module bad; raises `BisectError` if there is none.

    `running` is given to `Pipeline.run`, such as observations.
    """
    pipeline = Pipeline.of(pipeline)

    def made(limit: int | None) -> tuple[Fuel, Module]:
        fuel = Fuel(limit)
        return fuel, pipeline.run(module, fuel=fuel, **running).module

    full, result = made(None)
    if is_good(result):
        raise BisectError("the pipeline's result is good; there is nothing to bisect")
    if not is_good(made(0)[1]):
        return _without_fuel(module, pipeline, is_good, running)
    good, bad = 0, full.used
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_good(made(middle)[1]):
            good = middle
        else:
            bad = middle
    return _culprit(module, pipeline, bad, made(good)[1], running)


def _culprit(
    module: Module, pipeline: Pipeline, limit: int, good: Module, running: dict[str, Any]
) -> Culprit:
    fuel = Fuel(limit)
    steps = _Steps(fuel)
    bad = pipeline.run(module, fuel=fuel, instruments=[steps], **running).module
    by, _, at = fuel.log[-1].partition(" at ")
    nth = sum(entry.partition(" at ")[0] == by for entry in fuel.log)
    step, before = steps.spent[-1]
    return Culprit(by, nth, at, limit, step, before, good, bad)


def _without_fuel(
    module: Module, pipeline: Pipeline, is_good: IsGood, running: dict[str, Any]
) -> Culprit:
    if not is_good(module):
        raise BisectError("the module is bad without any rewrite; check the input")
    fuel = Fuel(0)
    steps = _Steps(fuel)
    pipeline.run(module, fuel=fuel, instruments=[steps], **running)
    step, before, after = next(row for row in steps.rows if not is_good(row[2]))
    return Culprit(step.name, 0, "", 0, step, before, before, after)


@dataclass
class _Steps(Instrument):
    """Remembers each pass that changed something, what it was given and what it made.

    `spent` holds those that spent fuel, with what they were given.
    """

    fuel: Fuel
    rows: list[tuple[Pass, Module, Module]] = field(default_factory=list)
    spent: list[tuple[Pass, Module]] = field(default_factory=list)
    _used: int = 0

    def before(self, step: Pass, module: Module) -> None:
        """Note the fuel."""
        self._used = self.fuel.used

    def after(self, step: Pass, module: Module, result: PassResult) -> None:
        """Note the pass, if it did something."""
        if result.module is not module:
            self.rows.append((step, module, result.module))
        if self.fuel.used > self._used:
            self.spent.append((step, module))
