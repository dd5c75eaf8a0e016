"""Runs of consecutive ops as one call of the native library, where few rows come at once.

A `Joined` is a run of a program. It makes records for the sizes that it meets (these differ in
batch and new tokens, never in how much is cached) and keeps them. What it is not made for, more
rows or an index out of range, it leaves to the ops one by one.
"""

import threading
from array import array
from collections.abc import Sequence
from functools import cache
from itertools import chain
from math import prod
from typing import Any

import torch

from elidir.backends.binding import Sizes, compile_dim
from elidir.backends.cpu.layout import Layout, Tape
from elidir.backends.cpu.linear import MAX_ROWS
from elidir.backends.cpu.maker import storage_type
from elidir.backends.cpu.native import tape
from elidir.backends.cpu.native.records import RUN_OF_KEYS
from elidir.backends.cpu.segments import PRODUCTS
from elidir.backends.protocol import KVState, Run
from elidir.backends.weights import Weights
from elidir.ir import KV, Mask, TokenSet, Value, as_dim

Words = tuple[int, int, int, int, int]  # of a slot: address, three strides, length
_KEPT = 64  # sizes whose records are kept

_compiled = cache(compile_dim)


class Joined:
    """A run of ops over few rows."""

    def __init__(self, run: Run, weights: Weights) -> None:
        self.run, self.weights = run, weights
        self.layout = Layout(run)
        products = [op for op in run.ops if isinstance(op, PRODUCTS)]
        self._rows = {as_dim(prod(op.x.tensor.dims[:-1])) for op in products}
        self._tapes: dict[tuple[int, ...], Tape] = {}
        self._rooms = threading.local()

    def __call__(
        self, sizes: Sizes, operands: Sequence[Any], clock: list[float] | None = None
    ) -> tuple[Any, ...] | None:
        """Return the run's outputs, or None if it is not made for these operands.

        `clock` is given the seconds of each op.
        """
        if any(_compiled(rows)(sizes) > MAX_ROWS for rows in self._rows):
            return None
        found = self._tape(sizes)
        words: list[Words] = [_NOTHING] * self.layout.slots
        held, given = self._inputs(operands, words)
        states = {v: x for v, x in given.items() if isinstance(v.type, KV)}
        if not self._append(states, given, found, words):
            return None
        outputs = self._outputs(found, words)
        gains = self._gains(states, words)
        held += self._noises(states, words)
        rooms = self._memory(found, words)
        ticks = None if clock is None else array("q", bytes(8 * len(found.records)))
        if tape.run(found.records, list(chain.from_iterable(words)), ticks) >= 0:
            return None
        del held, rooms
        if clock is not None and ticks is not None:
            clock += found.by_op(ticks, len(self.run.ops))
        for op in self.layout.evictions:
            scores = None if op.scores is None else gains[op.scores]
            states[op.result] = states[op.kv].evict(op, scores)
        return tuple([self._result(v, states, outputs | gains) for v in self.run.outputs])

    def _tape(self, sizes: Sizes) -> Tape:
        key = tuple([sizes[name] for name in self.layout.sizes])
        found = self._tapes.get(key)
        if found is None:
            if len(self._tapes) >= _KEPT:
                del self._tapes[next(iter(self._tapes))]
            made = self.layout.make(lambda d: _compiled(d)(sizes), self.weights)
            found = self._tapes[key] = made
        return found

    @property
    def made(self) -> tuple[Tape, ...]:
        """The records that are kept, each for its sizes."""
        return tuple(self._tapes.values())

    # ---- what the records point to

    def _inputs(
        self, operands: Sequence[Any], words: list[Words]
    ) -> tuple[list[Any], dict[Value, Any]]:
        """Point to the inputs; returns tensors to hold, and the states and sets that are given."""
        held, given = [], {}
        for value, item in zip(self.run.inputs, operands, strict=True):
            if isinstance(value.type, KV | TokenSet):
                given[value] = item
                continue
            x = self._tensor(value, item)
            held.append(x)
            if x is not None:
                words[self.layout.of[value]] = _words(x)
        return held, given

    def _tensor(self, value: Value, item: Any) -> torch.Tensor | None:
        """Return an input as its records read it; a mask of None sees all."""
        if item is None or isinstance(value.type, Mask):
            return item
        if value in self.layout.biases:
            wide = item.float()
            return wide if wide.stride(-1) == 1 else wide.contiguous()
        return item if item.is_contiguous() else item.contiguous()

    def _append(
        self,
        states: dict[Value, Any],
        given: dict[Value, Any],
        found: Tape,
        words: list[Words],
    ) -> bool:
        """Make room in the cache, and point to it; False if it is not laid out as records need."""
        for longer, before, tokens in self.layout.appends:
            chosen = () if tokens is None else (given[tokens],)
            states[longer] = states[before].extend(found.new[longer], *chosen)
        for value, slot in self.layout.touched:
            keys, values, length = states[value].storage()
            if keys.stride(3) != 1 or values.stride(3) != 1:
                return False
            words[slot] = (keys.data_ptr(), *keys.stride()[:3], length)
            words[slot + 1] = (values.data_ptr(), *values.stride()[:3], length)
        return True

    def _outputs(self, found: Tape, words: list[Words]) -> dict[Value, torch.Tensor]:
        outputs = {}
        for value, shape in found.shapes:
            outputs[value] = x = torch.empty(shape, dtype=storage_type(value))
            words[self.layout.of[value]] = (x.data_ptr(), 0, 0, 0, 0)
        return outputs

    def _gains(self, states: dict[Value, KVState], words: list[Words]) -> dict[Value, torch.Tensor]:
        """Make room for scores, which are as long as the cache, and point to it."""
        gains = {}
        for value, keys in self.layout.gains:
            stored, _, length = states[self.layout.reads[keys][0]].storage()
            rows = stored.shape[: len(value.tensor.dims) - 1]
            gains[value] = x = torch.empty(*rows, length)
            words[self.layout.of[value]] = (x.data_ptr(), 0, 0, 0, length)
        return gains

    def _noises(self, states: dict[Value, Any], words: list[Words]) -> list[torch.Tensor]:
        """Point to what noise is drawn by; returns tensors to hold."""
        held = []
        for value, state in self.layout.noisy:
            given, slot = states[state].places(), self.layout.noise[value]
            words[slot : slot + 3] = map(_words, given)
            words[slot] = (*words[slot][:4], states[state].number)
            held += given
        return held

    def _memory(self, found: Tape, words: list[Words]) -> list[torch.Tensor]:
        """Point to the arena and the scratch, which calls on one thread share."""
        longest = max([found.keys, *(words[slot][4] for _, slot in self.layout.touched)])
        runs = -(-longest // RUN_OF_KEYS)
        rooms = []
        for slot, size in enumerate((found.arena, found.scratch * runs)):
            name = f"room{slot}"
            room = getattr(self._rooms, name, None)
            if room is None or room.numel() < size:
                room = torch.empty(max(size, 1) * 3 // 2)
                setattr(self._rooms, name, room)
            words[slot] = (room.data_ptr(), 0, 0, 0, 0)
            rooms.append(room)
        return rooms

    def _result(
        self, value: Value, states: dict[Value, KVState], outputs: dict[Value, torch.Tensor]
    ) -> Any:
        if value in outputs:
            return outputs[value]
        if value in states:
            return states[value]
        state, which = self.layout.reads[value]
        return states[state].read()[which]


_NOTHING: Words = (0, 0, 0, 0, 0)


def _words(x: torch.Tensor) -> Words:
    """Return a tensor's address and the strides of a mask or bias, 0 along what is repeated."""
    strides = [0 if n == 1 else s for n, s in zip(x.shape[:3], x.stride()[:3], strict=True)]
    a, b, c = (*strides, *(0,) * (3 - len(strides)))
    return x.data_ptr(), a, b, c, 0
