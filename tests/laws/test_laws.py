"""The laws that every pass of quality owes, as one matrix: a pass joins by being registered.

At its neutral setting the text of a module does not change. At the weakest setting that changes it,
outputs are the dense ones. At a setting that acts, a row of a left-padded batch gives what it gives
alone, and a session may be cropped and go on. Where a pass does not act it says why.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from elidir.backends.runtime import Prefill, Rows, Session
from elidir.ir import Module
from elidir.passes import Invariant, Pass, Pipeline, PipelineResult, Verify, passes
from elidir.passes.token_pruning.scorers import EVICTION
from tests.frontends.families import CAUSAL, Family, executable, family

# How a pass acts on models of two layers and prompts of some ten tokens.
FEW: dict[str, Any] = {"keep": 0.5, "at_least": 3}
ACTING: dict[str, list[dict[str, Any]]] = {
    "prune-tokens": [FEW, FEW | {"revive": 0}],
    "evict-kv": [FEW | {"scorer": scorer} for scorer in EVICTION],
}
ROWS = [(name, options) for name, rows in ACTING.items() for options in rows]
IDS = ["-".join([name, *(f"{o[k]}" for k in o.keys() - FEW.keys())]) for name, o in ROWS]
acting = pytest.mark.parametrize(("name", "options"), ROWS, ids=IDS)
CALIBRATED = {"extract-outliers"}
# Their laws are in test_merge_tokens.py and test_drop_visual_tokens.py: they have no sessions.
ENCODERS = {"merge-tokens", "drop-visual-tokens"}
LOSSY = sorted(n for n, cls in passes().items() if cls.invariant is Invariant.QUALITY)
PROMPT, SHORT = 12, 7


def run(known: Family, name: str, options: Any) -> PipelineResult:
    """The result of one pass on a family's step."""
    step: Pass = passes()[name](**options)
    return Pipeline((step,)).run(known.stepped.module, instruments=[Verify()])


def session(known: Family, module: Module, batch: int = 1) -> Session:
    """A session that reads prompts as the runtime does."""
    prefill = None
    if "prefill" in module.functions:
        prefill = Prefill.over(executable(known, module, "prefill"), module.symbols)
    return Session(executable(known, module, "step"), prefill=prefill, batch=batch)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random token ids."""
    return torch.randint(3, 60, shape, generator=torch.Generator().manual_seed(seed))


def answers(talk: Session, ids: Tensor, valid: Tensor | None = None) -> Tensor:
    """Logits of a prompt's last token, of three decoded tokens, and of a chunk behind them."""
    found = [talk.feed(ids, valid, rows=Rows.LAST)]
    found += [talk.feed(tokens(len(ids), 1, seed=i)) for i in range(3)]
    found += [talk.feed(tokens(len(ids), 4, seed=9))]
    return torch.cat(found, 1)


def test_every_pass_of_quality_has_its_row() -> None:
    assert set(ACTING) | CALIBRATED | ENCODERS == set(LOSSY)
    for name in ACTING:
        assert passes()[name].neutral is not None


@pytest.mark.parametrize("name", ACTING)
@pytest.mark.parametrize("model", CAUSAL)
def test_neutral_changes_nothing(model: str, name: str) -> None:
    known = family(model)
    found = run(known, name, passes()[name].neutral)
    assert found.module is known.stepped.module


@acting
@pytest.mark.parametrize("model", CAUSAL)
def test_the_weakest_change_gives_the_dense_outputs(
    model: str, name: str, options: dict[str, Any]
) -> None:
    known, identity = family(model), passes()[name].identity
    made = run(known, name, options | identity | {"at_least": 1}).module
    assert made is not known.stepped.module
    ids, valid = tokens(2, PROMPT), torch.ones(2, PROMPT, dtype=torch.bool)
    valid[1, : PROMPT - SHORT] = False
    dense = answers(session(known, known.stepped.module, 2), ids, valid)
    found = answers(session(known, made, 2), ids, valid)
    torch.testing.assert_close(found, dense, atol=1e-5, rtol=1e-5)


@acting
@pytest.mark.parametrize("model", CAUSAL)
def test_rows_are_independent(model: str, name: str, options: dict[str, Any]) -> None:
    known = family(model)
    made = run(known, name, options).module
    assert made is not known.stepped.module
    ids, valid = tokens(2, PROMPT), torch.ones(2, PROMPT, dtype=torch.bool)
    valid[1, : PROMPT - SHORT] = False
    both = answers(session(known, made, 2), ids, valid)
    for row, length in enumerate((PROMPT, SHORT)):
        alone = session(known, made)
        found = [alone.feed(ids[row : row + 1, PROMPT - length :], rows=Rows.LAST)]
        found += [alone.feed(tokens(2, 1, seed=i)[row : row + 1]) for i in range(3)]
        found += [alone.feed(tokens(2, 4, seed=9)[row : row + 1])]
        torch.testing.assert_close(both[row : row + 1], torch.cat(found, 1), atol=1e-5, rtol=1e-5)


@acting
@pytest.mark.parametrize("model", CAUSAL)
def test_a_session_that_is_cropped_goes_on_as_if_it_had_not_been_fed(
    model: str, name: str, options: dict[str, Any]
) -> None:
    known = family(model)
    made = run(known, name, options).module
    plain, cropped = session(known, made), session(known, made)
    for talk in (plain, cropped):
        talk.feed(tokens(1, PROMPT), rows=Rows.LAST)
    cropped.feed(tokens(1, 3, seed=5))
    cropped.crop(PROMPT)
    again = tokens(1, 4, seed=6)
    torch.testing.assert_close(cropped.feed(again), plain.feed(again), atol=1e-5, rtol=1e-5)
