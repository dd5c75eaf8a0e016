"""Instruments: what happens between two passes - verify, time, print, dump, skip, history, cost.

An instrument watches or holds back a pass, never changes a module, and prints nothing itself. One
that executes the module belongs to the frontends; it has the same protocol.
"""

import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from elidir.ir import Module, nearest, verify
from elidir.passes.base import Pass, PassResult
from elidir.passes.errors import PipelineError
from elidir.passes.pipeline import Pipeline


class Instrument:
    """Base of instruments; each hook does nothing unless it is overridden."""

    def enter(self, pipeline: Pipeline, module: Module) -> None:
        """Called once before the first pass."""

    def exit(self, module: Module) -> None:
        """Called once after the last pass, with what came out."""

    def should_run(self, step: Pass, module: Module) -> bool:
        """Whether a pass may run; one that may not is remarked as skipped."""
        return True

    def before(self, step: Pass, module: Module) -> None:
        """Called before a pass runs."""

    def after(self, step: Pass, module: Module, result: PassResult) -> None:
        """Called after a pass ran on `module`; `result.module` is that object if unchanged."""


class Verify(Instrument):
    """Checks the module that comes in, and each that a pass makes."""

    def enter(self, pipeline: Pipeline, module: Module) -> None:
        """Verify the input."""
        verify(module)

    def after(self, step: Pass, module: Module, result: PassResult) -> None:
        """Verify what the pass made, if it made something."""
        if result.module is not module:
            verify(result.module)


@dataclass
class Time(Instrument):
    """Measures each pass: `rows` holds (name, seconds) in the order they ran."""

    rows: list[tuple[str, float]] = field(default_factory=list)
    _start: float = 0.0

    def before(self, step: Pass, module: Module) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def after(self, step: Pass, module: Module, result: PassResult) -> None:
        """Stop it."""
        self.rows.append((step.name, time.perf_counter() - self._start))


@dataclass
class Print(Instrument):
    """Hands the text of each changed module to `write`, under a line that names the pass."""

    write: Callable[[str], object]

    def after(self, step: Pass, module: Module, result: PassResult) -> None:
        """Write the module if it changed."""
        if result.module is not module:
            self.write(f"// after {step}\n{result.module}")


@dataclass
class Dump(Instrument):
    """Writes `000_input.ir` and a numbered file for each pass that changed the module.

    Dumps of an earlier run are replaced; a folder with any other file in it is refused.
    """

    folder: Path
    _count: int = 0

    def __post_init__(self) -> None:
        """Look into the folder before any work."""
        if self.folder.exists() and not self.folder.is_dir():
            raise PipelineError(f"cannot dump to {self.folder}, which is a file; name a folder")
        names = [p.name for p in self.folder.iterdir()] if self.folder.exists() else []
        if foreign := [n for n in sorted(names) if not _DUMPED.fullmatch(n)]:
            raise PipelineError(
                f"cannot dump to {self.folder}, which holds {foreign[0]}; name an empty folder"
            )

    def enter(self, pipeline: Pipeline, module: Module) -> None:
        """Clear the folder and write the input."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("*_*.ir"):
            old.unlink()
        self._count = 0
        self._write("input", module)

    def after(self, step: Pass, module: Module, result: PassResult) -> None:
        """Count the pass, and write the module if it changed."""
        self._count += 1
        if result.module is not module:
            self._write(step.name, result.module)

    def _write(self, name: str, module: Module) -> None:
        path = self.folder / f"{self._count:03}_{name}.ir"
        path.write_text(str(module), encoding="utf-8")


_DUMPED = re.compile(r"\d{3,}_[a-z][a-z0-9\-]*\.ir")


@dataclass
class Skip(Instrument):
    """Holds back the passes of some names; a name that the pipeline does not have is an error."""

    names: Collection[str]

    def enter(self, pipeline: Pipeline, module: Module) -> None:
        """Check the names."""
        if unknown := sorted(set(self.names) - pipeline.names()):
            hint = nearest(unknown[0], pipeline.names())
            raise PipelineError(
                f"cannot skip '{unknown[0]}', which the pipeline does not name{hint}"
            )

    def should_run(self, step: Pass, module: Module) -> bool:
        """Return False for the passes to skip."""
        return step.name not in self.names


@dataclass
class History(Instrument):
    """Keeps the module after each pass that changed it: `rows` holds (pass text, module)."""

    rows: list[tuple[str, Module]] = field(default_factory=list)

    def enter(self, pipeline: Pipeline, module: Module) -> None:
        """Keep the input."""
        self.rows.append(("input", module))

    def after(self, step: Pass, module: Module, result: PassResult) -> None:
        """Keep what the pass made."""
        if result.module is not module:
            self.rows.append((str(step), result.module))


Cost = Mapping[str, float]


@dataclass(frozen=True)
class CostRow:
    """The cost before and after one pass that changed the module."""

    name: str
    before: Cost
    after: Cost

    def delta(self, key: str) -> float:
        """Return how much one figure rose."""
        return self.after[key] - self.before[key]


@dataclass
class CostDelta(Instrument):
    """Costs each changed module with the function handed in: the waterfall of a report."""

    cost: Callable[[Module], Cost]
    rows: list[CostRow] = field(default_factory=list)
    _last: Cost = field(default_factory=dict)

    def enter(self, pipeline: Pipeline, module: Module) -> None:
        """Cost the input."""
        self._last = self.cost(module)

    def after(self, step: Pass, module: Module, result: PassResult) -> None:
        """Cost what the pass made."""
        if result.module is module:
            return
        cost = self.cost(result.module)
        self.rows.append(CostRow(step.name, self._last, cost))
        self._last = cost
