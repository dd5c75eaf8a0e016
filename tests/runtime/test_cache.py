"""The KV cache as storage: what is read back after appends, growth, crops, gathers and copies.

No model runs here: what is appended are numbers that say which token they belong to. What a model
makes of the cache is tested in `test_session`.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elidir.backends.runtime import CacheError, KVCache, LayerSpec, layer_specs
from elidir.ir import Value as IRValue
from elidir.ir import parse_type

LAYERS = (LayerSpec(2, 3, 5, torch.float32), LayerSpec(1, 4, 4, torch.bfloat16))


def push(cache: KVCache, marks: Tensor, valid: Tensor | None = None) -> None:
    """Append tokens marked [B, N]: every channel of keys is the mark, of values its negative."""
    start = cache.next_positions()
    cache.stage(start + torch.arange(marks.shape[1]), valid)
    for spec, handle in zip(cache.layers, cache.handles(), strict=True):
        shape = (cache.batch, spec.heads, marks.shape[1])
        filled = marks[:, None, :, None].to(spec.dtype)
        handle.append(filled.expand(*shape, spec.key_dim), -filled.expand(*shape, spec.value_dim))
    cache.commit()


def held(cache: KVCache) -> Tensor:
    """Return the marks [B, S] in the cache, once all layers, keys and values agree on them."""
    found = []
    for handle in cache.handles():
        keys, values = handle.read()
        found += [keys.flatten(1, 1).float(), -values.float()]
    flat = [x.movedim(2, 1).flatten(2) for x in found]
    marks = flat[0][:, :, 0]
    assert all(torch.equal(x, marks[:, :, None].expand_as(x)) for x in flat)
    return marks.long()


def filled(length: int, batch: int = 1, capacity: int = 4, limit: int | None = None) -> KVCache:
    cache = KVCache(LAYERS, batch, capacity=capacity, limit=limit)
    push(cache, torch.arange(length) + 100 * torch.arange(batch)[:, None])
    return cache


def test_specs_come_from_the_parameters_of_a_step() -> None:
    kinds = ("i64[B, N]", "kv<B, 3, S, 64, 32, bf16, rotated>")
    found = layer_specs(IRValue(parse_type(text)) for text in kinds)
    assert found == (LayerSpec(3, 64, 32, torch.bfloat16),)


def test_append_returns_the_longer_state_and_leaves_the_shorter() -> None:
    cache = filled(2)
    cache.stage(torch.tensor([[2]]))
    before = cache.handles()[0]
    after = before.append(torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 5))
    assert before.read()[0].shape[2] == 2
    assert after.read()[0].shape == (1, 2, 3, 3)
    assert after.read()[1].shape == (1, 2, 3, 5)


def test_reads_are_views_of_the_storage() -> None:
    cache = filled(3)
    keys, values = cache.handles()[0].read()
    assert keys.data_ptr() == cache.keys[0].data_ptr()
    assert values.data_ptr() == cache.values[0].data_ptr()


def test_storage_doubles_and_stops_at_its_limit() -> None:
    cache = filled(4, capacity=4, limit=10)
    push(cache, torch.tensor([[4]]))
    assert cache.capacity == 8
    push(cache, torch.tensor([[5, 6, 7, 8]]))
    assert cache.capacity == 10
    assert held(cache).tolist() == [list(range(9))]
    with pytest.raises(CacheError, match="may hold 10, but 11 are needed; crop it"):
        push(cache, torch.tensor([[9, 9]]))
    assert held(cache).tolist() == [list(range(9))]


def test_more_tokens_than_were_staged_are_refused() -> None:
    cache = filled(1)
    cache.stage(torch.tensor([[1]]))
    with pytest.raises(CacheError, match="appends 2 tokens where 1 were staged"):
        cache.handles()[0].append(torch.ones(1, 2, 2, 3), torch.ones(1, 2, 2, 5))


def test_bytes_used_and_allocated() -> None:
    cache = filled(3, batch=2, capacity=8)
    per_token = 2 * (3 + 5) * 4 + 1 * (4 + 4) * 2
    assert cache.bytes_used == per_token * 2 * 3
    assert cache.bytes_allocated == (per_token + 8 + 1) * 2 * 8


# Each operation beside its meaning on plain lists: a row is a list of (mark, position, valid).

Row = list[tuple[int, int, bool]]


def state(cache: KVCache) -> list[Row]:
    marks = held(cache).tolist()
    places = cache.positions[:, : cache.length].tolist()
    flags = cache.valid[:, : cache.length].tolist()
    return [list(zip(m, p, f, strict=True)) for m, p, f in zip(marks, places, flags, strict=True)]


def operate(cache: KVCache, rows: list[Row], draw: st.DrawFn) -> list[Row]:
    """Do one random operation to the cache; returns what it makes of the lists."""
    kind = draw(st.sampled_from([push_some, crop_some, gather_some, reorder_some, restore_some]))
    return kind(cache, rows, draw)


def push_some(cache: KVCache, rows: list[Row], draw: st.DrawFn) -> list[Row]:
    count = draw(st.integers(1, 5))
    first = draw(st.integers(0, 50))
    valid = [[draw(st.booleans()) for _ in range(count)] for _ in rows]
    starts = cache.next_positions()[:, 0].tolist()
    marks, flags = (first + torch.arange(count)).expand(len(rows), -1), torch.tensor(valid)
    push(cache, marks, None if flags.all() else flags)
    new = [
        [(first + i, start + i, flags[i]) for i in range(count)]
        for start, flags in zip(starts, valid, strict=True)
    ]
    return [row + more for row, more in zip(rows, new, strict=True)]


def crop_some(cache: KVCache, rows: list[Row], draw: st.DrawFn) -> list[Row]:
    length = draw(st.integers(0, cache.length))
    cache.crop(length)
    return [row[:length] for row in rows]


def gather_some(cache: KVCache, rows: list[Row], draw: st.DrawFn) -> list[Row]:
    if cache.length == 0:
        return rows
    start = draw(st.integers(0, cache.length - 1))
    count = draw(st.integers(1, cache.length - start))
    numbers = st.lists(st.integers(0, cache.length - 1), min_size=count, max_size=count)
    slots = [draw(numbers) for _ in rows]
    keep = [[draw(st.booleans()) for _ in range(count)] for _ in rows]
    cache.gather(torch.tensor(slots), torch.tensor(keep), start=start)
    return [
        row[:start] + [(*row[s][:2], row[s][2] and k) for s, k in zip(chosen, flags, strict=True)]
        for row, chosen, flags in zip(rows, slots, keep, strict=True)
    ]


def reorder_some(cache: KVCache, rows: list[Row], draw: st.DrawFn) -> list[Row]:
    chosen = draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
    cache.reorder(torch.tensor(chosen))
    return [rows[i] for i in chosen]


def restore_some(cache: KVCache, rows: list[Row], draw: st.DrawFn) -> list[Row]:
    kept = cache.snapshot()
    operate(cache, rows, draw)
    cache.restore(kept)
    return rows


@settings(max_examples=40)
@given(st.data())
def test_any_operations_do_what_they_do_to_lists(data: st.DataObject) -> None:
    cache = filled(3, batch=2)
    rows = state(cache)
    for _ in range(data.draw(st.integers(1, 6))):
        rows = operate(cache, rows, data.draw)
        assert state(cache) == rows
        assert cache.dense == all(flag for row in rows for *_, flag in row)


def test_gather_of_the_same_slots_in_all_rows() -> None:
    cache = filled(6, batch=2)
    cache.gather(torch.tensor([5, 2]), start=1)
    assert held(cache).tolist() == [[0, 5, 2], [100, 105, 102]]
    assert cache.positions[:, :3].tolist() == [[0, 5, 2], [0, 5, 2]]


@pytest.mark.parametrize("length", [-1, 4])
def test_crop_to_what_is_not_there_is_refused(length: int) -> None:
    with pytest.raises(CacheError, match=f"cannot crop to {length} tokens; the cache holds 3"):
        filled(3).crop(length)


def test_gather_and_reorder_refuse_what_is_not_there() -> None:
    cache = filled(3, batch=2)
    with pytest.raises(CacheError, match="slots must be from 0 to 2"):
        cache.gather(torch.tensor([0, 3]))
    with pytest.raises(CacheError, match=r"slots are \[K\] or \[2, K\]"):
        cache.gather(torch.tensor([[0, 1]]))
    with pytest.raises(CacheError, match="rows must be a list of numbers from 0 to 1"):
        cache.reorder(torch.tensor([2]))
    assert held(cache).tolist() == [[0, 1, 2], [100, 101, 102]]


def test_a_snapshot_of_other_layers_is_refused() -> None:
    other = KVCache(LAYERS[:1])
    with pytest.raises(CacheError, match="other layers"):
        other.restore(filled(2).snapshot())
