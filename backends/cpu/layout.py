"""The layout of a run: slots for what comes from outside, and the records at given sizes.

What can be said of a run without any sizes is found once, in `Layout`; a `Tape` is what the native
library runs, and the memory that it needs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from elidir.backends.cpu import forms
from elidir.backends.cpu.maker import Evaluate, Maker, Spot, dense, padded, storage_type
from elidir.backends.cpu.native.records import FIRST_OUTER, Record
from elidir.backends.protocol import Run
from elidir.backends.weights import Weights
from elidir.ir import (
    KV,
    Attention,
    Dim,
    KvAppend,
    KvEvict,
    KvRead,
    Mask,
    Op,
    ScoreAttention,
    Tensor,
    TokenSet,
    Value,
    free_symbols,
)


@dataclass(frozen=True, eq=False)
class Tape:
    """The records of a run at some sizes.

    Args:
        records: as the native library reads them.
        owners: the number of the op that each record belongs to.
        arena: elements of the arena.
        scratch: elements of the scratch for each run of keys.
        keys: the most keys of an attention that reads no cache.
        shapes: of each output that is a tensor of its own.
        new: how many tokens are appended, for each state after it.
        held: what the records refer to by address.
    """

    records: Any
    owners: list[int]
    arena: int
    scratch: int
    keys: int
    shapes: list[tuple[Value, tuple[int, ...]]]
    new: dict[Value, int]
    held: list[Any]

    def by_op(self, ticks: Sequence[int], count: int) -> list[float]:
        """Return the seconds of each op, given the nanoseconds of each record."""
        seconds = [0.0] * count
        for op, nanoseconds in zip(self.owners, ticks, strict=True):
            seconds[op] += nanoseconds / 1e9
        return seconds


class Layout:
    """What is known of a run before any sizes are."""

    def __init__(self, run: Run) -> None:
        self.run = run
        appends = [op for op in run.ops if isinstance(op, KvAppend)]
        reads = [op for op in run.ops if isinstance(op, KvRead)]
        attends = [op for op in run.ops if isinstance(op, Attention | ScoreAttention)]
        self.biases = {op.bias for op in attends} - {None}
        self.gains = [(op.result, op.k) for op in attends if isinstance(op, ScoreAttention)]
        self.noisy = [
            (op.result, op.state)
            for op in attends
            if isinstance(op, ScoreAttention) and op.state is not None
        ]
        self.scored = _beside(attends)
        self.reads = {v: (op.kv, i) for op in reads for i, v in enumerate(op.results)}
        self.appends = [(op.result, op.kv, op.tokens) for op in appends]
        self.evictions = [op for op in run.ops if isinstance(op, KvEvict)]
        self.of, self.slots = self._number()
        states = dict.fromkeys((*(a.result for a in appends), *(r.kv for r in reads)))
        self.touched = [(state, self.of[state]) for state in states]
        apart = {*self.reads, *(v for v, _ in self.gains)}
        self.stored = [v for v in run.outputs if isinstance(v.type, Tensor) and v not in apart]
        self.dies = self._last_readers()
        self.sizes = sorted({s for d in self._dims() for s in free_symbols(d)})

    def _number(self) -> tuple[dict[Value, int], int]:
        """Give a slot to each input and output, and two to each state of the cache."""
        slots: dict[Value, int] = {}
        at = FIRST_OUTER
        states = [longer for longer, *_ in self.appends]
        gains = [gain for gain, _ in self.gains]
        for value in dict.fromkeys((*self.run.inputs, *states, *gains, *self.run.outputs)):
            slots[value] = at
            at += 2 if isinstance(value.type, KV) else 1
        self.noise = {value: at + 3 * i for i, (value, _) in enumerate(self.noisy)}
        return slots, at + 3 * len(self.noisy)

    def _last_readers(self) -> dict[int, list[Value]]:
        last: dict[Value, int] = {}
        for at, op in enumerate(self.run.ops):
            last.update(dict.fromkeys((*op.operands(), *op.results), at))
        kept, found = set(self.run.outputs), dict[int, list[Value]]()
        for value, at in last.items():
            if value not in kept:
                found.setdefault(at, []).append(value)
        return found

    def _dims(self) -> Iterator[Dim]:
        """All dimensions that the records depend on."""
        grown = (KvRead, ScoreAttention)
        made = [r for op in self.run.ops if not isinstance(op, grown) for r in op.results]
        for value in (*made, *(v for v in self.run.inputs if v not in self.biases)):
            if isinstance(value.type, Tensor):
                yield from value.type.dims

    # ---- at given sizes

    def make(self, size: Evaluate, weights: Weights) -> Tape:
        """Return the records at the sizes that `size` gives for dimensions."""
        m = Maker(size, weights, {}, self.dies, self.scored, self.noise)
        for value in self.run.inputs:
            if not isinstance(value.type, KV | TokenSet):
                self._place(m, value)
        for value, _ in self.gains:
            m.put(value, Spot(self.of[value], (1, 1, 1, 1), None))
        new: dict[Value, int] = {}
        for op in self.run.ops:
            if isinstance(op, KvAppend):
                new[op.result] = m.dims(op.k)[2]
            self._emit(m, op)
            m.done()
        m.at -= 1  # what is stored is the last op's
        shapes = [(v, tuple(size(d) for d in v.tensor.dims)) for v in self.stored]
        for value in self.stored:
            forms.store(m, value, self.of[value])
        records = (Record * len(m.records))(*m.records)
        return Tape(records, m.owners, m.arena, m.scratch, m.keys, shapes, new, m.held)

    def _place(self, m: Maker, value: Value) -> None:
        """Say where an input is; a bfloat16 one is taken into the arena first."""
        slot, kind = self.of[value], value.type
        if isinstance(kind, Mask) or value in self.biases:
            m.put(value, Spot(slot, (1, 1, 1, 1), None))
            return
        dims = padded([m.size(d) for d in value.tensor.dims])
        outer = Spot(slot, dims, dense(dims))
        if value.tensor.dtype.is_float and storage_type(value).itemsize != 4:
            forms.load(m, value, outer)
        else:
            m.put(value, outer)

    def _cache(self, m: Maker, state: Value, which: int) -> Spot:
        """Return the keys (0) or values (1) of a state; their strides come with each call."""
        kv = state.type
        assert isinstance(kv, KV)
        width = (kv.key_dim, kv.value_dim)[which]
        dims = (m.size(kv.batch), m.size(kv.heads), 0, m.size(width))
        return Spot(self.of[state] + which, dims, None, dtype=storage_type(state))

    def _emit(self, m: Maker, op: Op) -> None:
        """Make the records of an op."""
        if isinstance(op, KvAppend):
            for which, value in enumerate((op.k, op.v)):
                forms.append(m, value, self._cache(m, op.result, which))
        elif isinstance(op, KvRead):
            for which, value in enumerate(op.results):
                m.put(value, self._cache(m, op.kv, which))
        elif not isinstance(op, KvEvict):  # which is noted by the state, and done between steps
            forms.FORMS[op.kind][0](op, m)


def _beside(attends: Sequence[Attention | ScoreAttention]) -> dict[Value, ScoreAttention]:
    """Return what scores the keys of an attention for all its queries, by what that makes."""

    def read(op: Attention | ScoreAttention) -> tuple[Any, ...]:
        return op.q, op.k, op.mask, op.bias, op.sinks, op.scale, op.softcap

    made = {read(op): op.result for op in attends if isinstance(op, Attention)}
    scores = [op for op in attends if isinstance(op, ScoreAttention)]
    return {made[read(op)]: op for op in scores if read(op) in made}
