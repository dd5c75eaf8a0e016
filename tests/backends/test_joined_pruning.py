"""Runs of ops that drop tokens and bring them back: scores are read beside attention.

How many tokens come back is known only once the first run is over; the reference agrees.
"""

import pytest
import torch

from elidir.backends import Executable, lower
from elidir.backends.cpu.joined import Joined
from elidir.backends.cpu.native.records import Code
from elidir.backends.runtime import Rows, Session
from elidir.backends.runtime.session import Prefill
from elidir.ir import DType, KvAppend
from elidir.passes import Pipeline
from tests.backends.test_executor import small_decoder
from tests.backends.test_joined import compare

VOCABULARY = 40


def made(dtype: DType) -> tuple[list[Executable], list[Executable]]:
    """Return the small decoder's step and prefill with pruning, by cpu and by the reference."""
    module, store = small_decoder()
    prune = "prune-tokens{at=(1,) keep=0.3 at_least=3 revive=4 above=0.06 force=true}"
    found = Pipeline.parse(prune).run(module).module
    return tuple(
        [lower(found[name], found, store, chain, dtype) for name in ("step", "prefill")]
        for chain in (("cpu",), ("reference",))
    )


def fed(programs: list[Executable], batch: int) -> tuple[list[torch.Tensor], Session]:
    """Return the last logits of a prompt, padded on the left, and those of tokens after it."""
    step, prefill = programs
    reader = Prefill(prefill, least=4)
    session, generator = Session(step, prefill=reader, batch=batch), torch.Generator()
    ids = torch.randint(0, VOCABULARY, (batch, 40), generator=generator.manual_seed(0))
    valid = torch.arange(40) >= 3 * torch.arange(batch)[:, None]
    parts = [ids[:, start : start + new] for start, new in enumerate((1, 2, 1, 1, 3, 1))]
    first = session.feed(ids, valid, rows=Rows.LAST)
    return [first, *[session.feed(part) for part in parts]], session


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=lambda d: d.value)
@pytest.mark.parametrize("batch", [1, 3])
def test_it_gives_what_the_reference_gives(batch: int, dtype: DType) -> None:
    fast, reference = made(dtype)
    (mine, talk), (theirs, other) = fed(fast, batch), fed(reference, batch)
    assert talk.stats.layer_tokens == other.stats.layer_tokens
    assert 12 + 9 < talk.stats.layer_tokens[-1] < 40 + 9
    compare(mine, theirs, dtype)


def test_scores_are_read_beside_attention_before_the_choice() -> None:
    (step, prefill), _ = made(DType.F32)
    fed([step, prefill], 1)
    kinds = [step.instructions[s.start : s.stop] for s in step.stretches]
    assert [any(i.op.kind == "score.attention" for i in part) for part in kinds] == [True, False]
    first, second = (s.call for s in step.stretches)
    assert isinstance(first, Joined)
    assert isinstance(second, Joined)
    for tape in first.made:
        codes = [r.code for r in tape.records]
        assert codes.count(Code.GAIN) == codes.count(Code.ATTEND) == 1


def test_what_is_parked_is_appended_in_the_run_that_makes_it() -> None:
    (step, _), _ = made(DType.F32)
    first = step.stretches[0]
    ops = [i.op for i in step.instructions[first.start : first.stop]]
    assert [op.v.type.dims[3] for op in ops if isinstance(op, KvAppend)] == [4, 0]
