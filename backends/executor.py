"""Lowering a function to a flat list of instructions, and running it.

`lower` inlines the layers and gives each op to the first backend that claims it, else decomposes
it, else runs it by the reference; weights are prepared once, here. An `Executable` runs its
instructions in order and drops each value after its last use; where a backend takes a stretch of
them as one call, it is asked first. How an op is computed lives in the backends.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from elidir.backends.binding import Binder, Sizes, compile_dim
from elidir.backends.dtypes import retype
from elidir.backends.joining import Instruction, Joiner, Stretch
from elidir.backends.protocol import (
    Backend,
    BackendError,
    ExecutionError,
    Kernel,
    backend,
    symbolic_dims,
)
from elidir.backends.weights import Weights, WeightStore
from elidir.ir import (
    Dim,
    DType,
    ElidirError,
    Embed,
    Function,
    Module,
    Op,
    Region,
    Value,
    flatten,
    format_dim,
    free_symbols,
    parts_of,
)

REFERENCE = "reference"

# The ops that an op is made of, and the values that stand for its results.
Parts: TypeAlias = tuple[tuple[Op, ...], tuple[Value, ...]]


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
        slots = [*inputs, *[dim(sizes) for dim in self._dims], *self._empty]
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


# ---- lowering


def lower(
    function: Function,
    module: Module,
    store: WeightStore,
    backends: Sequence[str] = ("cpu", REFERENCE),
    dtype: DType | None = None,
) -> Executable:
    """Return an executable of one function of a module.

    `backends` are names in order of preference; the reference is always last. `dtype` runs the
    program with its floats in another type. Raises `ElidirError` when a backend is unknown or a
    weight is missing.
    """
    region = flatten(function)
    if dtype is not None:
        region = retype(region, dtype)
    chain = _available(backends)
    assigned = _Assigner(chain, Weights(store, module.weights)).assign(region)
    return _link(function.name, region, assigned, Binder(region.params, module.symbols))


def _available(names: Sequence[str]) -> list[Backend]:
    chain = [backend(n) for n in dict.fromkeys([*names, REFERENCE])]
    for b in chain:
        if not (answer := b.available()):
            raise BackendError(
                f"backend '{b.name}' cannot run here: {answer.reason}; leave it out of backends="
            )
    return chain


@dataclass(frozen=True, eq=False)
class _Claim:
    """An op in the hands of a backend."""

    op: Op
    kernel: Kernel
    backend: str


class _Assigner:
    """Walks a region once, in order, and finds a backend for each op."""

    def __init__(self, chain: Sequence[Backend], weights: Weights) -> None:
        self.chain, self.weights = chain, weights
        self.claims: list[_Claim] = []
        self.report: list[Assignment] = []
        self.stands_for: dict[Value, Value] = {}

    def assign(self, region: Region) -> "_Assigner":
        """Claim every op of the region."""
        for op in region.ops:
            self._assign(op)
        return self

    def _assign(self, op: Op) -> None:
        refused: list[tuple[str, str]] = []
        for candidate in self.chain:
            answer = candidate.supports(op)
            last = candidate is self.chain[-1]
            if last and (parts := self._parts(op)):
                self._split(op, parts, tuple(refused))
            elif answer:
                self._take(op, candidate, tuple(refused))
            else:
                refused.append((candidate.name, answer.reason))
                continue
            return
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused)
        raise BackendError(f"no backend runs {op.kind} ({reasons}); add one that does", at=op.loc)

    def _take(self, op: Op, taker: Backend, refused: tuple[tuple[str, str], ...]) -> None:
        self.claims.append(_Claim(op, taker.kernel(op, self.weights), taker.name))
        self.report.append(Assignment(op.kind, op.loc, taker.name, refused))

    def _parts(self, op: Op) -> Parts | None:
        """Return the parts of an op if a backend before the reference takes one of them."""
        parts = parts_of(op)
        taken = parts and any(b.supports(o) for o in parts[0] for b in self.chain[:-1])
        return parts if taken else None

    def _split(self, op: Op, parts: Parts, refused: tuple[tuple[str, str], ...]) -> None:
        self.report.append(Assignment(op.kind, op.loc, "decomposed", refused))
        ops, results = parts
        for part in ops:
            self._assign(part)
        self.stands_for.update(zip(op.results, results, strict=True))


def _link(name: str, region: Region, assigned: _Assigner, binder: Binder) -> Executable:
    """Give every value a slot, and say where each is read last."""
    dims = list(dict.fromkeys(d for c in assigned.claims for d in symbolic_dims(c.op)))
    _check_known(name, dims, binder)
    slots: dict[Value | Dim, int] = {}
    for item in (*region.params, *dims):
        slots[item] = len(slots)
    for claim in assigned.claims:
        for result in claim.op.results:
            slots[result] = len(slots)

    def slot(value: Value) -> int:
        while value in assigned.stands_for:
            value = assigned.stands_for[value]
        return slots[value]

    results = tuple(slot(r) for r in region.results)
    reads = [
        (*(slot(v) for v in c.op.operands()), *(slots[d] for d in symbolic_dims(c.op)))
        for c in assigned.claims
    ]
    writes = [tuple(slots[r] for r in c.op.results) for c in assigned.claims]
    frees = _last_uses(reads, writes, keep={*results, *(slots[d] for d in dims)})
    instructions = tuple(
        Instruction(c.kernel, r, w, f, c.op, c.backend)
        for c, r, w, f in zip(assigned.claims, reads, writes, frees, strict=True)
    )
    report, replaced = tuple(assigned.report), set(assigned.stands_for)
    joiner = Joiner(assigned.chain, assigned.weights, instructions, slots, results, replaced)
    return Executable(name, binder, dims, instructions, results, report, joiner.stretches())


def _check_known(name: str, dims: Sequence[Dim], binder: Binder) -> None:
    for dim in dims:
        if missing := free_symbols(dim) - binder.known:
            raise ExecutionError(
                f"the size {format_dim(dim)} is used in @{name}, but {min(missing)} cannot be "
                "found from the shapes of its inputs; add an input that has it as a dimension"
            )


def _last_uses(
    reads: Sequence[tuple[int, ...]], writes: Sequence[tuple[int, ...]], keep: set[int]
) -> list[tuple[int, ...]]:
    last: dict[int, int] = {}
    for at, (ins, outs) in enumerate(zip(reads, writes, strict=True)):
        last.update(dict.fromkeys((*ins, *outs), at))
    frees: list[list[int]] = [[] for _ in reads]
    for slot, at in last.items():
        if slot not in keep:
            frees[at].append(slot)
    return [tuple(f) for f in frees]
