"""Lowering a function to a flat list of instructions.

`lower` inlines the layers and gives each op to the first backend that claims it, else decomposes
it, else runs it by the reference; weights are prepared once, here. Sizes are found from the inputs,
but for those that an op binds when it runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from elidir.backends.binding import Binder, compile_dim
from elidir.backends.dtypes import retype
from elidir.backends.executor import Assignment, Executable
from elidir.backends.joining import Instruction, Joiner
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
SIZES = "sizes"  # what names the slot of all sizes that are known

# The ops that an op is made of, and the values that stand for its results.
Parts: TypeAlias = tuple[tuple[Op, ...], tuple[Value, ...]]


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
    """An op in the hands of a backend; what it reads of sizes, and says of them when it has run."""

    op: Op
    kernel: Kernel
    backend: str
    sizes: tuple[str, ...] = ()
    later: tuple[Dim, ...] = ()


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
    """Give every value a slot, and say where each is read last; a size has a slot too."""
    asked = list(dict.fromkeys(d for c in assigned.claims for d in symbolic_dims(c.op)))
    dims = [d for d in asked if free_symbols(d) <= binder.known]
    claims = _bound(name, assigned.claims, [d for d in asked if d not in dims], binder.known)
    made = ((*c.op.results, *c.later) for c in claims)
    items = (*region.params, SIZES, *dims, *(item for one in made for item in one))
    slots: dict[Value | Dim | str, int] = {item: at for at, item in enumerate(items)}

    def slot(value: Value) -> int:
        while value in assigned.stands_for:
            value = assigned.stands_for[value]
        return slots[value]

    results = tuple(slot(r) for r in region.results)
    reads = [
        (*(slot(v) for v in c.op.operands()), *(slots[d] for d in (*symbolic_dims(c.op), *c.sizes)))
        for c in claims
    ]
    writes = [tuple(slots[r] for r in (*c.op.results, *c.later)) for c in claims]
    frees = _last_uses(reads, writes, keep={*results, *(slots[d] for d in (SIZES, *asked))})
    instructions = tuple(
        Instruction(c.kernel, r, w, f, c.op, c.backend)
        for c, r, w, f in zip(claims, reads, writes, frees, strict=True)
    )
    report, replaced = tuple(assigned.report), set(assigned.stands_for)
    joiner = Joiner(assigned.chain, assigned.weights, instructions, slots, results, replaced)
    return Executable(name, binder, dims, instructions, results, report, joiner.stretches())


def _bound(
    name: str, claims: Sequence[_Claim], waiting: list[Dim], inputs: set[str]
) -> list[_Claim]:
    """Let the ops that bind symbols say the sizes that are known then.

    Raises `ExecutionError` if some are known neither from the inputs nor from an op.
    """
    found, known = list[_Claim](), set(inputs)
    for claim in claims:
        known |= claim.op.bound().keys()
        later = tuple(d for d in waiting if free_symbols(d) <= known)
        waiting = [d for d in waiting if d not in later]
        found.append(_binding(claim, later) if claim.op.bound() else claim)
    for dim in waiting:
        missing = min(free_symbols(dim) - known)
        raise ExecutionError(
            f"the size {format_dim(dim)} is used in @{name}, but {missing} cannot be "
            "found from the shapes of its inputs; add an input that has it as a dimension"
        )
    return found


def _binding(claim: _Claim, later: tuple[Dim, ...]) -> _Claim:
    """Return the claim of which the kernel binds symbols, and returns what is known then."""
    kernel, results = claim.kernel, claim.op.results
    places = [(name, results.index(value)) for name, value in claim.op.bound().items()]
    compiled = [compile_dim(d) for d in later]

    def run(*items: Any) -> Any:
        *given, sizes = items
        made = kernel(*given) if len(results) > 1 else (kernel(*given),)
        for name, at in places:
            sizes[name] = len(made[at])
        found = (*made, *[dim(sizes) for dim in compiled])
        return found if len(found) > 1 else found[0]

    return replace(claim, kernel=run, later=later, sizes=(SIZES,))


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
