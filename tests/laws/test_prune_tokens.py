"""prune-tokens against LazyLLM written out by hand on transformers' layers; where it stops."""

import pytest
import torch
from torch import Tensor

from elidir.backends.runtime import Prefill, Rows, Session
from elidir.backends.runtime.cache import INITIAL_CAPACITY
from elidir.ir import Layer, Linear, TokensTake
from elidir.passes import Pipeline, PipelineError
from elidir.passes.token_pruning.prune_tokens import PruneTokens
from tests.frontends.families import Family, executable, family
from tests.laws.test_laws import run, session, tokens

LENGTH, KEEP, AT = 16, 0.4, 1


def by_hand(known: Family, ids: Tensor) -> tuple[Tensor, list[int]]:
    """Logits of the last token of one row, and the tokens that went past the first layer."""
    model, base = known.model, known.model.model
    model.config._attn_implementation = "eager"
    positions = torch.arange(ids.shape[1])[None]
    hidden, kept = base.embed_tokens(ids), positions
    for number, layer in enumerate(base.layers):
        length = hidden.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
        turns = base.rotary_emb(hidden, kept)
        weights = layer.self_attn(
            layer.input_layernorm(hidden), position_embeddings=turns, attention_mask=mask
        )[1]
        found = layer(hidden, position_embeddings=turns, attention_mask=mask)
        hidden = found[0] if isinstance(found, tuple) else found
        if number + 1 == AT:
            scores = weights[0, :, -1].mean(0)
            scores[-1] = float("inf")
            count = -(-int(KEEP * 10) * length // 10)
            best = scores.topk(count).indices.sort().values
            hidden, kept = hidden[:, best], kept[:, best]
    return model.lm_head(base.norm(hidden[:, -1])), kept[0].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_it_is_lazyllm(seed: int) -> None:
    known, ids = family("llama"), tokens(1, LENGTH, seed=seed)
    with torch.no_grad():
        wanted, kept = by_hand(known, ids)
    made = run(known, "prune-tokens", {"keep": KEEP, "at": (AT,), "at_least": 2}).module
    talk = session(known, made)
    torch.testing.assert_close(talk.feed(ids, rows=Rows.LAST)[0], wanted, atol=1e-5, rtol=1e-5)
    state = talk.cache.handles()[1]
    assert state.positions()[0].tolist() == kept
    assert state.length == len(kept) == 7


def test_what_is_dropped_is_neither_computed_nor_kept() -> None:
    known = family("llama")
    made = run(
        known, "prune-tokens", {"keep": KEEP, "at": (AT,), "at_least": 2, "revive": 0}
    ).module
    first, second = (op for op in made["prefill"].region.ops if isinstance(op, Layer))
    assert any(isinstance(op, TokensTake) for op in first.body.region.ops)
    assert str(second.inputs[0].type.dims[1]) == "Max(2, ceiling(2*P/5))"
    products = [op for op in first.body.region.ops if isinstance(op, Linear)]
    whole = {op.weight.name for op in products if str(op.result.type.dims[1]) == "P"}
    assert whole == {"self_attn.k_proj", "self_attn.v_proj"}
    talk = session(known, made)
    talk.feed(tokens(1, LENGTH), rows=Rows.LAST)
    assert talk.stats.layer_tokens == [LENGTH, 7]
    assert talk.stats.kv_bytes * 2 * LENGTH == talk.cache.bytes_per_token * LENGTH * (LENGTH + 7)


def test_no_room_is_kept_for_what_is_dropped() -> None:
    known = family("llama")
    made = run(known, "prune-tokens", {"keep": 0.2, "at_least": 2}).module
    step, prefill = (executable(known, made, name) for name in ("step", "prefill"))
    talk = Session(step, prefill=Prefill.over(prefill, made.symbols), capacity=4000)
    talk.feed(tokens(1, 60), rows=Rows.LAST)
    states = talk.cache.handles()
    assert states[0].storage()[0].shape[2] == 4000
    assert states[1].storage()[0].shape[2] <= INITIAL_CAPACITY


def test_states_grow_within_a_step_and_between_steps() -> None:
    known, ids = family("llama"), tokens(1, 60)
    made = run(known, "prune-tokens", {"keep": 0.9, "at_least": 2}).module
    talk, other = session(known, made), session(known, made)
    for store in talk.cache.placed.values():
        store.put(store.content(), 8)
    talk.feed(ids, rows=Rows.LAST)
    other.feed(ids, rows=Rows.LAST)
    kept = other.snapshot()
    found = talk.feed(tokens(1, 40, seed=1))
    other.feed(tokens(1, 9, seed=2))
    other.restore(kept)
    torch.testing.assert_close(other.feed(tokens(1, 40, seed=1)), found)


def test_all_rows_of_a_prompt_are_given_where_they_are_wanted() -> None:
    known, ids = family("llama"), tokens(1, LENGTH)
    made = run(known, "prune-tokens", {"keep": KEEP, "at_least": 2}).module
    dense = session(known, known.stepped.module).feed(ids)
    torch.testing.assert_close(session(known, made).feed(ids), dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"at": (2,)}, "cannot prune before layers (2,) of 2; give rising numbers from 1 to 1"),
        ({"at": ()}, "give rising numbers from 1 to 1"),
        ({"at": (1,), "keep": (0.5, 0.4)}, "give one part, or as many as layers"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(PipelineError) as caught:
        run(family("llama"), "prune-tokens", options)
    assert says in str(caught.value)


def test_a_model_of_short_prompts_is_left_as_it_is() -> None:
    known = family("llama")
    found = run(known, "prune-tokens", {"keep": 0.5, "at_least": 500})
    assert found.module is known.stepped.module
    assert "a prompt is left whole up to at_least=500" in found.missed[0].reason


def test_rows_that_accept_paths_of_other_lengths_keep_their_tokens() -> None:
    known, ids = family("llama"), tokens(2, LENGTH)
    options = {"keep": 1.0, "at": (AT,), "at_least": 2, "force": True}
    made = run(known, "prune-tokens", options).module
    found = []
    for module in (known.stepped.module, made):
        talk = session(known, module, 2)
        talk.feed(ids, rows=Rows.LAST)
        talk.feed(tokens(2, 4, seed=1))
        talk.accept([[0, 1], [0, -1]])
        found.append(talk.feed(tokens(2, 1, seed=2)))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def test_a_part_is_one_that_keeps_something() -> None:
    with pytest.raises(PipelineError, match="keep"):
        PruneTokens(keep=0.0)


def test_a_second_time_is_refused() -> None:
    known = family("llama")
    made = run(known, "prune-tokens", {"keep": KEEP, "at_least": 2})
    again = PruneTokens(keep=0.5)
    found = Pipeline((again,)).run(made.module)
    assert found.module is made.module
    assert "hold tokens of their own choice already" in found.missed[0].reason
