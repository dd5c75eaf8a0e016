"""Runs a pipeline: each pass in turn, instruments between them, a reproducer if one fails.

Everything that is not a pass's own work happens here or in an instrument. A fixpoint stops when a
round returns the very module that it began with.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from elidir.ir import ElidirError, Fuel, Module, VerifyError
from elidir.passes.base import Context, Missed, Pass, PassResult
from elidir.passes.errors import PassError, PipelineError
from elidir.passes.instruments import Instrument, Verify
from elidir.passes.pipeline import Fixpoint, Pipeline, PipelineResult, Record, Step
from elidir.passes.reproducer import reproducer_text


class Runner:
    """One run of one pipeline: the instruments, and what they and the passes share."""

    def __init__(
        self,
        instruments: Sequence[Instrument] | None,
        fuel: Fuel,
        target: str,
        observations: Mapping[str, Any],
        crash_dir: Path | None,
        reader: Module | None = None,
    ) -> None:
        self.instruments = (Verify(),) if instruments is None else tuple(instruments)
        self.fuel, self.target, self.observations = fuel, target, observations
        self.crash_dir, self.reader = crash_dir, reader
        self.records: list[Record] = []
        self.accounted: set[str] = set()
        self.analyses: dict[Any, Any] = {}

    def run(self, pipeline: Pipeline, module: Module) -> PipelineResult:
        """Run the pipeline; raises if a pass that it names neither ran nor said why not."""
        for instrument in self.instruments:
            instrument.enter(pipeline, module)
        module = self._steps(pipeline.steps, module, ())
        if silent := pipeline.names() - self.accounted:
            raise PipelineError(f"pass '{min(silent)}' is named but did not run; report this")
        for instrument in self.instruments:
            instrument.exit(module)
        return PipelineResult(module, tuple(self.records))

    def _steps(self, steps: tuple[Step, ...], module: Module, rest: tuple[Step, ...]) -> Module:
        for i, step in enumerate(steps):
            after = (*steps[i + 1 :], *rest)
            if isinstance(step, Fixpoint):
                module = self._fixpoint(step, module, after)
            else:
                module = self._pass(step, module, after)
        return module

    def _fixpoint(self, loop: Fixpoint, module: Module, rest: tuple[Step, ...]) -> Module:
        for left in reversed(range(loop.limit)):
            again = (replace(loop, limit=left),) if left else ()
            new = self._steps(loop.steps, module, (*again, *rest))
            if new is module:
                return module
            module = new
        if loop.limit > 1:
            reason = f"still changing after {loop.limit} rounds"
            missed = Missed("fixpoint", reason, remedy="raise its limit")
            self.records.append(Record("fixpoint", False, remarks=(missed,)))
        return module

    def _pass(self, step: Pass, module: Module, rest: tuple[Step, ...]) -> Module:
        self.accounted.add(step.name)
        if module.stage not in step.stages:
            reason = f"the module is still of stage {module.stage.value}"
            missed = Missed(step.name, reason, remedy="see why the passes before it did not apply")
            self.records.append(Record(step.name, False, remarks=(missed,)))
            return module
        if not all(i.should_run(step, module) for i in self.instruments):
            self.records.append(Record(step.name, False, remarks=(Missed(step.name, "skipped"),)))
            return module
        result = self._guarded(step, module, rest)
        changed = result.module is not module
        self.records.append(Record(step.name, changed, result.stats, result.remarks))
        if changed:
            self.analyses = {a: r for a, r in self.analyses.items() if a in step.preserves}
        return result.module

    def _guarded(self, step: Pass, module: Module, rest: tuple[Step, ...]) -> PassResult:
        for instrument in self.instruments:
            instrument.before(step, module)
        try:
            result = step.run(module, self._context(step, module))
        except PipelineError:
            raise
        except Exception as error:
            raise self._crash(step, module, rest, error) from error
        try:
            for instrument in self.instruments:
                instrument.after(step, module, result)
        except VerifyError as error:
            raise self._crash(step, module, rest, error) from error
        return result

    def _context(self, step: Pass, module: Module) -> Context:
        shared = (self.fuel, self.target, self.observations, self.reader)
        return Context(module, step.name, *shared, self.analyses)

    def _crash(
        self, step: Pass, module: Module, rest: tuple[Step, ...], error: Exception
    ) -> PassError:
        what = str(error) if isinstance(error, ElidirError) else f"{type(error).__name__}: {error}"
        source = type(step).__module__
        path = self._write(step.name, reproducer_text(Pipeline((step, *rest)), module, what))
        message = f"pass '{step.name}' ({source}) failed: {what}"
        remedy = f"run `elidir opt {path}` to see it again" if path else "no reproducer was written"
        return PassError(f"{message}; {remedy}", by=step.name, reproducer=path)

    def _write(self, name: str, text: str) -> str:
        folder = self.crash_dir or Path(tempfile.gettempdir())
        try:
            with tempfile.NamedTemporaryFile(
                "w", prefix=f"elidir-{name}-", suffix=".ir", dir=folder, delete=False
            ) as file:
                file.write(text)
        except OSError:
            return ""
        return file.name
