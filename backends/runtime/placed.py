"""The cache of one layer that holds tokens of its own choice: the state of a placed `kv`.

Beside keys and values it keeps each slot's position, its validity, and its ordinal: the number of
the token in the session. What the session crops or gathers it names by ordinals, since a slot's
number says nothing here. Slots lie in no order; masks go by positions and validity alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from elidir.backends.runtime.errors import CacheError
from elidir.backends.runtime.layer import LayerSpec
from elidir.backends.tokens import Tokens


@dataclass(frozen=True)
class Staged:
    """The new tokens of a step: positions, validity and ordinals, [B, N] each."""

    positions: Tensor
    valid: Tensor
    ordinals: Tensor

    @classmethod
    def of(cls, positions: Tensor, valid: Tensor | None, start: int) -> "Staged":
        """Return what a session feeds after `start` tokens; a validity of None is all valid."""
        ordinals = torch.arange(start, start + positions.shape[1]).expand_as(positions)
        known = torch.ones_like(positions, dtype=torch.bool) if valid is None else valid
        return cls(positions, known, ordinals)

    def chosen(self, tokens: Tokens | None) -> "Staged":
        """Return those of a set; all without one."""
        if tokens is None:
            return self
        positions, valid, ordinals = (
            t.gather(1, tokens.index) for t in (self.positions, self.valid, self.ordinals)
        )
        return Staged(positions, valid & tokens.is_valid(), ordinals)


@dataclass(frozen=True)
class Content:
    """A copy of what a store holds: keys and values [B, G, S, D], the rest [B, S]."""

    keys: Tensor
    values: Tensor
    positions: Tensor
    valid: Tensor
    ordinals: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all five."""
        return (self.keys, self.values, self.positions, self.valid, self.ordinals)


class PlacedStore:
    """Preallocated storage of one layer, and how many of its slots are used."""

    def __init__(self, spec: LayerSpec, batch: int, capacity: int) -> None:
        self.spec, self.length, self.dense = spec, 0, True
        self.tokens = 0
        self._pending = 0
        self._staged = Staged.of(torch.zeros(batch, 0, dtype=torch.int64), None, 0)
        self._allocate(batch, capacity)

    def _allocate(self, batch: int, capacity: int) -> None:
        spec = self.spec
        self.batch, self.capacity = batch, capacity
        with torch.inference_mode(False):  # a step grows it, and later ones write to it outside
            self.keys = torch.empty(batch, spec.heads, capacity, spec.key_dim, dtype=spec.dtype)
            self.values = torch.empty(batch, spec.heads, capacity, spec.value_dim, dtype=spec.dtype)
            self.positions = torch.zeros(batch, capacity, dtype=torch.int64)
            self.valid = torch.zeros(batch, capacity, dtype=torch.bool)
            self.ordinals = torch.zeros(batch, capacity, dtype=torch.int64)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all storage; slots are axis 2 of four, or axis 1 of two."""
        return (self.keys, self.values, self.positions, self.valid, self.ordinals)

    # ---- one step

    def stage(self, new: Staged) -> None:
        """Say which tokens a step may append; what an earlier step left unfinished is gone."""
        self._staged, self._pending = new, 0

    def handle(self) -> "PlacedKV":
        """Return the state before the step."""
        return PlacedKV(self, self.length)

    def room(self, start: int, tokens: Tokens | None) -> int:
        """Note the tokens of a step from slot `start` on, and return how many there are."""
        chosen = self._staged.chosen(tokens)
        count = chosen.positions.shape[1]
        if start + count > self.capacity:
            self.put(self.content(), max(start + count, 2 * self.capacity))
        self.positions.narrow(1, start, count).copy_(chosen.positions)
        self.valid.narrow(1, start, count).copy_(chosen.valid)
        self.ordinals.narrow(1, start, count).copy_(chosen.ordinals)
        self._pending = start + count - self.length
        return count

    def commit(self) -> None:
        """Make what the step appended part of the state."""
        new = self.valid.narrow(1, self.length, self._pending)
        self.dense = self.dense and bool(new.all())
        self.length += self._pending
        self.tokens += self._pending
        self._pending = 0

    # ---- between steps

    def renumber(self, table: Tensor) -> None:
        """Keep the slots whose ordinal o has table[b, o] >= 0, which is its new ordinal."""
        held = self.content()
        found = table.gather(1, held.ordinals).masked_fill(~held.valid, -1)
        length = int((found >= 0).sum(1).max()) if self.length else 0
        order = (found >= 0).to(torch.int8).argsort(dim=1, stable=True)[:, self.length - length :]
        keys, values = (
            t.gather(2, order[:, None, :, None].expand(-1, t.shape[1], -1, t.shape[3]))
            for t in (held.keys, held.values)
        )
        ordinals = found.gather(1, order)
        positions = held.positions.gather(1, order)
        fits = Content(keys, values, positions, ordinals >= 0, ordinals.clamp(min=0))
        self.put(fits, self.capacity)

    def content(self, rows: Tensor | None = None) -> Content:
        """Return a copy of what is held, of these rows of the batch where they are given."""
        used = [t.narrow(t.dim() // 2, 0, self.length) for t in self.tensors()]
        return Content(*(t.clone() if rows is None else t.index_select(0, rows) for t in used))

    def put(self, content: Content, capacity: int) -> None:
        """Hold this content in storage of this capacity."""
        batch, length = content.positions.shape
        if (batch, capacity) != (self.batch, self.capacity):
            self._allocate(batch, capacity)
        for ours, theirs in zip(self.tensors(), content.tensors(), strict=True):
            ours.narrow(ours.dim() // 2, 0, length).copy_(theirs)
        self.length = length
        self.dense = bool(content.valid.all())

    @property
    def bytes_used(self) -> int:
        """Bytes of the keys and values that are held."""
        return self.spec.bytes * self.batch * self.length


class PlacedKV:
    """A placed state while a step runs: a store up to some length."""

    __slots__ = ("length", "store")

    def __init__(self, store: PlacedStore, length: int) -> None:
        self.store, self.length = store, length

    def append(self, k: Tensor, v: Tensor, tokens: Tokens | None = None) -> "PlacedKV":
        """Write keys [B, G, N, D] and values [B, G, N, Dv] of the step's tokens, or of a set.

        Raises `CacheError` if they are not as many as the tokens.
        """
        longer, new = self.extend(k.shape[2], tokens), k.shape[2]
        self.store.keys.narrow(2, self.length, new).copy_(k)
        self.store.values.narrow(2, self.length, new).copy_(v)
        return longer

    def extend(self, new: int, tokens: Tokens | None = None) -> "PlacedKV":
        """Return the state with room for more tokens; raises `CacheError` as `append` does."""
        count = self.store.room(self.length, tokens)
        if count != new:
            raise CacheError(f"a layer appends {new} tokens where {count} were staged")
        return PlacedKV(self.store, self.length + new)

    def storage(self) -> tuple[Tensor, Tensor, int]:
        """Return keys and values of the whole capacity, and the length."""
        return self.store.keys, self.store.values, self.length

    def read(self) -> tuple[Tensor, Tensor]:
        """Return views of all keys [B, G, S, D] and values [B, G, S, Dv]."""
        keys, values, length = self.storage()
        return keys.narrow(2, 0, length), values.narrow(2, 0, length)

    def positions(self) -> Tensor:
        """Return the positions of what is cached, i64[B, S]."""
        return self.store.positions.narrow(1, 0, self.length)

    def valid(self) -> Tensor | None:
        """Return which cached slots hold a token, bool[B, S]; None where all do."""
        return None if self.store.dense else self.store.valid.narrow(1, 0, self.length)
