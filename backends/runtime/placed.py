"""The cache of layers that hold tokens of their own choice: the states of placed `kv`s.

Layers that hold equally many tokens share one store, so that what is done between steps is done to
all of them at once. Beside keys and values it keeps each slot's ordinal, the number of the token in
the session, by which the session crops, gathers, and tells positions. Slots lie in no order; masks
go by positions and validity alone. Which tokens go is decided in `eviction.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from elidir.backends.runtime.errors import CacheError
from elidir.backends.runtime.eviction import Due, remaining, split
from elidir.backends.runtime.layer import LayerSpec
from elidir.backends.tokens import Tokens
from elidir.ir import KvEvict

_SLACK = 16  # slots to spare, where storage is made anew because little is left


@dataclass(frozen=True)
class Staged:
    """The tokens of a session while a step runs: each has its ordinal, its place among them.

    Args:
        positions: i64[B, S + N], of those that are cached, then of the step's.
        valid: bool[B, S + N], the same.
        start: S, the ordinal of the step's first token.
    """

    positions: Tensor
    valid: Tensor
    start: int

    def chosen(self, tokens: Tokens | None) -> tuple[Tensor, Tensor]:
        """Return ordinals i32[B, K] and validity bool[B, K] of a set, without one of the step's."""
        if tokens is None:
            end = self.positions.shape[1]
            ordinals = torch.arange(self.start, end, dtype=torch.int32)
            return ordinals.expand(len(self.positions), -1), self.valid[:, self.start :]
        return tokens.index.int(), self.valid.gather(1, tokens.index) & tokens.is_valid()


