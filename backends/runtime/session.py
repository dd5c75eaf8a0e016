"""A session: one sequence in one or several rows, its KV cache, and the step that extends it.

`feed` is prefill, decode, a chunk of a prompt, a second turn and the verification of a draft, which
differ only in how many tokens come and which they may see. It makes the step's positions, mask and
rows; storage is the cache's affair, and choosing tokens that of `generate`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elidir.backends.runtime.cache import INITIAL_CAPACITY, KVCache, Snapshot
from elidir.backends.runtime.checks import as_ids, as_valid, check_positions
from elidir.backends.runtime.decoder import Call, Rows, Stats, Wanted, as_rows
from elidir.backends.runtime.errors import CacheError, InputError
from elidir.backends.runtime.layer import LayerSpec, layer_specs
from elidir.backends.runtime.masks import Tree, step_mask, tree
from elidir.ir import Symbol


@dataclass(frozen=True)
class Place:
    """Where the new tokens of a step stand.

    Args:
        positions: i64[B, N].
        next: the position after each row's last token, i64[B, 1].
        top: the highest of `next`.
    """

    positions: Tensor
    next: Tensor
    top: int


@dataclass(frozen=True)
class Prefill:
    """A program that drops tokens of a prompt, and how long a prompt it is for.

    Args:
        run: called as a step, with the validity bool[B, N] of the new tokens behind the mask.
        least: the fewest tokens of a prompt that it takes.
        whole: whether it computes every token, and evicts from the cache alone. It then has no
            such validity, and reads a session's first tokens whichever rows are wanted.
    """

    run: Callable[..., Sequence[Any]]
    least: int = 1
    whole: bool = False

    @classmethod
    def over(cls, run: Any, symbols: Mapping[str, Symbol]) -> "Prefill":
        """Return what the executable of a module's `@prefill` takes, given its symbols."""
        length = str(run.params[0].type.dims[1])
        return cls(run, symbols[length].lo, whole="valid" not in {p.name for p in run.params})

    def of(
        self, new: int, valid: Tensor | None, *, last: bool, first: bool
    ) -> Callable[..., Sequence[Any]] | None:
        """Return the program as a step over so many tokens, None if it does not take them.

        Args:
            new: tokens.
            valid: which are no padding.
            last: whether the last row alone is wanted.
            first: whether they are the session's first.
        """
        if new < self.least or not (last or (self.whole and first)):
            return None
        if self.whole:
            return self.run

        def run(ids: Tensor, pos: Tensor, kpos: Tensor, mask: Any, *rest: Any) -> Sequence[Any]:
            known = torch.ones(ids.shape, dtype=torch.bool) if valid is None else valid
            return self.run(ids, pos, kpos, mask, known, *rest)

        return run


