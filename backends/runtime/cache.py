"""The KV cache: keys and values of all layers on preallocated storage.

Each layer holds [B, G, capacity, D], so that what is cached is read as a view with contiguous
channels. Original positions and validity of all tokens are kept once; layers that hold tokens of
their own choice have stores of their own (`placed.py`). A step stages its tokens, each layer
appends through its handle, and `commit` makes them part of the cache: a step that fails leaves it
as it was. What a mask looks like is decided elsewhere.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elidir.backends.runtime.errors import CacheError
from elidir.backends.runtime.layer import LayerKV, LayerSpec
from elidir.backends.runtime.placed import Content, PlacedKV, PlacedStore, Staged

INITIAL_CAPACITY = 256


@dataclass(frozen=True)
class Snapshot:
    """A copy of what a cache held: nothing done to the cache later shows in it."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    positions: Tensor
    valid: Tensor
    placed: tuple[Content, ...] = ()
    layers: tuple[LayerSpec, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of the copy."""
        own = (t for content in self.placed for t in content.tensors())
        parts = (*self.keys, *self.values, self.positions, self.valid, *own)
        return sum(t.nbytes for t in parts)


class KVCache:
    """Keys, values, positions and validity of `length` tokens in each of `batch` rows.

    `dense` says that every cached token is known to be valid.

    Args:
        layers: one spec per layer.
        batch: rows.
        capacity: tokens to reserve room for; it doubles when it is exceeded.
        limit: the most tokens that the cache may grow to, None for any number.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        batch: int = 1,
        *,
        capacity: int = INITIAL_CAPACITY,
        limit: int | None = None,
    ) -> None:
        self.layers, self.limit = tuple(layers), limit
        self._shared = [s for s in self.layers if not s.placed]
        kinds = Counter(s for s in self.layers if s.placed)
        self.length = 0
        self.dense = True
        self._staged, self._staged_dense = 0, True
        capacity = max(capacity, 1) if limit is None else min(max(capacity, 1), limit)
        few = min(capacity, INITIAL_CAPACITY)  # they may hold less than they are fed, and grow
        self.placed = {s: PlacedStore(s, n, batch, few) for s, n in kinds.items()}
        self._allocate(batch, capacity)

    def _allocate(self, batch: int, capacity: int) -> None:
        """Make storage that holds nothing yet."""
        self.batch, self.capacity = batch, capacity
        self.keys = [
            torch.empty(batch, s.heads, capacity, s.key_dim, dtype=s.dtype) for s in self._shared
        ]
        self.values = [
            torch.empty(batch, s.heads, capacity, s.value_dim, dtype=s.dtype) for s in self._shared
        ]
        self.positions = torch.zeros(batch, capacity, dtype=torch.int64)
        self.valid = torch.zeros(batch, capacity, dtype=torch.bool)

    # ---- one step

    def stage(self, positions: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Make room for N tokens, and write their positions [B, N] and validity (None: all valid).

        Returns views of the positions and the validity of all slots, cached then new, [B, S + N].
        Raises `CacheError` when the cache may not grow so far.
        """
        new = positions.shape[1]
        end = self.length + new
        self.reserve(end)
        for store in self.placed.values():
            store.settle(self.valid.narrow(1, 0, self.length))
        self.positions.narrow(1, self.length, new).copy_(positions)
        slots = self.valid.narrow(1, self.length, new)
        if valid is None:
            slots.fill_(True)
        else:
            slots.copy_(valid)
        self._staged, self._staged_dense = new, valid is None
        held = self.positions.narrow(1, 0, end), self.valid.narrow(1, 0, end)
        for store in self.placed.values():
            store.stage(Staged(*held, self.length))
        return held

    def handles(self) -> list[LayerKV | PlacedKV]:
        """Return the state of each layer, to which a step appends the staged tokens."""
        length, limit = self.length, self.length + self._staged
        shared = (LayerKV(k, v, length, limit) for k, v in zip(self.keys, self.values, strict=True))
        found: list[LayerKV | PlacedKV] = []
        places = {spec: itertools.count() for spec in self.placed}
        for number, spec in enumerate(self.layers):
            if store := self.placed.get(spec):
                found.append(PlacedKV(store, next(places[spec]), store.length, number))
            else:
                found.append(next(shared))
        return found

    def commit(self, *, settle: bool = False) -> None:
        """Make the staged tokens part of the cache, once every layer has appended them.

        What the step evicts goes when the next one is staged, or at once with `settle`: then the
        step cannot be taken back.
        """
        self.dense = self.dense and self._staged_dense
        self.length += self._staged
        for store in self.placed.values():
            store.commit()
            if settle:
                store.settle(self.valid.narrow(1, 0, self.length))
        self._staged = 0

    def reserve(self, tokens: int) -> None:
        """Make room for this many tokens in all; raises `CacheError` beyond the limit."""
        if tokens <= self.capacity:
            return
        if self.limit is not None and tokens > self.limit:
            raise CacheError(
                f"the cache holds {self.length} tokens and may hold {self.limit}, but {tokens} are "
                "needed; crop it, start a new session, or give a higher limit"
            )
        grown = max(tokens, 2 * self.capacity)
        self._replace(self.snapshot(), grown if self.limit is None else min(grown, self.limit))

    # ---- between steps

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens.

        Raises `CacheError` if there are fewer, or some of them were evicted since.
        """
        if not 0 <= length <= self.length:
            raise CacheError(f"cannot crop to {length} tokens; the cache holds {self.length}")
        self._check_evicted(length)
        self._renumber(torch.arange(self.length).expand(self.batch, -1), length)
        self.length = length
        self._refresh()

    def _renumber(self, ordinals: Tensor, length: int) -> None:
        """Tell the layers of their own choice which ordinals, those below `length`, stay."""
        table = ordinals.masked_fill(ordinals >= length, -1)
        for store in self.placed.values():
            store.renumber(table)

    def _check_evicted(self, start: int) -> None:
        for store in self.placed.values():
            store.check(start)

    def gather(self, slots: Tensor, keep: Tensor | None = None, *, start: int = 0) -> None:
        """Keep the first `start` slots, and after them the chosen ones in the order given.

        Args:
            slots: i64[K] for every row, or i64[B, K].
            keep: bool[B, K]; a slot that is not kept stays as an invalid one, so that rows may keep
                different numbers.
            start: how many slots stay where they are.

        Raises:
            CacheError: a slot that the cache does not hold, or tokens of which some were evicted.
        """
        self._check_slots(slots, start)
        self._check_evicted(max(start, 1))
        count = slots.shape[-1]
        for stored in (*self.keys, *self.values):
            stored.narrow(2, start, count).copy_(_take(stored, slots))
        for stored in (self.positions, self.valid):
            stored.narrow(1, start, count).copy_(_take(stored[:, None, :, None], slots)[:, 0, :, 0])
        if keep is not None:
            self.valid.narrow(1, start, count).logical_and_(keep)
        if self.placed:
            new = start + torch.arange(count).expand(self.batch, -1)
            new = new if keep is None else new.masked_fill(~keep, -1)
            table = torch.arange(self.length).expand(self.batch, -1)
            table = table.masked_fill(table >= start, -1)
            # A filler names slot `start` too, so of two new places of one slot the kept one counts.
            table = table.scatter_reduce(1, slots.expand(self.batch, -1), new, "amax")
            self._renumber(table, start + count)
        self.length = start + count
        self._refresh()

    def _check_slots(self, slots: Tensor, start: int) -> None:
        if not 0 <= start <= self.length or start + slots.shape[-1] > self.capacity:
            raise CacheError(
                f"cannot keep {slots.shape[-1]} slots from {start} on; give fewer slots"
            )
        if slots.dim() not in (1, 2) or (slots.dim() == 2 and slots.shape[0] != self.batch):
            raise CacheError(f"slots are [K] or [{self.batch}, K], not {list(slots.shape)}")
        if slots.numel() and not 0 <= int(slots.min()) <= int(slots.max()) < self.length:
            raise CacheError(
                f"slots must be from 0 to {self.length - 1}; the cache holds no others"
            )

    def reorder(self, rows: Tensor) -> None:
        """Make row i a copy of row rows[i]; there may be more or fewer rows than before.

        Raises:
            CacheError: a row that the cache does not have.
        """
        if (
            rows.dim() != 1
            or not len(rows)
            or not 0 <= int(rows.min()) <= int(rows.max()) < self.batch
        ):
            raise CacheError(f"rows must be a list of numbers from 0 to {self.batch - 1}")
        chosen = tuple(store.content(rows) for store in self.placed.values())
        self._replace(self._copy(lambda t: t.index_select(0, rows), chosen), self.capacity)

    def snapshot(self) -> Snapshot:
        """Return a copy of what is cached."""
        return self._copy(Tensor.clone, tuple(s.content() for s in self.placed.values()))

    def restore(self, snapshot: Snapshot) -> None:
        """Hold what a snapshot of this cache, or of one with the same layers, held.

        Raises:
            CacheError: the snapshot's layers are not this cache's.
        """
        if snapshot.layers != self.layers:
            raise CacheError(
                "the snapshot is of a cache with other layers; restore it where it is from"
            )
        self._replace(snapshot, max(self.capacity, snapshot.positions.shape[1]))

    def _copy(self, copy: Callable[[Tensor], Tensor], placed: tuple[Content, ...]) -> Snapshot:
        used = self.length
        return Snapshot(
            tuple(copy(t.narrow(2, 0, used)) for t in self.keys),
            tuple(copy(t.narrow(2, 0, used)) for t in self.values),
            copy(self.positions.narrow(1, 0, used)),
            copy(self.valid.narrow(1, 0, used)),
            placed,
            self.layers,
        )

    def _replace(self, content: Snapshot, capacity: int) -> None:
        """Hold this content in storage of this capacity, in place where the sizes allow."""
        batch, length = content.positions.shape
        if (batch, capacity) != (self.batch, self.capacity):
            self._allocate(batch, capacity)
        for stored, kept in zip(self.keys, content.keys, strict=True):
            stored.narrow(2, 0, length).copy_(kept)
        for stored, kept in zip(self.values, content.values, strict=True):
            stored.narrow(2, 0, length).copy_(kept)
        self.positions.narrow(1, 0, length).copy_(content.positions)
        self.valid.narrow(1, 0, length).copy_(content.valid)
        for store, own in zip(self.placed.values(), content.placed, strict=True):
            store.put(own, max(store.capacity, own.valid.shape[1]))
        self.length = length
        self._refresh()

    def _refresh(self) -> None:
        self._staged = 0
        self.dense = bool(self.valid.narrow(1, 0, self.length).all())

    # ---- what is in it

    def next_positions(self) -> Tensor:
        """Return the position after each row's last valid token, i64[B, 1]."""
        if self.length == 0:
            return torch.zeros(self.batch, 1, dtype=torch.int64)
        valid = self.valid.narrow(1, 0, self.length)
        positions = self.positions.narrow(1, 0, self.length)
        return positions.masked_fill(~valid, -1).amax(1, keepdim=True) + 1

    def layer_tokens(self, fed: int) -> list[int]:
        """Return how many tokens each layer was given, of so many that were fed.

        A state without values is of no layer: it parks rows for another.
        """
        layers = [s for s in self.layers if s.value_dim]
        return [self.placed[s].tokens if s.placed else fed for s in layers]

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token in one row, all layers."""
        return sum(s.bytes for s in self.layers)

    @property
    def bytes_used(self) -> int:
        """Bytes of the keys and values that are cached."""
        shared = sum(s.bytes for s in self._shared) * self.batch * self.length
        return shared + sum(store.bytes_used for store in self.placed.values())

    @property
    def bytes_allocated(self) -> int:
        """Bytes of all storage, positions and validity included."""
        parts = (*self.keys, *self.values, self.positions, self.valid)
        own = sum(store.bytes_allocated for store in self.placed.values())
        return own + sum(t.nbytes for t in parts)


def _take(stored: Tensor, slots: Tensor) -> Tensor:
    """Return the chosen slots of [B, G, S, D], a copy."""
    if slots.dim() == 1:
        return stored.index_select(2, slots)
    batch, heads, _, width = stored.shape
    return stored.gather(2, slots[:, None, :, None].expand(batch, heads, slots.shape[1], width))
