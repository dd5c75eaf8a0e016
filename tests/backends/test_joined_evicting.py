"""Runs of ops that evict: scores are records, what goes is noted, and the reference agrees."""

import pytest
import torch

from elidir.backends import Executable, lower
from elidir.backends.cpu.joined import Joined
from elidir.backends.cpu.native.records import Code
from elidir.backends.runtime import Session
from elidir.ir import DType
from elidir.passes import Pipeline
from tests.backends.bench import TOLERANCE
from tests.backends.test_executor import small_decoder
from tests.backends.test_joined import compare

VOCABULARY = 40


def made(options: str, dtype: DType = DType.F32) -> tuple[Executable, Executable]:
    """Return the small decoder's step with eviction, by the cpu backend and by the reference."""
    module, store = small_decoder()
    found = Pipeline.parse(f"evict-kv{{{options}}}").run(module).module
    lowered = [lower(found["step"], found, store, b, dtype) for b in (("cpu",), ("reference",))]
    for step in lowered:
        step.binder.bounds.clear()
    return lowered[0], lowered[1]


def fed(step: Executable, batch: int, lengths: list[int]) -> tuple[list[torch.Tensor], Session]:
    """Return the logits of feeding so many tokens at a time, the first ones padded on the left."""
    session, generator = Session(step, batch=batch, capacity=4), torch.Generator().manual_seed(0)
    found = []
    for at, length in enumerate(lengths):
        ids = torch.randint(0, VOCABULARY, (batch, length), generator=generator)
        valid = None
        if at == 0 and length > 1:
            valid = torch.arange(length) >= torch.arange(batch).clamp(max=length - 1)[:, None]
        logits = session.feed(ids, valid)
        found.append(logits if valid is None else logits[valid])
    return found, session


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=lambda d: d.value)
@pytest.mark.parametrize("scorer", ["h2o", "knorm", "streaming", "keyformer tau_steps=6"])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_gives_what_the_reference_gives(batch: int, scorer: str, dtype: DType) -> None:
    fast, reference = made(f"scorer={scorer} tokens=7 sinks=1", dtype)
    lengths = [4, 1, 2, 3, 1, 1, 2]
    (mine, talk), (theirs, other) = fed(fast, batch, lengths), fed(reference, batch, lengths)
    compare(mine, theirs, dtype)
    (store,), (wanted,) = talk.cache.placed.values(), other.cache.placed.values()
    assert store.length == wanted.length
    if store.scores is not None and wanted.scores is not None:
        used = slice(store.length)
        known = store.valid[None, :, None, used]
        pair = (s.scores[..., used].masked_fill(~known, 0).sort(-1).values for s in (store, wanted))
        torch.testing.assert_close(*pair, atol=4 * TOLERANCE[dtype], rtol=1e-2)


@pytest.mark.parametrize("scorer", ["h2o", "keyformer"])
def test_keys_in_several_runs_are_scored_together(scorer: str) -> None:
    fast, reference = made(f"scorer={scorer} tokens=300 at_least=5 recent=0.1")
    lengths = [8] * 38 + [1, 2, 1]
    (mine, talk), (theirs, other) = fed(fast, 1, lengths), fed(reference, 1, lengths)
    compare(mine, theirs)
    (store,), (wanted,) = talk.cache.placed.values(), other.cache.placed.values()
    assert store.scores is not None
    assert wanted.scores is not None
    sums = (s.scores[..., : s.length].sum(-1) for s in (store, wanted))
    torch.testing.assert_close(*sums)


@pytest.mark.parametrize("scorer", ["h2o", "keyformer", "knorm", "streaming", "snapkv"])
def test_a_step_is_one_run_behind_the_mask(scorer: str) -> None:
    fast, _ = made(f"scorer={scorer} tokens=7 sinks=1")
    assert [(s.start, s.stop) for s in fast.stretches] == [(1, len(fast.instructions))]


@pytest.mark.parametrize("scorer", ["h2o", "keyformer"])
def test_attention_is_read_once_where_its_scores_are_wanted_too(scorer: str) -> None:
    fast, _ = made(f"scorer={scorer} tokens=7")
    fed(fast, 1, [4, 1])
    (stretch,) = fast.stretches
    assert isinstance(stretch.call, Joined)
    for tape in stretch.call.made:
        codes = [r.code for r in tape.records]
        assert codes.count(Code.GAIN) == codes.count(Code.ATTEND) == 2
        assert codes.count(Code.NOISE) == (2 if scorer == "keyformer" else 0)
