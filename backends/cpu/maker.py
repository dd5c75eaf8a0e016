"""Makes the records of a run of ops at given sizes: where each value lies, and what reads it.

Values that the run makes lie in an arena of float32, in room that earlier ones no longer need.
Splitting heads, cutting and turning axes only change how a value is viewed. What the ops' records
say is in `forms`; calling them is in `joined`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, TypeAlias

import torch

from elidir.backends.cpu.native.records import ARENA, OUTER, TYPES, Code, Record, View
from elidir.backends.cpu.stored import Stored, stored, table, vector
from elidir.backends.dtypes import torch_dtype
from elidir.backends.weights import Weights
from elidir.ir import KV, Dim, ScoreAttention, Value, Weight

Evaluate: TypeAlias = Callable[[Dim], int]
_ALIGNED = 16  # elements: a cache line


@dataclass(frozen=True)
class Spot:
    """A value in memory: four sizes, the last of them channels, and the strides of the others.

    Args:
        slot: the memory.
        dims: sizes, ones in front.
        strides: in elements; None takes those of the caller's tensor.
        offset: of the first element.
        dtype: as it is stored; the arena is float32, but for the bytes of grids.
        root: number of the room in the arena that it lies in, -1 for none.
    """

    slot: int
    dims: tuple[int, int, int, int]
    strides: tuple[int, int, int] | None
    offset: int = 0
    dtype: torch.dtype = torch.float32
    root: int = -1

    @property
    def view(self) -> View:
        """How a record writes it."""
        strides = (OUTER, 0, 0) if self.strides is None else self.strides
        return View(self.slot, self.offset, strides)

    def broadcast(self, dims: Sequence[int]) -> "Spot":
        """Return it in the sizes of rows that it is repeated over."""
        pairs = zip(self.strides or (), self.dims, dims, strict=False)
        strides = tuple(0 if own == 1 and size > 1 else step for step, own, size in pairs)
        return replace(self, dims=tuple(dims), strides=strides)

    def cut(self, start: int, width: int) -> "Spot":
        """Return some of its channels."""
        return replace(self, dims=(*self.dims[:3], width), offset=self.offset + start)


def padded(sizes: Sequence[int]) -> tuple[int, int, int, int]:
    """Return four sizes, ones in front."""
    a, b, c, d = (*(1,) * (4 - len(sizes)), *sizes)
    return a, b, c, d


def dense(dims: Sequence[int]) -> tuple[int, int, int]:
    """Return the strides of rows that lie one after another."""
    return dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3]


@dataclass
class Maker:
    """The records so far, and where values are.

    Args:
        size: gives the size of a dimension.
        weights: of the program.
        spots: of each value; those that the caller gives are there from the start.
        dies: the values of which an op, by number, is the last reader.
        scored: what attention makes, and the op that scores its keys beside it.
        noise: the first of three slots that a noisy op reads.
    """

    size: Evaluate
    weights: Weights
    spots: dict[Value, Spot]
    dies: Mapping[int, Sequence[Value]]
    scored: Mapping[Value, ScoreAttention] = field(default_factory=dict)
    noise: Mapping[Value, int] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)  # which op each record belongs to
    held: list[Any] = field(default_factory=list)
    arena: int = 0
    scratch: int = 0  # elements for each run of keys
    keys: int = 0  # the most keys of an attention that reads no cache
    at: int = 0
    _live: dict[int, set[Value]] = field(default_factory=dict)
    _rooms: list[tuple[int, int]] = field(default_factory=list)
    _free: dict[int, list[int]] = field(default_factory=dict)

    def dims(self, value: Value) -> tuple[int, int, int, int]:
        """Return the four sizes of a value."""
        return padded([self.size(d) for d in value.tensor.dims])

    def spot(self, value: Value) -> Spot:
        """Return where a value is."""
        return self.spots[value]

    def new(self, value: Value, dims: Sequence[int] | None = None) -> Spot:
        """Return room for a value."""
        room = self.room(padded(dims) if dims is not None else self.dims(value))
        return self.put(value, room)

    def grid(self, value: Value) -> Spot:
        """Return room for a value of bytes."""
        dims = self.dims(value)
        words = self.room((*dims[:3], -(-dims[3] // 4)))
        at = 4 * words.offset
        spot = replace(words, dims=dims, strides=dense(dims), offset=at, dtype=torch.uint8)
        return self.put(value, spot)

    def put(self, value: Value, spot: Spot) -> Spot:
        """Say where a value is."""
        self.spots[value] = spot
        if spot.root >= 0:
            self._live[spot.root].add(value)
        return spot

    def room(self, dims: tuple[int, int, int, int]) -> Spot:
        """Return room in the arena; what no value takes is free again after the op."""
        size = -(-prod(dims) // _ALIGNED) * _ALIGNED
        free = self._free.setdefault(size, [])
        if not free:
            free.append(self.arena)
            self.arena += size
        root = len(self._rooms)
        self._rooms.append((free.pop(), size))
        self._live[root] = set()
        return Spot(ARENA, dims, dense(dims), self._rooms[root][0], root=root)

    def done(self) -> None:
        """Free the rooms that no later op reads, and go on to the next op."""
        for value in self.dies.get(self.at, ()):
            spot = self.spots.get(value)
            if spot is not None and spot.root >= 0:
                self._live[spot.root].discard(value)
        for root in [root for root, values in self._live.items() if not values]:
            offset, size = self._rooms[root]
            self._free[size].append(offset)
            del self._live[root]
        self.at += 1

    def emit(
        self, code: Code, ins: Sequence[Spot], outs: Sequence[Spot | None], **fields: Any
    ) -> Record:
        """Add a record over the rows of its first output."""
        assert outs[0] is not None
        record = Record(code=code, type=TYPES[torch.float32], width=outs[0].dims[3])
        record.dims = outs[0].dims[:3]
        for views, spots in ((record.ins, ins), (record.outs, outs)):
            for i, spot in enumerate(spots):
                views[i] = View() if spot is None else spot.view
        for name, value in fields.items():
            setattr(record, name, value)
        self.records.append(record)
        self.owners.append(self.at)
        return record

    # ---- weights

    def vector(self, weight: Weight | None) -> int:
        """Return the address of a vector in float32, 0 for none."""
        found = vector(self.weights, weight)
        self.held.append(found)
        return 0 if found is None else found.data_ptr()

    def matrix(self, weight: Weight) -> tuple[Stored, ...]:
        """Return the parts of a matrix."""
        found = stored(self.weights, weight)
        self.held += found
        return found

    def table(self, weight: Weight) -> Stored:
        """Return a matrix in one part."""
        found = table(self.weights, weight)
        self.held.append(found)
        return found


def storage_type(value: Value) -> torch.dtype:
    """Return the type in which a value, or the cache, is stored outside of the arena."""
    kind = value.type
    return torch_dtype((kind if isinstance(kind, KV) else value.tensor).dtype)
