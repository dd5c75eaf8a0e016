"""Runs of ops as one native call: they cover a decoder's step and give what the reference gives."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elidir.backends import Executable, ExecutionError, WeightStore, lower
from elidir.backends.cpu import linear
from elidir.backends.cpu.native import tape
from elidir.backends.runtime import Session
from elidir.ir import DType, Module
from tests.backends.bench import TOLERANCE
from tests.backends.test_executor import empty, small_decoder

VOCABULARY = 40


def made(dtype: DType = DType.F32) -> tuple[Executable, Executable, Module, WeightStore]:
    """Return the small decoder's step by the cpu backend and by the reference."""
    module, store = small_decoder()
    fast = lower(module["step"], module, store, dtype=dtype)
    return fast, lower(module["step"], module, store, ("reference",), dtype), module, store


def fed(step: Executable, batch: int, lengths: Sequence[int], seed: int) -> list[torch.Tensor]:
    """Return the logits of feeding so many tokens at a time, the first ones padded on the left."""
    session = Session(step, batch=batch, capacity=4)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for at, length in enumerate(lengths):
        ids = torch.randint(0, VOCABULARY, (batch, length), generator=generator)
        valid = None
        if at == 0 and length > 1:
            valid = torch.arange(length) >= torch.arange(batch).clamp(max=length - 1)[:, None]
        logits = session.feed(ids, valid)
        found.append(logits if valid is None else logits[valid])
    return found


def compare(found: Any, wanted: Any, dtype: DType = DType.F32) -> None:
    """Compare logits."""
    for mine, theirs in zip(found, wanted, strict=True):
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(mine, theirs, atol=4 * tolerance, rtol=tolerance)


def test_a_step_is_one_run() -> None:
    fast, reference, _, _ = made()
    assert [(s.start, s.stop) for s in fast.stretches] == [(0, len(fast.instructions))]
    assert reference.stretches == ()


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=lambda d: d.value)
@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 4),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    seed=st.integers(0, 9),
)
def test_it_gives_what_the_reference_gives(
    dtype: DType, batch: int, lengths: list[int], seed: int
) -> None:
    fast, reference, _, _ = made(dtype)
    compare(fed(fast, batch, lengths, seed), fed(reference, batch, lengths, seed), dtype)


def test_a_long_cache_is_read_in_runs_of_keys() -> None:
    fast, reference, _, _ = made()
    lengths = (60, 60, 60, 60, 60, 1, 2, 1)
    for step in (fast, reference):
        step.binder.bounds.clear()
    compare(fed(fast, 2, lengths, 0), fed(reference, 2, lengths, 0))


def test_it_is_the_same_with_one_thread() -> None:
    fast, _, _, _ = made()
    threads = torch.get_num_threads()
    two = fed(fast, 2, (3, 1, 1), 1)
    torch.set_num_threads(1)
    try:
        one = fed(fast, 2, (3, 1, 1), 1)
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, one, two))


def test_more_rows_are_left_to_the_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, _, _, _ = made()
    called: list[int] = []
    run = tape.run
    monkeypatch.setattr(tape, "run", lambda r, *rest: called.append(len(r)) or run(r, *rest))
    fed(fast, 1, (linear.MAX_ROWS + 1,), 0)
    assert max(called, default=1) == 1
    fed(fast, 1, (linear.MAX_ROWS,), 0)
    assert max(called) > 10


def test_without_a_compiler_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, _, module, store = made()
    monkeypatch.setattr(tape, "available", lambda: False)
    plain = lower(module["step"], module, store)
    assert plain.stretches == ()
    compare(fed(plain, 2, (5, 1, 2, 12), 0), fed(fast, 2, (5, 1, 2, 12), 0))


@pytest.mark.parametrize("token", [VOCABULARY, -1])
def test_an_id_out_of_range_says_which(token: int) -> None:
    fast, _, _, _ = made()
    zeros = torch.zeros(1, 1).long()
    with pytest.raises(ExecutionError, match="out of range for @embed"):
        fast(torch.tensor([[token]]), zeros, zeros, None, *empty(1), zeros)


def test_other_states_than_the_runtimes_are_left_as_they_were() -> None:
    fast, reference, _, _ = made()
    zeros, states = torch.zeros(1, 1).long(), empty(1)
    first = fast(zeros, zeros, zeros, None, *states, zeros)
    again = fast(zeros, zeros, zeros, None, *states, zeros)
    wanted = reference(zeros, zeros, zeros, None, *states, zeros)
    assert states[0].read()[0].shape[2] == 0
    compare([first[0], again[0]], [wanted[0]] * 2)
    compare(first[1].read(), wanted[1].read())
