"""The cost model knows what a pass dropped: work and cache are those of what really runs."""

import pytest

from elidir.backends.runtime import Rows
from elidir.cost_models import Request, decode, prefill, waterfall
from elidir.ir import Module
from elidir.passes import Pipeline
from tests.frontends.families import family
from tests.laws.test_laws import run, session, tokens

LENGTH = 64


def costs(before: Module, after: Module) -> tuple[float, float]:
    """Prefill and decode after a pass, as shares of before."""
    old, new = waterfall([("", before), ("", after)], ["a100-80g"], prompt=LENGTH)
    return new.prefill_seconds / old.prefill_seconds, new.decode_seconds / old.decode_seconds


@pytest.mark.parametrize("keep", [0.25, 0.5])
def test_decode_after_pruning_costs_no_more_than_before_and_its_new_ops(keep: float) -> None:
    known = family("llama")
    options = {"keep": keep, "at_least": 2}
    made = run(known, "prune-tokens", options | {"revive": 0}).module
    plain = costs(known.stepped.module, made)[1]
    assert plain < 1.2  # a mask and little more, on a model of two layers
    back = costs(known.stepped.module, run(known, "prune-tokens", options).module)[1]
    assert plain < back < 2  # two rows in the second layer, and the launches of a score


def test_what_a_state_holds_after_a_prompt_is_what_the_cost_model_says() -> None:
    known = family("llama")
    made = run(known, "prune-tokens", {"keep": 0.3, "at_least": 2}).module
    made = Pipeline.parse("lossless").run(made).module
    talk = session(known, made)
    talk.feed(tokens(1, LENGTH), rows=Rows.LAST)
    (_, kept) = talk.stats.layer_tokens
    talk.feed(tokens(1, 1))
    (_, held) = talk.stats.layer_tokens
    asked = Request(prompt=LENGTH, bindings={"K.1": held - kept - 1})
    assert decode(made, asked, LENGTH).bindings["S.1"] == kept
    assert decode(made, asked, LENGTH + 1).bindings["S.1"] == held
    assert decode(made, Request(prompt=LENGTH), LENGTH + 1).bindings["S.1"] == kept + 1 + 1
    assert prefill(made, Request(prompt=LENGTH)).bindings["K.1"] == 0


def test_nothing_comes_back_where_nothing_was_dropped() -> None:
    known = family("llama")
    made = run(known, "prune-tokens", {"keep": 0.3, "at_least": LENGTH}).module
    phase = decode(made, Request(prompt=LENGTH), LENGTH)
    assert (phase.bindings["S.1"], phase.bindings["K.1"]) == (LENGTH, 0)
    assert "K.1" not in phase.guessed
    made = run(known, "prune-tokens", {"keep": 0.3, "at_least": 2}).module
    assert "K.1" in decode(made, Request(prompt=LENGTH), LENGTH).guessed
