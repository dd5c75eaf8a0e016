"""Running a lowered function: a flat list of instructions, over slots of values and sizes.

An `Executable` runs its instructions in order and drops each value after its last use; where a
backend takes a stretch of them as one call, it is asked first. How it is made is in `lowering`.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from elidir.backends.binding import Binder, Sizes, compile_dim
from elidir.backends.joining import Instruction, Stretch
from elidir.backends.protocol import (
    ExecutionError,
)
from elidir.ir import (
    Dim,
    ElidirError,
    Embed,
    Op,
    Value,
)


@dataclass(frozen=True)
class Assignment:
    """Which backend took an op, and why the ones asked before it did not."""

    kind: str
    loc: str
    backend: str
    refused: tuple[tuple[str, str], ...] = ()


@dataclass
class Timing:
    """Calls and seconds by op kind and backend, while an executable is being timed."""

    calls: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, instruction: Instruction, seconds: float) -> None:
        """Count one call."""
        key = f"{instruction.op.kind} ({instruction.backend})"
        self.calls[key] += 1
        self.seconds[key] += seconds


Hook = Callable[[Instruction, float], None]

# Looks at an instruction, the values that it read, and what it made.
Watch: TypeAlias = Callable[[Instruction, list[Any], Any], None]


class Executable:
    """A lowered function. Call it with one input per parameter; it returns a tuple of results."""

    def __init__(
        self,
        name: str,
        binder: Binder,
        dims: Sequence[Dim],
        instructions: tuple[Instruction, ...],
        results: tuple[int, ...],
        assignment: tuple[Assignment, ...],
        stretches: tuple[Stretch, ...] = (),
    ) -> None:
        self.name, self.binder, self.results = name, binder, results
        self.instructions, self.assignment = instructions, assignment
        self.stretches = stretches
        self.hook: Hook | None = None
        self.watch: Watch | None = None
        self.calls, self.seconds = 0, 0.0
        self._dims = [compile_dim(d) for d in dims]
        made = sum(len(i.outputs) for i in instructions)
        self._empty = [None] * made
        self._program = [
            (i.call, i.inputs, i.outputs[0] if len(i.outputs) == 1 else i.outputs, i.free)
            for i in instructions
        ]

    @property
    def params(self) -> tuple[Value, ...]:
        """The parameters, with the types that inputs must have."""
        return self.binder.params

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Run it; raises `ExecutionError` for inputs that do not fit."""
        start = time.perf_counter()
        sizes = self.binder.bind(inputs)
        slots = [*inputs, sizes, *[dim(sizes) for dim in self._dims], *self._empty]
        with torch.inference_mode():
            self._run(slots, sizes)
        self.calls += 1
        self.seconds += time.perf_counter() - start
        return tuple([slots[i] for i in self.results])

    def _run(self, slots: list[Any], sizes: Sizes) -> None:
        if self.watch is not None:
            return self._each_watched(slots, self.watch)
        at = 0
        for stretch in self.stretches:
            self._each(slots, at, stretch.start)
            if not self._join(slots, sizes, stretch):
                self._each(slots, stretch.start, stretch.stop)
            at = stretch.stop
        return self._each(slots, at, len(self._program))

    def _each(self, slots: list[Any], start: int, stop: int) -> None:
        """Run instructions one by one."""
        if self.hook is not None:
            self._each_timed(slots, start, stop, self.hook)
            return
        at = start
        try:
            for call, inputs, output, free in self._program[start:stop]:
                found = call(*[slots[i] for i in inputs])
                if type(output) is int:
                    slots[output] = found
                else:
                    _store(slots, output, found)
                for i in free:
                    slots[i] = None
                at += 1
        except (RuntimeError, IndexError) as error:
            raise _explain(self.instructions[at].op, error) from error

    def _each_timed(self, slots: list[Any], start: int, stop: int, hook: Hook) -> None:
        for at in range(start, stop):
            instruction, (call, inputs, output, free) = self.instructions[at], self._program[at]
            began = time.perf_counter()
            found = call(*[slots[i] for i in inputs])
            hook(instruction, time.perf_counter() - began)
            single = type(output) is int
            _store(slots, instruction.outputs, (found,) if single else found)
            for i in free:
                slots[i] = None

    def _each_watched(self, slots: list[Any], watch: Watch) -> None:
        for instruction in self.instructions:
            arguments = [slots[i] for i in instruction.inputs]
            found = instruction.call(*arguments)
            watch(instruction, arguments, found)
            single = len(instruction.outputs) == 1
            _store(slots, instruction.outputs, (found,) if single else found)
            for i in instruction.free:
                slots[i] = None

    def _join(self, slots: list[Any], sizes: Sizes, stretch: Stretch) -> bool:
        """Run a stretch as one call; returns False if it is left to its instructions."""
        clock: list[float] | None = None if self.hook is None else []
        found = stretch.call(sizes, [slots[i] for i in stretch.inputs], clock)
        if found is None:
            return False
        _store(slots, stretch.outputs, found)
        for i in stretch.free:
            slots[i] = None
        if self.hook is not None:
            inside = self.instructions[stretch.start : stretch.stop]
            for instruction, seconds in zip(inside, clock or (), strict=True):
                self.hook(replace(instruction, backend=stretch.backend), seconds)
        return True

    def watched(self, watch: Watch, *inputs: Any) -> tuple[Any, ...]:
        """Run it once, instruction by instruction, each shown to `watch`; returns the results."""
        self.watch = watch
        try:
            return self(*inputs)
        finally:
            self.watch = None

    def timed(self, *inputs: Any) -> tuple[tuple[Any, ...], Timing]:
        """Run it once with a clock on each op; returns the results and the timing."""
        timing = Timing()
        self.hook = timing.add
        try:
            return self(*inputs), timing
        finally:
            self.hook = None

    def taken(self) -> Counter[str]:
        """Return how many ops each backend runs."""
        return Counter(a.backend for a in self.assignment)


def _store(slots: list[Any], outputs: Iterable[int], found: Iterable[Any]) -> None:
    for slot, item in zip(outputs, found, strict=True):
        slots[slot] = item


def _explain(op: Op, error: Exception) -> ElidirError:
    if isinstance(op, Embed) and isinstance(error, IndexError):
        rows = op.table.type.dims[0]
        return ExecutionError(
            f"an id is out of range for @{op.table.name}: ids go from 0 to {rows - 1}", at=op.loc
        )
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ExecutionError(f"{op.kind} failed on these inputs: {detail}", at=op.loc)
