"""Eviction as storage: which tokens are left, where they came from, and what can be taken back.

The rule is written out again on plain lists. No model runs here; what a program evicts is tested
with the laws.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elidir.backends.runtime import CacheError, KVCache, LayerSpec
from elidir.backends.runtime.eviction import split
from elidir.ir import KV, DType, KvEvict, Value, symbol
from elidir.ir import Tensor as TensorType

SPEC = LayerSpec(2, 3, 5, torch.float32, "S.0", scored=True)
LAYERS = 2


def rule(by: str = "scores", **options: Any) -> KvEvict:
    """An op that evicts, of which a state reads the attributes."""
    kv = KV(1, 2, symbol("S.0"), 3, 5, DType.F32, placed=True, scored=True)
    scores = Value(TensorType((1, 2, symbol("S.0")), DType.F32)) if by == "scores" else None
    return KvEvict(Value(kv), scores, by, **options)


def push(
    cache: KVCache,
    rule: KvEvict | None,
    new: int,
    valid: Tensor | None = None,
    scores: list[Tensor] | None = None,
    *,
    settle: bool = True,
) -> None:
    """Feed tokens whose keys and values are their ordinals, and evict."""
    start = cache.next_positions()
    marks = cache.length + torch.arange(new, dtype=torch.float32)
    positions = start + torch.arange(new)
    cache.stage(positions, valid)
    with torch.inference_mode():  # as programs run
        for layer, handle in enumerate(cache.handles()):
            shape = (cache.batch, SPEC.heads, new)
            keys = marks[:, None].expand(*shape, 3)
            longer = handle.append(keys, -marks[:, None].expand(*shape, 5))
            if rule is not None:
                longer.evict(rule, None if scores is None else scores[layer])
    cache.commit(settle=settle)


def held(cache: KVCache) -> list[list[list[list[int]]]]:
    """Return the tokens of each layer, row and head, once keys, values and ordinals agree."""
    (store,) = cache.placed.values()
    found = []
    for handle in cache.handles():
        keys, values = handle.read()
        ordinals = store.ordinals[handle.layer, :, :, : handle.length]
        known = store.valid[:, None, : handle.length].expand_as(ordinals)
        assert torch.equal(keys[known], ordinals[known][:, None].expand(-1, 3).float())
        assert torch.equal(values[known], -ordinals[known][:, None].expand(-1, 5).float())
        rows = zip(ordinals, known, strict=True)
        found.append([[sorted(h[k].tolist()) for h, k in zip(*r, strict=True)] for r in rows])
    return found


def wanted(tokens: list[int], worth: dict[int, float], size: int, op: KvEvict) -> list[int]:
    """Return which tokens of a row stay, all of those fed being given."""
    recent = math.ceil(op.recent * size) if isinstance(op.recent, float) else op.recent
    newest = sorted(worth)[len(worth) - recent :] if recent else []
    kept = {t for t in tokens if t in newest or t in sorted(worth)[: op.sinks]}
    rest = sorted((t for t in tokens if t not in kept), key=lambda t: (-worth[t], -t))
    return sorted([*kept, *rest[: max(size - len(kept), 0)]])


@settings(deadline=None, max_examples=60)
@given(
    by=st.sampled_from(["scores", "age"]),
    keep=st.sampled_from([0.0, 0.3, 1.0]),
    at_least=st.integers(3, 6),
    most=st.sampled_from([None, 6]),
    recent=st.sampled_from([0, 1, 2, 0.0, 0.4]),
    sinks=st.integers(0, 1),
    padding=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    feeds=st.lists(st.integers(1, 4), max_size=5),
    seed=st.integers(0, 99),
)
def test_what_is_left_is_what_the_rule_says(
    by: str,
    keep: float,
    at_least: int,
    most: int | None,
    recent: float,
    sinks: int,
    padding: list[int],
    feeds: list[int],
    seed: int,
) -> None:
    op = rule(by, keep=keep, at_least=at_least, most=most, recent=recent, sinks=sinks)
    cache = KVCache([SPEC] * LAYERS, len(padding), capacity=4)
    dice = torch.Generator().manual_seed(seed)
    heads = list(itertools.product(range(LAYERS), range(len(padding)), range(2)))
    plain = {place: Head(op, {}, []) for place in heads}
    for at, new in enumerate([8, *feeds]):
        valid = torch.arange(new) >= torch.tensor(padding)[:, None] if at == 0 else None
        start, before = cache.length, known(cache)
        slots = before.shape[3] + new
        scores = [draw(dice, len(padding), slots) for _ in range(LAYERS)]
        push(cache, op, new, valid, scores if by == "scores" else None)
        for layer, row, head in heads:
            fresh = range(start, start + new)
            tokens = before[layer, row, head].tolist() + list(fresh[0 if at else padding[row] :])
            gains = scores[layer][row, head].tolist()
            gains = gains[: before.shape[3]] + gains[slots - len(tokens) + before.shape[3] :]
            plain[layer, row, head].feed(tokens, gains, start)
        found = held(cache)
        assert {(i, b, g): found[i][b][g] for i, b, g in heads} == {
            place: head.tokens for place, head in plain.items()
        }


SCORES = st.sampled_from([0.0, -0.0, 1e-40, -1e-40, 1e-30, 1e-13, -1e-13, 0.5, 1.0, 1 + 2e-7])


@settings(deadline=None, max_examples=100)
@given(
    by=st.sampled_from(["scores", "age"]),
    scores=st.lists(SCORES, min_size=12, max_size=12),
    order=st.permutations(range(6)),
    recent=st.integers(0, 4),
    sinks=st.integers(0, 7),
    shared=st.booleans(),
)
def test_a_row_loses_the_same_token_alone_and_beside_a_shorter_one(
    by: str, scores: list[float], order: list[int], recent: int, sinks: int, shared: bool
) -> None:
    """Where each row loses one they are found in a quick way, beside an empty slot in the other."""
    op = rule(by, recent=recent, sinks=sinks, shared=shared)
    worth = torch.tensor(scores).view(1, 1, 2, 6).repeat(1, 2, 1, 1) if by == "scores" else None
    ordinals = torch.tensor(order, dtype=torch.int32).repeat(1, 2, 2, 1)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 0] = False
    held = torch.stack((valid[0], ordinals[0, 1, 0] != 0))
    counts = torch.tensor([[5], [4]])
    own = (None if worth is None else worth[:, :1], ordinals[:, :1], held[:1], counts[:1])
    alone = left(ordinals[:, :1], *split(op, *own, valid[:1]))
    assert alone == left(ordinals, *split(op, worth, ordinals, held, counts, valid))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("zeros", [(0.0, -0.0), (-0.0, 0.0), (1e-43, -1e-43)])
def test_of_zeros_of_either_sign_the_older_goes(zeros: tuple[float, float], rows: int) -> None:
    ordinals = torch.tensor([2, 0, 1], dtype=torch.int32).repeat(1, rows, 1, 1)
    worth = torch.tensor([1.0, *zeros]).repeat(1, rows, 1, 1)
    valid = torch.ones(rows, 3, dtype=torch.bool)
    counts = torch.tensor([[2], [3]])[:rows]
    found = split(rule(), worth, ordinals, valid, counts, valid)
    assert left(ordinals, *found, size=2) == [[1, 2]]


def left(ordinals: Tensor, over: Tensor, source: Tensor, size: int = 5) -> list[list[int]]:
    """Return the tokens in the first slots of each head of the first row, slots being copied."""
    moved = ordinals.clone().flatten()
    moved[over] = moved[source]
    return [sorted(head[:size]) for head in moved.view(ordinals.shape)[0, 0].tolist()]


@dataclass
class Head:
    """What a key head of a row holds, and what its tokens are worth; those evicted too."""

    op: KvEvict
    worth: dict[int, float]
    tokens: list[int]

    def feed(self, tokens: list[int], gains: list[float], start: int) -> None:
        """Take the tokens in the slots, -1 for none, and what each gains; evict."""
        fresh = [t for t in tokens if t >= start]
        for token, gain in zip(tokens, gains, strict=True):
            if token >= 0:
                added = self.worth.get(token, 0) + gain
                self.worth[token] = added if self.op.by == "scores" else token
        grown = len(self.tokens) + math.ceil(self.op.keep * len(fresh) - 1e-9)
        size = max(grown, self.op.at_least)
        size = min(len(self.tokens) + len(fresh), size, self.op.most or size)
        self.tokens = wanted([*self.tokens, *fresh], self.worth, size, self.op)


def draw(dice: torch.Generator, batch: int, slots: int) -> Tensor:
    """Return scores, some of them equal."""
    return torch.randint(0, 50, (batch, 2, slots), generator=dice).float()


def known(cache: KVCache) -> Tensor:
    """The token in each slot [L, B, G, S], -1 for none."""
    (store,) = cache.placed.values()
    used = store.ordinals[..., : store.length].long()
    return used.masked_fill(~store.valid[None, :, None, : store.length], -1)


def test_short_keys_stay_where_norms_count() -> None:
    cache = KVCache([SPEC] * LAYERS)
    push(cache, rule("norm", keep=0.5), 8)
    assert held(cache) == [[[[0, 1, 2, 3]] * 2]] * LAYERS


def test_heads_that_share_go_by_their_mean() -> None:
    cache = KVCache([SPEC] * LAYERS)
    scores = [torch.tensor([[[5.0, 0, 0, 1], [0, 4.0, 0, 4]]])] * LAYERS
    push(cache, rule(keep=0.5, shared=True), 4, None, scores)
    assert held(cache) == [[[[0, 3]] * 2]] * LAYERS


def test_memory_is_given_back() -> None:
    cache, whole = (KVCache([SPEC] * LAYERS, capacity=2000) for _ in range(2))
    push(cache, rule("age", keep=0.25), 2000)
    push(whole, None, 2000)
    before = whole.bytes_allocated
    assert cache.bytes_used == cache.bytes_per_token * 500
    tables = cache.positions.nbytes + cache.valid.nbytes
    assert cache.bytes_allocated - tables < 0.27 * (before - tables)


def test_a_step_evicts_when_the_next_one_comes() -> None:
    cache = KVCache([SPEC] * LAYERS)
    push(cache, rule("age", keep=0.5), 8)
    push(cache, rule("age"), 2, settle=False)
    assert held(cache)[0][0][0] == [4, 5, 6, 7, 8, 9]
    cache.crop(8)
    assert held(cache)[0][0][0] == [4, 5, 6, 7]
    push(cache, rule("age"), 2, settle=False)
    push(cache, None, 1, settle=False)
    assert held(cache)[0][0][0] == [6, 7, 8, 9, 10]


def test_scores_of_a_step_that_is_taken_back_do_not_count() -> None:
    cache = KVCache([SPEC] * LAYERS)
    push(cache, rule(keep=1.0), 3, None, [torch.tensor([[[3.0, 2, 1]] * 2])] * LAYERS)
    draft = [torch.tensor([[[0.0, 0, 9, 1]] * 2])] * LAYERS
    push(cache, rule(at_least=2), 1, None, draft, settle=False)
    cache.crop(3)
    even = [torch.tensor([[[0.0, 0, 0, 5]] * 2])] * LAYERS
    push(cache, rule(), 1, None, even)
    assert held(cache)[0][0][0] == [0, 1, 3]


def test_of_an_accepted_draft_only_what_is_over_goes() -> None:
    cache = KVCache([SPEC] * LAYERS)
    push(cache, rule("age", keep=0.5), 8)
    push(cache, rule("age"), 3, settle=False)
    cache.gather(torch.tensor([9]), start=8)
    push(cache, None, 1)
    (store,) = cache.placed.values()
    assert store.ordinals[0, 0, 0, : store.length].sort().values.tolist() == [5, 6, 7, 8, 9]


def test_what_was_evicted_cannot_be_gone_back_to() -> None:
    cache = KVCache([SPEC] * LAYERS)
    push(cache, rule("age", keep=0.5), 8)
    push(cache, rule("age"), 1)
    before = held(cache)
    for back in (lambda: cache.crop(7), lambda: cache.gather(torch.tensor([0, 1]))):
        with pytest.raises(CacheError, match="some of them were evicted when there were 9"):
            back()
    assert held(cache) == before
    cache.crop(9)
    cache.crop(0)
    assert cache.bytes_used == 0
    push(cache, None, 2)
    assert held(cache)[0][0][0] == [0, 1]


def test_a_snapshot_brings_back_what_was_evicted_since() -> None:
    cache = KVCache([SPEC] * LAYERS, batch=2)
    push(cache, None, 6)
    push(cache, rule("age"), 2, settle=False)
    before, saved = held(cache), cache.snapshot()
    push(cache, None, 1)
    assert held(cache) != before
    cache.restore(saved)
    assert held(cache) == before
    push(cache, None, 1)
    assert held(cache)[1][1][1] == [2, 3, 4, 5, 6, 7, 8]


def test_rows_are_reordered_with_what_is_due() -> None:
    cache = KVCache([SPEC] * LAYERS, batch=2)
    scores = torch.tensor([[[9.0, 1, 1], [1, 9, 1]], [[1, 1, 9], [9, 1, 1]]])
    push(cache, rule(at_least=1), 3, None, [scores] * LAYERS, settle=False)
    cache.reorder(torch.tensor([1, 1, 0]))
    push(cache, None, 1)
    assert held(cache)[0] == [[[2, 3], [0, 3]], [[2, 3], [0, 3]], [[0, 3], [1, 3]]]


def test_layers_of_one_length_evict_together() -> None:
    cache = KVCache([SPEC] * LAYERS)
    cache.stage(torch.tensor([[0]]))
    for handle in cache.handles():
        handle.append(torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 5))
    handle.evict(rule("age"))
    with pytest.raises(CacheError, match="all evict, or none"):
        cache.commit()
