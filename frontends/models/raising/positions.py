"""Position tables: what a program computes from the slots of its tokens, said of positions instead.

`x + table[:T]` and sinusoids over arange(T) count slots; a program that keeps a cache needs
positions. Such a value, one row for each token, becomes `embed %pos, @table`: the table is a weight
of the model where the rows are its own, else it is computed once for every position that the model
allows. Where that is too many, the same arithmetic is done on positions.
"""

from collections.abc import Sequence
from typing import Any

import torch

from elidir.frontends.raising.probe import Probe, ProbeError, backward
from elidir.ir import (
    Add,
    Builder,
    Cast,
    Concat,
    Embed,
    Iota,
    IRTypeError,
    Mul,
    Op,
    Reshape,
    Slice,
    Value,
    Weight,
)

MAX_TABLE = 65536


class PositionRule:
    """Raises the position operand of an add or mul of activations [B, T, D]."""

    def __init__(self, probe: Probe, add_weight: Any) -> None:
        self.probe, self.add_weight = probe, add_weight

    def __call__(self, op: Op, b: Builder) -> Sequence[Value] | None:
        """Raise x + table[:T] to x + embed(pos, table)."""
        if not isinstance(op, Add | Mul) or len(op.result.type.dims) != 3:
            return None
        for x, table in ((op.a, op.b), (op.b, op.a)):
            if not isinstance(x, Value) or not isinstance(table, Value):
                continue
            if self.probe.is_index(x, b.op_of) or not self._counts_slots(table, b):
                continue
            rows = self._by_position(table, b)
            if rows is not None:
                return [b.emit(type(op)(x, rows))]
        return None

    def _counts_slots(self, table: Value, b: Builder) -> bool:
        pos = self.probe.positions
        if pos is None or not self.probe.is_index(table, b.op_of):
            return False
        batch, length = pos.type.dims
        dims = table.type.dims
        if (
            len(dims) not in (2, 3)
            or dims[-2] != length
            or any(d not in (1, batch) for d in dims[:-2])
        ):
            return False
        ops = backward([table], b.op_of, set())
        reads = {v for o in ops for v in o.operands()}
        if reads & {pos, self.probe.valid}:
            return False
        return any(isinstance(o, Iota | Slice) for o in ops)

    def _by_position(self, table: Value, b: Builder) -> Value | None:
        key = ("positions", self.probe.key([table], b.op_of, set()))
        weight = self.probe.once(key, lambda: self._measure(table, b))
        if weight is not None:
            return b.emit(Embed(self.probe.positions, weight))
        return self._lift(table, b)

    # -- as a table

    def _bound(self) -> int | None:
        length = self._length()
        return length if isinstance(length, int) else self.probe.symbols[str(length)].hi

    def _measure(self, table: Value, b: Builder) -> Weight | None:
        bound = self._bound()
        if bound is None or bound > MAX_TABLE:
            return None
        try:
            short, full = (self._evaluate(table, b, n) for n in (min(5, bound), bound))
        except ProbeError:
            return None
        if not torch.equal(short, full[: len(short)]):
            return None
        weights = (w for op in backward([table], b.op_of, set()) for w in op.weights())
        own = (w for w in weights if self._holds(w, full))
        return next(own, None) or self.add_weight("positions", full)

    def _holds(self, weight: Weight, rows: torch.Tensor) -> bool:
        """Whether a weight of the model begins with these rows."""
        tensor = self.probe.tensors.get(weight.name)
        return tensor is not None and tensor.dim() == 2 and torch.equal(tensor[: len(rows)], rows)

    def _evaluate(self, table: Value, b: Builder, length: int) -> torch.Tensor:
        inputs = self.probe.index_inputs(1, length, 0)
        (rows,) = self.probe.run([table], b.op_of, inputs)
        return rows.reshape(-1, rows.shape[-2], rows.shape[-1])[0].clone()

    # -- as arithmetic

    def _lift(self, table: Value, b: Builder) -> Value | None:
        """Redo the arithmetic with positions [B, T] in the place of arange(T): one axis more."""
        mapped: dict[Value, Value] = {}
        for op in backward([table], b.op_of, set()):
            if isinstance(op, Iota) and op.length == self._length():
                mapped[op.result] = self._start(op, b)
                continue
            if not any(v in mapped for v in op.operands()):
                continue
            if (new := _lifted(op, mapped)) is None:
                return None
            mapped[op.results[0]] = b.emit(new)
        lifted = mapped.get(table)
        return lifted if lifted is not None and self._agrees(table, lifted, b) else None

    def _length(self) -> Any:
        return self.probe.positions.type.dims[1]

    def _start(self, op: Iota, b: Builder) -> Value:
        pos = self.probe.positions
        moved = pos if op.start == 0 else b.emit(Add(pos, op.start))
        return moved if op.dtype is moved.tensor.dtype else b.emit(Cast(moved, dtype=op.dtype))

    def _agrees(self, table: Value, lifted: Value, b: Builder) -> bool:
        inputs = self.probe.index_inputs(2, 7, 0)
        try:
            old, new = self.probe.run([table, lifted], b.op_of, inputs)
        except ProbeError:
            return False
        return new.dim() == 3 and torch.equal(old.expand_as(new), new)


def _lifted(op: Op, mapped: dict[Value, Value]) -> Op | None:
    """Return the op on operands with a batch axis in front, or None where there is no telling."""
    changes: dict[str, Any] = {}
    (first, *_) = [v for v in op.operands() if v in mapped]
    if isinstance(op, Reshape):
        changes["shape"] = (mapped[first].type.dims[0], *op.shape)
    if isinstance(op, Concat | Slice):
        changes["axis"] = op.axis % len(first.type.dims) + 1
    try:
        return op.clone(lambda v: mapped.get(v, v), **changes)
    except IRTypeError:
        return None
