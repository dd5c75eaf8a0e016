"""Finding the pass and the rewrite that make a module compute something else, by running it.

The search is `elidir.passes.bisect`; here are the judgement, by an `Oracle`, and the smallest
pipeline and module that show the mistake again.
"""

from dataclasses import dataclass, field

from elidir.frontends.numerics import Oracle
from elidir.ir import Fuel, Module
from elidir.passes import (
    Culprit,
    Instrument,
    Pass,
    Pipeline,
    bisect,
    reproducer_text,
)


@dataclass(frozen=True)
class Finding:
    """The rewrite, what it does to the numbers, and a file's text that `elidir opt` runs."""

    culprit: Culprit
    what: str
    reproducer: str

    def __str__(self) -> str:
        c = self.culprit
        return (
            f"{_ordinal(c.nth)} rewrite of pass '{c.by}' breaks the module, at {c.at}: {self.what}"
        )


def find_culprit(module: Module, pipeline: Pipeline, oracle: Oracle) -> Finding:
    """Return the first rewrite of a pipeline after which the oracle finds a difference.

    Raises:
        BisectError: the result is good, or bad without any rewrite.
    """
    culprit = bisect(module, pipeline, lambda made: oracle.difference(made) is None)
    steps = _Steps(Fuel(culprit.fuel))
    result = pipeline.run(module, fuel=steps.fuel, instruments=[steps])
    what = str(oracle.difference(result.module))
    step, before = steps.last_to_spend()
    return Finding(culprit, what, reproducer_text(Pipeline((step,)), before, what))


@dataclass
class _Steps(Instrument):
    """Remembers each pass, the module it was given and the fuel that was spent before it."""

    fuel: Fuel
    rows: list[tuple[int, Pass, Module]] = field(default_factory=list)

    def before(self, step: Pass, module: Module) -> None:
        """Note the pass."""
        self.rows.append((self.fuel.used, step, module))

    def last_to_spend(self) -> tuple[Pass, Module]:
        """Return the pass that spent the last unit of fuel, and its input."""
        return next((s, m) for used, s, m in reversed(self.rows) if used < self.fuel.used)


def _ordinal(n: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(n % 10 if n % 100 not in (11, 12, 13) else 0, "th")
    return f"the {n}{ending}"
