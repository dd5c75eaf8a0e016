"""A module's work, walked once, and what it costs at any size on any target.

The work is symbolic; a phase only evaluates it, once for all targets. What is made of the figures
is up to `costing.py`.
"""

from collections.abc import Iterator
from functools import reduce
from operator import add

from elidir.cost_models.memory import Footprint, footprint
from elidir.cost_models.phases import (
    Line,
    Phase,
    Request,
    decode,
    evaluate_lines,
    has_cache,
    lines,
    prefill,
)
from elidir.cost_models.report import NotModelled
from elidir.cost_models.roofline import Confidence, Cost, Model
from elidir.cost_models.work import Arithmetic, Precision, sum_work
from elidir.ir import Function, Module, free_symbols


class Costing:
    """A module's work, walked once, and what it costs at any size on any target."""

    def __init__(self, module: Module, request: Request, precision: Precision) -> None:
        self.module, self.request, self.precision = module, request, precision
        self.function: Function = prefill(module, request).function
        self.lines = lines(module, self.function, precision)
        self._lines = {self.function.name: self.lines}
        self.evaluated: dict[str, list[Line]] = {}
        self.footprints: dict[str, Footprint] = {}

    def at(self, phase: Phase) -> list[Line]:
        """Return the lines in numbers; each size is evaluated once for all targets."""
        key = f"@{phase.function.name} {phase.bindings!r}"
        if key not in self.evaluated:
            self.evaluated[key] = evaluate_lines(self._of(phase.function), phase)
        return self.evaluated[key]

    def _of(self, function: Function) -> list[Line]:
        """Return the lines of a function: a prompt may be read by another than decodes."""
        if function.name not in self._lines:
            self._lines[function.name] = lines(self.module, function, self.precision)
        return self._lines[function.name]

    def held(self, phase: Phase) -> Footprint:
        """Return what a phase holds in memory; each size is walked once for all targets."""
        key = f"@{phase.function.name} {phase.bindings!r}"
        if key not in self.footprints:
            self.footprints[key] = footprint(self.module, phase, self.precision)
        return self.footprints[key]

    def costs(self, phase: Phase, model: Model) -> list[Cost]:
        """Return the cost of each line, all of its layers together."""
        return [_line_cost(line, model) for line in self.at(phase)]

    def cost(self, phase: Phase, model: Model) -> Cost:
        """Return the cost of a phase."""
        return model.phase(self.costs(phase, model))

    def arithmetics(self) -> set[Arithmetic]:
        """Return every class of arithmetic that the module does."""
        return {a for line in self.lines for w in line.works for a in w.flops}

    def not_modelled(self) -> tuple[NotModelled, ...]:
        """Return the ops whose arithmetic is unknown."""
        unknown = [line for line in self.lines if not line.modelled]
        return tuple(NotModelled(i.kind, i.path, len(i.works) * i.count) for i in unknown)

    def notes(self, dtype: str | None) -> tuple[str, ...]:
        """Return what holds on every target."""
        asked = f"counted in {dtype}, or in fewer bits if stored so"
        held = "read as stored" if dtype is None else asked
        notes = [
            f"weights are {held}; unpacking them costs no arithmetic",
            "attention is fused and counts every query-key pair; other ops pass values via memory",
            "efficiencies are not fitted to these ops: a roofline, right to its order of magnitude",
        ]
        if not has_cache(self.module):
            notes.append("there is no @step: without a cache each new token runs the whole forward")
        return (*notes, *self._guessed())

    def _guessed(self) -> Iterator[str]:
        """Yield a sentence for each symbol of the work that nobody gave a value."""
        work = sum_work(w for line in self.lines for w in line.works)
        entries = (work.total_flops, work.total_bytes, work.launches)
        used = set().union(*(free_symbols(d) for d in entries))
        asked = self.request
        phases = [prefill(self.module, asked)]
        if has_cache(self.module):
            phases.append(decode(self.module, asked, asked.cached))
        sizes = {name: phase.bindings[name] for phase in phases for name in phase.guessed}
        for name in sorted(used & sizes.keys()):
            usual = self.module.symbols[name].usual
            why = "as long as the prompt" if usual is None else "as is usual"
            yield f"{name} = {sizes[name]}, {why}: else give bindings"


def _line_cost(line: Line, model: Model) -> Cost:
    cost = reduce(add, (model.cost(w) for w in line.works), Cost()) * line.count
    return cost if line.modelled else cost.trusted(Confidence.LOW)
