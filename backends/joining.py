"""Stretches of instructions that a backend takes as one call, whoever takes them one by one.

A stretch is asked first and may decline, by the sizes at hand; its instructions stay, and then run
one by one. Which ops make a run is the backend's affair; here it is found out what each run reads,
and what is needed of it.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

from elidir.backends.protocol import Backend, Joins, Kernel, Run, RunKernel
from elidir.backends.weights import Weights
from elidir.ir import Dim, Op, Value


@dataclass(frozen=True, eq=False)
class Instruction:
    """One call: slots read, slots written, and slots that nobody reads afterwards."""

    call: Kernel
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    free: tuple[int, ...]
    op: Op
    backend: str


@dataclass(frozen=True, eq=False)
class Stretch:
    """Instructions from `start` to `stop`, and the one call that may take their place."""

    start: int
    stop: int
    call: RunKernel
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    free: tuple[int, ...]
    backend: str


@dataclass(frozen=True, eq=False)
class Joiner:
    """Asks the backends in order which runs of instructions they take as one call.

    Args:
        chain: the backends.
        weights: of the program.
        instructions: of the program, in order.
        slots: of each value.
        results: the slots that the program returns.
        replaced: values that others stand for; what reads them is joined with nothing.
    """

    chain: Sequence[Backend]
    weights: Weights
    instructions: tuple[Instruction, ...]
    slots: Mapping[Value | Dim | str, int]
    results: Sequence[int]
    replaced: Set[Value]

    def stretches(self) -> tuple[Stretch, ...]:
        """Return the runs that are taken, in order; none overlap."""
        found: list[Stretch] = []
        for taker in self.chain:
            if isinstance(taker, Joins):
                free = self._between(found)
                found += [s for part in free for s in self._taken(taker, part)]
        return tuple(sorted(found, key=lambda s: s.start))

    def _between(self, found: Sequence[Stretch]) -> list[range]:
        """Return the instructions that nobody has joined, cut at what stands for another op."""
        taken = {i for s in found for i in range(s.start, s.stop)}
        for i, instruction in enumerate(self.instructions):
            if self.replaced & set(instruction.op.operands()):
                taken.add(i)
        edges = [-1, *sorted(taken), len(self.instructions)]
        return [range(a + 1, b) for a, b in pairwise(edges) if b - a > 1]

    def _taken(self, taker: Joins, part: range) -> Iterator[Stretch]:
        ops = [self.instructions[i].op for i in part]
        for run in taker.runs(ops):
            start, stop = part.start + run.start, part.start + run.stop
            yield self._stretch(taker, start, stop)

    def _stretch(self, taker: Joins, start: int, stop: int) -> Stretch:
        inside = self.instructions[start:stop]
        made = dict.fromkeys(r for i in inside for r in i.op.results)
        read = dict.fromkeys(v for i in inside for v in i.op.operands() if v not in made)
        later = {slot for i in self.instructions[stop:] for slot in i.inputs} | set(self.results)
        needed = [v for v in made if self.slots[v] in later]
        run = Run(tuple(i.op for i in inside), tuple(read), tuple(needed))
        ends = {slot for i in inside for slot in i.free} - {self.slots[v] for v in made}
        return Stretch(
            start,
            stop,
            taker.join(run, self.weights),
            tuple(self.slots[v] for v in read),
            tuple(self.slots[v] for v in needed),
            tuple(ends),
            taker.name,
        )