@dataclass(frozen=True)
class Content:
    """A copy of what a store holds.

    Args:
        keys: [L, B, G, S, D], of L layers.
        values: the same.
        ordinals: i32[L, B, G, S], the number of the token in the session.
        scores: f32[L, B, G, S], where the state keeps some.
        valid: bool[B, S].
        born: i64[B, S], the ordinal of the first token of the step that brought the slot.
        since: i64[B, 1], the position after each row's first feed.
        due: what is to be evicted.
        evicted: the length of the session when tokens were evicted last.
    """

    keys: Tensor
    values: Tensor
    ordinals: Tensor
    scores: Tensor | None
    valid: Tensor
    born: Tensor
    since: Tensor
    due: Due | None = None
    evicted: int = 0

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all but what is due."""
        known = (self.valid, self.born, self.since)
        parts = (self.keys, self.values, self.ordinals, self.scores, *known)
        return tuple(t for t in parts if t is not None)

    def map(self, slots: Callable[[Tensor], Tensor], rows: Callable[[Tensor], Tensor]) -> "Content":
        """Return it with a function of all that has slots, [L, B, ..], and of what is [B, ..]."""
        due = self.due
        if due is not None:
            scores = None if due.scores is None else slots(due.scores)
            due = replace(due, held=rows(due.held), scores=scores)
        scores = None if self.scores is None else slots(self.scores)
        keys, values, ordinals = (slots(t) for t in (self.keys, self.values, self.ordinals))
        since = rows(self.since)
        return replace(
            self, keys=keys, values=values, ordinals=ordinals, scores=scores, since=since, due=due
        )


class PlacedStore:
    """Preallocated storage of some layers of one kind, and how many of its slots are used."""

    def __init__(self, spec: LayerSpec, layers: int, batch: int, capacity: int) -> None:
        self.spec, self.layers = spec, layers
        self.length, self.dense, self.evicted, self.tokens = 0, True, 0, 0
        self._pending, self._whole = 0, True
        self._set: Tokens | None = None
        self._due: Due | None = None
        self._notes: dict[int, tuple[KvEvict, Tensor | None]] = {}
        self._staged: Staged | None = None
        self._allocate(batch, capacity)

    @torch.inference_mode(
        False
    )  # or storage that grows in a step could not be changed between steps
    def _allocate(self, batch: int, capacity: int) -> None:
        spec = self.spec
        self.batch, self.capacity = batch, capacity
        sizes = (self.layers, batch, spec.heads, capacity)
        self.keys = torch.empty(*sizes, spec.key_dim, dtype=spec.dtype)
        self.values = torch.empty(*sizes, spec.value_dim, dtype=spec.dtype)
        self.ordinals = torch.zeros(sizes, dtype=torch.int32)
        self.scores = torch.zeros(sizes) if spec.scored else None
        self.valid = torch.zeros(batch, capacity, dtype=torch.bool)
        self.born = torch.zeros(batch, capacity, dtype=torch.int64)
        self.since = torch.zeros(batch, 1, dtype=torch.int64)

    # ---- one step

    def stage(self, staged: Staged) -> None:
        """Say which tokens a step may append; what an earlier step left unfinished is gone."""
        self._staged, self._pending, self._notes, self._whole = staged, 0, {}, True
        if self.length == 0:
            found = staged.positions.masked_fill(~staged.valid, -1)
            self.since = found.amax(1, keepdim=True) + 1

    @property
    def is_whole(self) -> bool:
        """Whether every slot holds a token, those of the step under way included."""
        return self.dense and self._whole

    @property
    def staged(self) -> Staged:
        """The tokens of the step; raises `CacheError` where there is none."""
        if self._staged is None:
            raise CacheError("no step is under way; stage its tokens first")
        return self._staged

    def room(self, layer: int, start: int, tokens: Tokens | None) -> int:
        """Note a layer's tokens of a step from slot `start` on, and return how many there are."""
        if self._pending and (tokens is None or tokens is self._set):
            return self._pending
        ordinals, valid = self.staged.chosen(tokens)
        count = ordinals.shape[1]
        if start + count > self.capacity:
            self._move_to(max(start + count, 2 * self.capacity))
        places = self.ordinals[layer : layer + 1]
        if not self._pending:  # what the first layer appends stands for all, as a rule
            self.valid.narrow(1, start, count).copy_(valid)
            self.born.narrow(1, start, count).fill_(self.staged.start)
            self._whole, self._set, places = bool(valid.all()), tokens, self.ordinals
        places.narrow(3, start, count).copy_(ordinals[None, :, None])
        self._pending = count
        return count

    def note(self, layer: int, rule: KvEvict, scores: Tensor | None) -> None:
        """Note that a layer evicts by a rule, once the step is part of the cache."""
        self._notes[layer] = (rule, scores)

    def commit(self) -> None:
        """Make what the step appended part of the state; what it evicts is due from now on.

        Slots behind it that fill up the set of every row are free again.
        """
        held, new = self.length, self._pending
        if new and not self._whole and not self._notes:
            used = self.valid.narrow(1, held, new).any(0).nonzero()
            new = int(used[-1]) + 1 if len(used) else 0
        if self._notes:
            self._due = self._noted(held, new)
        self.dense = self.dense and (not new or bool(self.valid.narrow(1, held, new).all()))
        self.length, self._pending, self._notes, self._whole = held + new, 0, {}, True
        self._set, self.tokens = None, self.tokens + new
        if not self.dense and self._due is None:
            self._pack()

    def _pack(self) -> None:
        """Drop filling, once it is a fifth of what is held: rows of a batch get unequal numbers."""
        most = int(self.valid.narrow(1, 0, self.length).sum(1).amax())
        if self.length > most + max(most // 4, _SLACK):
            self.renumber(torch.arange(self.staged.positions.shape[1]).expand(self.batch, -1))

    def _noted(self, held: int, new: int) -> Due:
        if len(self._notes) < self.layers:
            raise CacheError("of layers that hold equally many tokens all evict, or none")
        rule, scores = self._notes[0][0], None
        if self.scores is not None:
            self.scores.narrow(3, held, new).zero_()
        if rule.by == "scores":
            found = [self._notes[i][1] for i in range(self.layers)]
            scores = torch.stack([t for t in found if t is not None])
        elif rule.by == "norm" and self.scores is not None:
            keys = self.keys.narrow(3, held, new)
            norms = torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32)
            self.scores.narrow(3, held, new).copy_(-norms)
        count = self.valid.narrow(1, 0, held).sum(1, keepdim=True)
        return Due(rule, count, self.staged.start, scores)

    # ---- eviction

    def settle(self, valid: Tensor) -> None:
        """Evict what is due; `valid` bool[B, S] is of all tokens of the session."""
        due, self._due = self._due, None
        if due is None:
            return
        scores = self._ranked(due)
        held = self.valid.narrow(1, 0, self.length)
        now = held.sum(1, keepdim=True)
        counts = remaining(due.rule, due.held, now - due.held)
        if bool((counts == now).all()):
            return
        ordinals = self.ordinals.narrow(3, 0, self.length)
        self._copy(*split(due.rule, scores, ordinals, held, counts, valid))
        self.length = left = int(counts.max())
        self.valid.narrow(1, 0, left).copy_(torch.arange(left) < counts)
        self.born.zero_()  # slots move in each head on its own; what evicts brings nothing back
        self.dense = bool((counts == left).all())
        self.evicted = valid.shape[1]
        if self.capacity > left + max(left // 4, 4 * _SLACK):
            self._move_to(left + _SLACK)

    def _ranked(self, due: Due) -> Tensor | None:
        """Return what slots are ranked by, None for their age; a scored state adds it up."""
        if self.scores is None or due.rule.by == "age":
            return due.scores
        known = self.scores.narrow(3, 0, self.length)
        return known if due.scores is None else known.add_(due.scores)

    def _copy(self, to: Tensor, source: Tensor) -> None:
        """Copy slots over others, by their numbers among the used slots of all layers."""
        used, spare = self.length, self.capacity - self.length
        to, source = (t + t.div(used, rounding_mode="floor") * spare for t in (to, source))
        for stored in (self.keys, self.values, self.ordinals, self.scores):
            if stored is not None:
                rows = stored.view(-1, *stored.shape[4:])
                rows.index_copy_(0, to, rows.index_select(0, source))

    # ---- between steps

    def check(self, start: int) -> None:
        """Raise `CacheError` if what came before ordinal `start` is not all there any more."""
        if 0 < start < self.evicted:
            raise CacheError(
                f"cannot go back to {start} tokens: some of them were evicted when there were "
                f"{self.evicted}; crop to {self.evicted} or more or to 0, or restore a snapshot"
            )

    def renumber(self, table: Tensor) -> None:
        """Keep the slots whose ordinal o has table[b, o] >= 0, which is its new ordinal.

        Those fed since the last eviction lie at one place in all layers, and only they may go. What
        a step brought back goes with the first token of that step.
        """
        if self.length == 0:
            return
        held = self.content()
        if held.due is not None and bool((table[:, held.due.start :] < 0).all()):
            held = replace(held, due=None)
        rows = table[None, :, None].expand(self.layers, -1, self.spec.heads, -1)
        new = rows.gather(3, held.ordinals.long())
        born = table.gather(1, held.born)
        stays = (born >= 0) | (held.ordinals[0, :, 0] >= held.born)
        kept = (new[0, :, 0] >= 0) & stays & held.valid
        length = int(kept.sum(1).max())
        order = kept.to(torch.int8).argsort(dim=1, stable=True)[:, self.length - length :]
        fits = replace(held, ordinals=new).map(lambda t: _take(t, order), lambda t: t)
        ordinals, valid = fits.ordinals.clamp(min=0).int(), kept.gather(1, order)
        fits = replace(fits, born=born.clamp(min=0).gather(1, order))
        evicted = held.evicted if length else 0
        self.put(replace(fits, ordinals=ordinals, valid=valid, evicted=evicted), self.capacity)

    def content(self, rows: Tensor | None = None) -> Content:
        """Return a copy of what is held, of these rows of the batch where they are given."""
        used = self.length
        valid, born = (t[:, :used].clone() for t in (self.valid, self.born))
        parts = (
            self.keys,
            self.values,
            self.ordinals,
            self.scores,
            valid,
            born,
            self.since.clone(),
        )
        held = Content(*parts, due=self._due, evicted=self.evicted)  # type: ignore[arg-type]
        if rows is None:
            return held.map(lambda t: t[:, :, :, :used].clone(), lambda t: t)
        found = held.map(lambda t: t[:, rows, :, :used], lambda t: t[rows])
        return replace(found, valid=valid[rows], born=born[rows])

    def put(self, content: Content, capacity: int) -> None:
        """Hold this content in storage of this capacity."""
        batch, length = content.valid.shape
        if (batch, capacity) != (self.batch, self.capacity):
            self._allocate(batch, capacity)
        pairs = ((self.keys, content.keys), (self.values, content.values))
        for ours, theirs in (*pairs, (self.ordinals, content.ordinals)):
            ours.narrow(3, 0, length).copy_(theirs)
        if self.scores is not None and content.scores is not None:
            self.scores.narrow(3, 0, length).copy_(content.scores)
        self.valid.narrow(1, 0, length).copy_(content.valid)
        self.born.narrow(1, 0, length).copy_(content.born)
        self.since.copy_(content.since)
        self.length, self.dense = length, bool(content.valid.all())
        self._due, self.evicted = content.due, content.evicted

    def _move_to(self, capacity: int) -> None:
        self.put(self.content(), capacity)

    @property
    def bytes_used(self) -> int:
        """Bytes of the keys and values that are held."""
        return self.spec.bytes * self.layers * self.batch * self.length

    @property
    def bytes_allocated(self) -> int:
        """Bytes of all storage."""
        known = (self.valid, self.born, self.since)
        parts = (self.keys, self.values, self.ordinals, self.scores, *known)
        return sum(t.nbytes for t in parts if t is not None)


def _take(stored: Tensor, slots: Tensor) -> Tensor:
    """Return the chosen slots i64[B, K] of [L, B, G, S, ..], a copy."""
    wanted = slots.view(1, len(slots), 1, -1, *(1,) * (stored.dim() - 4))
    shape = (*stored.shape[:3], slots.shape[1], *stored.shape[4:])
    return stored.gather(3, wanted.expand(shape))


class PlacedKV:
    """A placed state while a step runs: a layer of a store, up to some length.

    Args:
        store: which holds it.
        layer: its number in the store.
        length: slots that are used.
        number: of the layer among all layers of the cache.
    """

    __slots__ = ("layer", "length", "number", "store")

    def __init__(self, store: PlacedStore, layer: int, length: int, number: int) -> None:
        self.store, self.layer, self.length, self.number = store, layer, length, number

    def append(self, k: Tensor, v: Tensor, tokens: Tokens | None = None) -> "PlacedKV":
        """Write keys [B, G, N, D] and values [B, G, N, Dv] of the step's tokens, or of a set.

        Raises `CacheError` if they are not as many as the tokens.
        """
        longer, new = self.extend(k.shape[2], tokens), k.shape[2]
        keys, values, _ = longer.storage()
        keys.narrow(2, self.length, new).copy_(k)
        values.narrow(2, self.length, new).copy_(v)
        return longer

    def extend(self, new: int, tokens: Tokens | None = None) -> "PlacedKV":
        """Return the state with room for more tokens; raises `CacheError` as `append` does."""
        count = self.store.room(self.layer, self.length, tokens)
        if count != new:
            raise CacheError(f"a layer appends {new} tokens where {count} were staged")
        return PlacedKV(self.store, self.layer, self.length + new, self.number)

    def evict(self, rule: KvEvict, scores: Tensor | None = None) -> "PlacedKV":
        """Note what is to be evicted between steps; until then the state stays as it is."""
        self.store.note(self.layer, rule, scores)
        return self

    def storage(self) -> tuple[Tensor, Tensor, int]:
        """Return keys and values of the whole capacity, and the length."""
        return self.store.keys[self.layer], self.store.values[self.layer], self.length

    def read(self) -> tuple[Tensor, Tensor]:
        """Return views of all keys [B, G, S, D] and values [B, G, S, Dv]."""
        keys, values, length = self.storage()
        return keys.narrow(2, 0, length), values.narrow(2, 0, length)

    def positions(self) -> Tensor:
        """Return the positions of what is cached, i64[B, S]: those of the first key head."""
        return self.head_positions()[:, 0]

    def head_positions(self) -> Tensor:
        """Return the positions of what each key head holds, i64[B, G, S]."""
        ordinals = self.store.ordinals[self.layer].narrow(2, 0, self.length).long()
        positions = self.store.staged.positions
        return positions[:, None].expand(-1, ordinals.shape[1], -1).gather(2, ordinals)

    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ordinals i32[B, G, C] of slots, the positions i64[B, T] of those, and `since`."""
        return self.store.ordinals[self.layer], self.store.staged.positions, self.store.since

    def ordinals(self) -> Tensor:
        """Return the numbers of the tokens that the first key head holds, i64[B, S]."""
        return self.store.ordinals[self.layer, :, 0, : self.length].long()

    def holds(self) -> Tensor:
        """Return which tokens from before the step it holds, or are none, bool[B, S]."""
        staged = self.store.staged
        held, known = self.ordinals(), self.valid()
        held = held if known is None else held.masked_fill(~known, staged.start)
        there = staged.valid[:, : staged.start + 1].logical_not()
        return there.scatter_(1, held, True)[:, : staged.start]

    def since(self) -> Tensor:
        """Return the position after each row's first feed, i64[B, 1]."""
        return self.store.since

    def valid(self) -> Tensor | None:
        """Return which cached slots hold a token, bool[B, S]; None where all do."""
        return None if self.store.is_whole else self.store.valid.narrow(1, 0, self.length)