class Session:
    """Feeds tokens to a `@step` and keeps what it must remember.

    Args:
        step: called as step(ids, pos, kpos, mask, kv.0, .., rows); its first result is the logits.
        layers: the cache of each layer; None reads them from `step.params`.
        prefill: the program for a prompt of which only the last token's logits are wanted.
        batch: rows.
        capacity: tokens to reserve room for at once.
        max_positions: positions that the model has, None for any number.
        vocabulary: number of token ids, None if it is not known.
        padding_counts: whether padding takes positions too.
    """

    def __init__(
        self,
        step: Callable[..., Sequence[Any]],
        layers: Sequence[LayerSpec] | None = None,
        *,
        prefill: Prefill | None = None,
        batch: int = 1,
        capacity: int = INITIAL_CAPACITY,
        max_positions: int | None = None,
        vocabulary: int | None = None,
        padding_counts: bool = False,
    ) -> None:
        layers = layer_specs(step.params) if layers is None else layers  # type: ignore[attr-defined]
        self.step, self.prefill = step, prefill
        self.max_positions, self.vocabulary = max_positions, vocabulary
        self.padding_counts = padding_counts
        self.cache = KVCache(layers, batch, capacity=capacity)
        self.stats = Stats()
        self._next, self._top = self.cache.next_positions(), 0
        self._fed = 0

    @property
    def batch(self) -> int:
        """Rows."""
        return self.cache.batch

    @property
    def length(self) -> int:
        """Tokens in the cache of each row, invalid ones included."""
        return self.cache.length

    @torch.no_grad()
    def feed(
        self,
        ids: Any,
        valid: Any = None,
        *,
        positions: Tensor | None = None,
        parents: Any = None,
        rows: Wanted = Rows.ALL,
    ) -> Tensor:
        """Put new tokens behind the cached ones; returns the logits [B, R, V] of the wanted rows.

        Args:
            ids: i64[B, N], or [N] for a single row.
            valid: bool[B, N]; padding is False, None when all are tokens.
            positions: i64[B, N]; None counts on from each row's last valid token.
            parents: [N] or [B, N] for a draft that branches: each token's parent among the new
                ones, -1 for the cached text. Siblings share a position and do
                not see each other.
            rows: whose logits: Rows.ALL, Rows.LAST, or indices [R] or [B, R] of the new tokens.

        Raises:
            InputError: ids out of range, shapes that do not fit, or more positions than there are.
        """
        ids = as_ids(ids, self.vocabulary, self.batch)
        valid = as_valid(valid, ids)
        branches = None if parents is None else _branches(parents, ids)
        wanted = as_rows(rows, *ids.shape)
        place = self._place(ids, valid, positions, branches)
        check_positions(place.top, self.max_positions)
        program = self.step
        if self.prefill and branches is None:
            last, first = rows is Rows.LAST, self.length == 0
            program = self.prefill.of(ids.shape[1], valid, last=last, first=first) or self.step
        return self._run(program, ids, valid, place, branches, wanted)

    def _run(
        self,
        program: Callable[..., Sequence[Any]],
        ids: Tensor,
        valid: Tensor | None,
        place: Place,
        branches: Tree | None,
        rows: Tensor,
    ) -> Tensor:
        cache, new, past = self.cache, ids.shape[1], self.cache.length
        keys, seen = cache.stage(place.positions, valid)
        mask = step_mask(new, seen, branches, dense=cache.dense and valid is None)
        start = time.perf_counter()
        logits: Tensor = program(ids, place.positions, keys, mask, *cache.handles(), rows)[0]
        cache.commit(settle=program is not self.step)
        self._next, self._top, self._fed = place.next, place.top, new
        self.stats.calls.append(Call(new, past, time.perf_counter() - start))
        self.stats.kv_bytes = cache.bytes_used
        self.stats.layer_tokens = cache.layer_tokens(self.stats.tokens)
        return logits

    # ---- positions

    def _place(
        self, ids: Tensor, valid: Tensor | None, positions: Tensor | None, branches: Tree | None
    ) -> Place:
        if positions is not None:
            return self._given(ids, valid, positions)
        if branches is not None:
            return self._branching(ids, branches)
        return self._counted(ids.shape[1], valid)

    def _counted(self, new: int, valid: Tensor | None) -> Place:
        """Count on from each row's last token, padding left out, as transformers does."""
        if valid is None or self.padding_counts:
            found = self._next + torch.arange(new) if new > 1 else self._next
            return Place(found, self._next + new, self._top + new)
        counts = valid.cumsum(1)
        after = self._next + counts[:, -1:]
        return Place((self._next + counts - 1).clamp(min=0), after, int(after.max()))

    def _branching(self, ids: Tensor, branches: Tree) -> Place:
        found = (self._next + branches.depth).expand(ids.shape)
        after = found.amax(1, keepdim=True) + 1
        return Place(found, after, int(after.max()))

    def _given(self, ids: Tensor, valid: Tensor | None, positions: Tensor) -> Place:
        found = torch.as_tensor(positions, dtype=torch.int64)
        found = found.expand(ids.shape) if found.dim() == 1 else found
        if found.shape != ids.shape:
            raise InputError(f"positions have shape {list(found.shape)}, the ids {list(ids.shape)}")
        if int(found.min()) < 0:
            raise InputError("positions are nonnegative; padding may have position 0")
        counted = found if valid is None else found.masked_fill(~valid, -1)
        after = torch.maximum(self._next, counted.amax(1, keepdim=True) + 1)
        return Place(found, after, int(after.max()))

    # ---- between steps

    def accept(self, path: Any) -> None:
        """Of the tokens of the last `feed`, keep these, in this order; the others are forgotten.

        Args:
            path: indices [K] among the new tokens, or [B, K] where -1 fills the shorter rows. An
                empty path forgets them all; 0, 1, .., k - 1 only crops.

        Raises:
            CacheError: there was no step to take back, or an index that is not of its tokens.
        """
        chosen = torch.as_tensor(path, dtype=torch.int64)
        start, count = self.length - self._fed, chosen.shape[-1]
        if chosen.numel() and not -1 <= int(chosen.min()) <= int(chosen.max()) < self._fed:
            raise CacheError(f"accept takes indices below {self._fed}: the tokens of the last feed")
        if torch.equal(chosen, torch.arange(count).expand_as(chosen)):
            self.crop(start + count)
            return
        self.gather(start + chosen.clamp(min=0), chosen >= 0, start=start)

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens; raises `CacheError` as `KVCache.crop` does."""
        self.cache.crop(length)
        self._recount()

    def gather(self, slots: Tensor, keep: Tensor | None = None, *, start: int = 0) -> None:
        """Keep `start` slots and then the chosen ones; see `KVCache.gather`."""
        self.cache.gather(slots, keep, start=start)
        self._recount()

    def reorder(self, rows: Any) -> None:
        """Make row i a copy of row rows[i]; there may be more or fewer rows than before."""
        self.cache.reorder(torch.as_tensor(rows, dtype=torch.int64))
        self._recount()

    def snapshot(self) -> Snapshot:
        """Return a copy of what is cached, to come back to."""
        return self.cache.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Come back to a snapshot, of this session or of another over the same step."""
        self.cache.restore(snapshot)
        self._recount()

    def _recount(self) -> None:
        self._next = self.cache.next_positions()
        self._top, self._fed = int(self._next.max()), 0
        self.stats.kv_bytes = self.cache.bytes_used


def _branches(parents: Any, ids: Tensor) -> Tree:
    found = tree(torch.as_tensor(parents, dtype=torch.int64))
    batch, new = found.depth.shape
    if new != ids.shape[1] or batch not in (1, ids.shape[0]):
        raise InputError(f"parents have shape {[batch, new]}, the token ids {list(ids.shape)}")
    return found
