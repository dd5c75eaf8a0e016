"""The order of passes: each must come at a stage that it can run at.

What a pass requires and produces is on its class; here a list of passes is walked from the stage of
a module, and where it cannot run, the nearest order that can is looked for and named.
"""

from collections.abc import Iterator, Sequence

from elidir.ir import Stage
from elidir.passes.base import Pass
from elidir.passes.errors import PipelineError
from elidir.passes.registry import passes


def check_order(steps: Sequence[Pass], stage: Stage) -> None:
    """Raise `PipelineError` with the nearest legal order if a pass comes at the wrong stage."""
    wrong = violations(steps, stage)
    if not wrong:
        return
    at, found = wrong[0]
    needed = " or ".join(s.value for s in steps[at].stages)
    raise PipelineError(
        f"pass '{steps[at].name}' needs a module of stage {needed}, but gets {found.value} there"
        f"{_advice(nearest_order(steps, stage))}"
    )


def _advice(order: Sequence[Pass] | None) -> str:
    if order is None:
        return "; no order of these passes can run, so leave it out"
    return f"; write: {', '.join(map(str, order))}"


def violations(steps: Sequence[Pass], stage: Stage) -> list[tuple[int, Stage]]:
    """Return each index at which a pass cannot run, with the stage it would get."""
    wrong = []
    for i, step in enumerate(steps):
        if stage not in step.stages:
            wrong.append((i, stage))
        elif step.produces is not None:
            stage = step.produces
    return wrong


def nearest_order(steps: Sequence[Pass], stage: Stage) -> Sequence[Pass] | None:
    """Return an order without violations, by moving passes and adding producers of a stage."""
    while wrong := violations(steps, stage):
        better = (s for s in _moves(steps, wrong[0][0]) if len(violations(s, stage)) < len(wrong))
        found = next(better, None)
        if found is None:
            return None
        steps = found
    return steps


def _moves(steps: Sequence[Pass], at: int) -> Iterator[Sequence[Pass]]:
    """Yield the orders one move away, the nearest first; a pass to add comes last."""
    rest = [*steps[:at], *steps[at + 1 :]]
    for to in sorted(range(len(steps)), key=lambda i: abs(i - at)):
        yield [*rest[:to], steps[at], *rest[to:]]
    for cls in passes().values():
        if cls.produces in steps[at].stages:
            yield [*steps[:at], cls(), *steps[at:]]
