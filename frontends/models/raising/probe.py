"""Tools to find out what a piece of the program computes: cut it out and run it.

Masks, position tables, rotary embeddings and activations are recognised by what they do to a few
inputs, not by how their author spelled them. Everything runs on the reference backend, at sizes of
a few tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from elidir.backends import WeightStore, lower
from elidir.ir import (
    Const,
    DType,
    Function,
    Module,
    Op,
    Region,
    Symbol,
    Tensor,
    Value,
    Weight,
    structure,
    symbol,
)

OpOf = Callable[[Any], Op | None]


class ProbeError(Exception):
    """A piece of the program does not run on the inputs of a probe: nothing is learnt from it."""


@dataclass
class Probe:
    """What probing needs to know of the program: its position inputs and its weights' arrays."""

    positions: Value | None
    valid: Value | None
    symbols: dict[str, Symbol]
    tensors: dict[str, torch.Tensor]
    entries: dict[str, Any]
    memo: dict[Any, Any] = field(default_factory=dict)
    _depth: dict[Value, int] = field(default_factory=dict)
    _index: dict[Value, bool] = field(default_factory=dict)

    # -- looking

    def is_index(self, value: Any, op_of: OpOf) -> bool:
        """Whether a value depends on positions, validity and parameters alone."""
        if not isinstance(value, Value):
            return True
        if value not in self._index:
            op = op_of(value)
            if op is None:
                self._index[value] = value in (self.positions, self.valid)
            else:
                self._index[value] = all(self.is_index(v, op_of) for v in op.operands())
        return self._index[value]

    def depth(self, value: Value, op_of: OpOf) -> int:
        """Return the length of the longest path that leads to a value."""
        if value not in self._depth:
            op = op_of(value)
            reads = list(op.operands()) if op else []
            self._depth[value] = 1 + max((self.depth(v, op_of) for v in reads), default=0)
        return self._depth[value]

    def cuts(
        self, value: Value, op_of: OpOf, through: Callable[[Op], bool], limit: int = 24
    ) -> Iterator[tuple[Value, list[Op]]]:
        """Yield each value upstream that all of `value` but positions comes through, nearest first.

        With it come the ops between, in order. Only ops that `through` allows are passed.
        """
        frontier, ops = {value}, []
        while frontier and len(ops) < limit:
            last = max(frontier, key=lambda v: self.depth(v, op_of))
            op = op_of(last)
            if op is None or not through(op):
                return
            ops.append(op)
            frontier -= set(op.results)
            frontier |= {v for v in op.operands() if not self.is_index(v, op_of)}
            if len(frontier) == 1:
                yield next(iter(frontier)), ops[::-1]

    # -- running

    def run(
        self, wanted: Sequence[Value], op_of: OpOf, inputs: Mapping[Value, torch.Tensor]
    ) -> list[torch.Tensor]:
        """Compute values from the given ones, whose sizes may be any that the symbols allow.

        Raises:
            ProbeError: the piece does not run on these inputs.
        """
        params = tuple(inputs)
        ops = tuple(backward(wanted, op_of, set(params)))
        region = Region(params, ops, tuple(wanted))
        module = Module("probe", {}, self.symbols, self.entries)
        store = WeightStore({n: self.tensors[n] for n in self.tensors})
        try:
            piece = lower(Function("probe", region), module, store, ("reference",))
            return list(piece(*inputs.values()))
        except Exception as error:  # a program cut out of its model may fail in any way
            raise ProbeError(str(error)) from error

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was found for this key before, or find it."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def key(self, wanted: Sequence[Value], op_of: OpOf, stops: set[Value]) -> Any:
        """Return a key that is equal for pieces that compute the same."""
        ops = tuple(backward(wanted, op_of, stops))
        leaves = tuple(sorted(stops, key=lambda v: self.depth(v, op_of)))
        names = tuple(w.name for o in ops for w in o.weights())
        fixed = tuple(v in (self.positions, self.valid) for v in leaves)
        return structure(Region((), ops, tuple(wanted)), leaves), names, fixed

    def index_inputs(self, batch: int, length: int, pad: int) -> dict[Value, torch.Tensor]:
        """Return positions and validity of a batch; its last row has `pad` invalid tokens first.

        A program that was captured at fixed sizes gets these, whatever was asked.
        """
        batch, length = self.sizes(batch, length)
        pad = min(pad, length - 1)
        valid = torch.ones(batch, length, dtype=torch.bool)
        valid[-1, :pad] = False
        positions = (valid.long().cumsum(-1) - 1).clamp(min=0)
        pairs = ((self.positions, positions), (self.valid, valid), self._every_size(batch, length))
        return {v: t for v, t in pairs if v is not None}

    def sizes(self, batch: int, length: int) -> tuple[int, int]:
        """Return batch and length, or those that the program is fixed to."""
        known = self.positions if self.positions is not None else self.valid
        fixed = known.type.dims if known is not None else ()
        wanted = zip(fixed, (batch, length), strict=False)
        found = tuple(d if isinstance(d, int) else n for d, n in wanted)
        return found if len(found) == 2 else (batch, length)

    def _every_size(self, batch: int, length: int) -> tuple[Value, torch.Tensor]:
        """Return an input that nothing reads, which gives every symbol its size."""
        names = list(self.symbols)
        value = Value(Tensor(tuple(symbol(n) for n in names), DType.BOOL), "sizes")
        sizes = [batch if n == "B" else length for n in names]
        return value, torch.empty((), dtype=torch.bool).expand(sizes)


def backward(wanted: Sequence[Value], op_of: OpOf, stops: set[Value]) -> list[Op]:
    """Return the ops that `wanted` needs, in order, not going past `stops`."""
    order: list[Op] = []
    seen: set[int] = set()
    stack: list[tuple[Op, bool]] = [(o, False) for v in wanted if (o := _source(v, op_of, stops))]
    while stack:
        op, done = stack.pop()
        if done:
            order.append(op)
        elif id(op) not in seen:
            seen.add(id(op))
            stack.append((op, True))
            stack += [(o, False) for v in op.operands() if (o := _source(v, op_of, stops))]
    return order


def _source(value: Value, op_of: OpOf, stops: set[Value]) -> Op | None:
    return None if value in stops else op_of(value)


def constant_weight(value: Any, op_of: OpOf) -> Weight | None:
    """Return the weight that a value is, or None."""
    op = op_of(value)
    return op.weight if isinstance(op, Const) else None
