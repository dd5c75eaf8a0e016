"""evict-kv against attention and masks written out by hand, its budgets, and where it stops."""

from typing import Any

import pytest
import torch
from torch import Tensor

import elidir
from elidir.backends.runtime import CacheError, Rows, generate
from elidir.cost_models import Request, decode, prefill
from elidir.cost_models.memory import footprint
from elidir.cost_models.work import Precision
from elidir.frontends.evaluation import Passkey, contains
from elidir.frontends.evaluation.trials import encoder
from elidir.ir import KvEvict, Layer, Module
from elidir.passes import Pipeline, PipelineError
from elidir.passes.token_pruning.evict_kv import EvictKv
from elidir.passes.token_pruning.scorers import EVICTION
from tests.frontends.families import Family, family
from tests.laws.test_laws import run, session, tokens

LENGTH, KEPT = 16, 8


def made(known: Family, **options: Any) -> Module:
    """The module of a pass whose default is a half of any prompt."""
    return run(known, "evict-kv", {"at_least": 3} | options).module


def attention_by_hand(known: Family, ids: Tensor) -> list[Tensor]:
    """What each layer's heads [H, N, N] look at, by transformers."""
    known.model.config._attn_implementation = "eager"
    with torch.no_grad():
        return [a[0] for a in known.model(ids, output_attentions=True).attentions]


def by_group(known: Family, scores: Tensor) -> Tensor:
    """Return the mean over the heads that share key heads."""
    return scores.unflatten(0, (known.model.config.num_key_value_heads, -1)).mean(1)


def held(talk: Any, layer: int) -> list[list[int]]:
    """The tokens that the key heads of a layer hold."""
    positions = talk.cache.handles()[layer].head_positions()[0]
    return positions.sort(-1).values.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_h2o_keeps_what_got_most_attention_and_the_newer_half(seed: int) -> None:
    known, ids = family("llama"), tokens(1, LENGTH, seed=seed)
    talk = session(known, made(known, scorer="h2o"))
    talk.feed(ids, rows=Rows.LAST)
    for layer, weights in enumerate(attention_by_hand(known, ids)):
        scores = by_group(known, weights.sum(1))
        old = scores[:, : LENGTH - 4].topk(4).indices.sort().values
        wanted = [[*row, *range(LENGTH - 4, LENGTH)] for row in old.tolist()]
        assert held(talk, layer) == wanted


def test_h2o_adds_up_over_steps() -> None:
    known, ids = family("llama"), tokens(1, LENGTH)
    talk = session(known, made(known, scorer="h2o", keep=1.0, force=True))
    for at in range(LENGTH):
        talk.feed(ids[:, at : at + 1])
    talk.feed(ids[:, :1])
    (store,) = talk.cache.placed.values()
    for layer, weights in enumerate(attention_by_hand(known, ids)):
        found = store.scores[layer, 0, :, :LENGTH]
        torch.testing.assert_close(found, by_group(known, weights.sum(1)), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_half_of_a_cache_is_enough_to_find_a_pass_key() -> None:
    fast = elidir.compile("smollm2", pipeline="lossless, evict-kv")
    encode, model = encoder(fast.tokenizer), fast.language_model()
    for question in Passkey((500,), trials=1).questions(encode, None):
        ids = torch.tensor([encode(question.prompt, question.lead)])
        out = generate(model, ids, max_new_tokens=12, do_sample=False)
        said = fast.tokenizer.decode(out[0, ids.shape[1] :].tolist())
        assert any(contains(said, a) for a in question.answers), said


@pytest.mark.parametrize("seed", range(3))
def test_snapkv_keeps_its_window_and_what_that_looks_at(seed: int) -> None:
    known, ids = family("llama"), tokens(1, LENGTH, seed=seed)
    talk = session(known, made(known, scorer="snapkv", window=2, near=1, pool="mean"))
    talk.feed(ids, rows=Rows.LAST)
    for layer, weights in enumerate(attention_by_hand(known, ids)):
        scores = by_group(known, weights[:, -2:].sum(1))
        pooled = torch.nn.functional.avg_pool1d(scores, 3, 1, 1)[:, :-2]
        old = pooled.topk(KEPT - 2).indices.sort().values
        assert held(talk, layer) == [[*row, LENGTH - 2, LENGTH - 1] for row in old.tolist()]
    talk.feed(tokens(1, 1))
    talk.feed(tokens(1, 1))
    assert talk.stats.kv_bytes == talk.cache.bytes_per_token * (KEPT + 2)


@pytest.mark.parametrize("length", [5, 6])
def test_neighbours_may_reach_beyond_a_short_prompt(length: int) -> None:
    known = family("llama")
    talk = session(known, run(known, "evict-kv", {"tokens": 4}).module)
    ids = tokens(1, length)
    wanted = session(known, known.stepped.module).feed(ids, rows=Rows.LAST)
    torch.testing.assert_close(talk.feed(ids, rows=Rows.LAST), wanted, atol=1e-5, rtol=1e-5)
    assert talk.stats.kv_bytes == talk.cache.bytes_per_token * 4


@pytest.mark.parametrize("seed", range(3))
def test_a_budget_below_the_window_is_chosen_by_attention_to_a_half(seed: int) -> None:
    known, ids = family("llama"), tokens(1, LENGTH, seed=seed)
    talk = session(known, run(known, "evict-kv", {"tokens": 6, "near": 0}).module)
    talk.feed(ids, rows=Rows.LAST)
    for layer, weights in enumerate(attention_by_hand(known, ids)):
        scores = by_group(known, weights[:, -6:].sum(1))
        old = scores[:, :-3].topk(3).indices.sort().values
        assert held(talk, layer) == [[*row, *range(LENGTH - 3, LENGTH)] for row in old.tolist()]


def test_streaming_decodes_as_if_the_others_were_masked() -> None:
    known, ids, new = family("llama"), tokens(1, LENGTH), tokens(1, 2, seed=3)
    talk = session(known, made(known, scorer="streaming", sinks=2))
    with torch.no_grad():
        past = known.model(ids, use_cache=True).past_key_values
        talk.feed(ids, rows=Rows.LAST)
        gone = list(range(2, LENGTH - KEPT + 2))
        for at in range(2):
            mask = torch.ones(1, LENGTH + at + 1, dtype=torch.int64)
            mask[:, gone] = 0
            given = {"attention_mask": mask, "position_ids": torch.tensor([[LENGTH + at]])}
            found = known.model(new[:, at : at + 1], past_key_values=past, **given)
            logits = talk.feed(new[:, at : at + 1])
            torch.testing.assert_close(logits, found.logits, atol=1e-5, rtol=1e-5)
            gone.append(LENGTH - KEPT + 2 + at)


def test_noise_is_gumbel_and_changes_what_keyformer_keeps() -> None:
    known, ids = family("llama"), tokens(1, LENGTH)
    kept = []
    for options in ({"noise": False}, {"seed": 1}, {"seed": 1}, {"seed": 2}):
        talk = session(known, made(known, scorer="keyformer", **options))
        talk.feed(ids, rows=Rows.LAST)
        kept.append([held(talk, layer) for layer in range(2)])
    assert kept[1] == kept[2]
    assert kept[0] != kept[1] != kept[3]


@pytest.mark.parametrize("scorer", EVICTION)
def test_a_long_generation_stays_within_its_tokens(scorer: str) -> None:
    known = family("llama")
    talk = session(known, made(known, scorer=scorer, tokens=6))
    talk.feed(tokens(1, LENGTH), rows=Rows.LAST)
    assert talk.stats.kv_bytes == talk.cache.bytes_per_token * 6
    for seed in range(4):
        talk.feed(tokens(1, 1, seed=seed))
        more = 1 if EVICTION[scorer].in_step else seed + 1
        assert talk.stats.kv_bytes == talk.cache.bytes_per_token * (6 + more)


def test_bytes_are_those_of_a_row() -> None:
    known = family("llama")
    each = session(known, known.stepped.module).cache.bytes_per_token
    talk = session(known, made(known, bytes=f"{each * 5 + each // 2} B"))
    talk.feed(tokens(1, LENGTH), rows=Rows.LAST)
    assert talk.stats.kv_bytes == each * 5


def test_a_first_prompt_evicts_whichever_rows_are_wanted() -> None:
    known, ids = family("llama"), tokens(1, LENGTH)
    talk = session(known, made(known, scorer="h2o"))
    dense = session(known, known.stepped.module).feed(ids)
    torch.testing.assert_close(talk.feed(ids), dense, atol=1e-5, rtol=1e-5)
    assert talk.stats.kv_bytes == talk.cache.bytes_per_token * KEPT


def test_going_back_behind_an_eviction_is_refused() -> None:
    known = family("llama")
    talk = session(known, made(known, scorer="knorm"))
    talk.feed(tokens(1, LENGTH), rows=Rows.LAST)
    for _ in range(2):
        talk.feed(tokens(1, 1))
    talk.crop(LENGTH + 1)
    with pytest.raises(CacheError, match=f"cannot go back to {LENGTH} tokens: some of them were"):
        talk.crop(LENGTH)


@pytest.mark.parametrize("scorer", EVICTION)
def test_it_composes_behind_prune_tokens(scorer: str) -> None:
    known, ids = family("llama"), tokens(1, LENGTH)
    noise = " noise=false" if scorer == "keyformer" else ""
    pruned = run(known, "prune-tokens", {"keep": 0.5, "at_least": 3, "revive": 0}).module
    evict = Pipeline.parse(f"evict-kv{{at_least=3 scorer={scorer}{noise}}}")
    module = evict.run(pruned).module
    talk, other = session(known, module), session(known, pruned)
    first, wanted = (s.feed(ids, rows=Rows.LAST) for s in (talk, other))
    torch.testing.assert_close(first, wanted, atol=1e-5, rtol=1e-5)
    assert [h.length for h in talk.cache.handles()] == [KEPT, KEPT // 2]
    assert talk.stats.kv_bytes * 2 == other.stats.kv_bytes
    assert bool(talk.feed(tokens(1, 1)).isfinite().all())


def test_noise_is_refused_where_some_tokens_are_no_queries() -> None:
    text = "prune-tokens{at_least=3 revive=0}, evict-kv{at_least=3 scorer=keyformer}"
    found = Pipeline.parse(text).run(family("llama").stepped.module)
    assert "give noise=false" in found.missed[-1].reason


def test_it_is_refused_where_dropped_tokens_come_back() -> None:
    text = "prune-tokens{at_least=3}, evict-kv{at_least=3}"
    found = Pipeline.parse(text).run(family("llama").stepped.module)
    assert "give prune-tokens{revive=0}" in found.missed[-1].reason


def test_the_other_order_is_refused_with_the_right_one() -> None:
    module = made(family("llama"))
    found = Pipeline.parse("prune-tokens{at_least=3}").run(module)
    assert found.module is module
    assert "give prune-tokens{revive=0} first, then evict-kv" in found.missed[0].reason
    again = Pipeline.parse("evict-kv{at_least=3}").run(module)
    assert again.module is module
    assert "its states evict already" in again.missed[0].reason


@pytest.mark.parametrize("scorer", EVICTION)
def test_the_cost_model_knows_what_is_held(scorer: str) -> None:
    known = family("llama")
    module = made(known, scorer=scorer)
    talk = session(known, module)
    talk.feed(tokens(1, LENGTH), rows=Rows.LAST)
    request = Request(prompt=LENGTH)
    read = footprint(module, prefill(module, request), Precision())
    assert read.kv == talk.stats.kv_bytes
    for seed in range(3):
        talk.feed(tokens(1, 1, seed=seed))
    (store,) = talk.cache.placed.values()
    step = decode(module, request, LENGTH + 3)
    assert step.bindings["S.0"] == store.length - (1 if EVICTION[scorer].in_step else 0)


def test_only_states_evict_where_nothing_is_scored() -> None:
    """Decoding by age and by norm has no op beside attention but the note that a state takes."""
    for scorer in ("streaming", "knorm"):
        module = made(family("llama"), scorer=scorer)
        body = next(o for o in module["step"].region.ops if isinstance(o, Layer)).body
        dense = next(
            o for o in family("llama").stepped.module["step"].region.ops if isinstance(o, Layer)
        )
        kinds = [o.kind for o in body.region.ops if not isinstance(o, KvEvict)]
        assert kinds == [o.kind for o in dense.body.region.ops]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokens": 9, "bytes": "1MB"}, "are two budgets; give one"),
        ({"bytes": "8 megs"}, "is no size; write it as 8MB"),
        ({"bytes": "1B"}, "has no room for a token"),
        ({"scorer": "streaming", "tokens": 4}, "keeps the first 4; give more than 4"),
    ],
)
def test_bad_budgets_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(PipelineError) as caught:
        made(family("llama"), **options)
    assert says in str(caught.value)


def test_bad_options_are_refused() -> None:
    for options in ({"keep": 0.0}, {"tau": (0.0, 1.0)}, {"scorer": "oracle"}, {"recent": 1.5}):
        with pytest.raises(PipelineError):
            EvictKv(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("scorer", ["h2o", "snapkv"])
def test_padding_of_a_later_turn_gives_no_attention(scorer: str) -> None:
    known = family("llama")
    made = run(known, "evict-kv", {"keep": 0.5, "at_least": 4, "scorer": scorer}).module
    first, second = tokens(2, 30, seed=1), tokens(2, 30, seed=2)
    valid = torch.ones(2, 30, dtype=torch.bool)
    valid[1, :12] = False
    both, alone = session(known, made, 2), session(known, made)
    both.feed(first, rows=Rows.LAST)
    both.feed(second, valid, rows=Rows.LAST)
    alone.feed(first[1:], rows=Rows.LAST)
    alone.feed(second[1:, 12:], rows=Rows.LAST)
    again = tokens(2, 4, seed=3)
    torch.testing.assert_close(both.feed(again)[1:], alone.feed(again[1:]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scorer", EVICTION)
@pytest.mark.parametrize("valid_tokens", [1, 3, 6])
def test_a_short_turn_beside_a_long_one_is_evicted_as_alone(scorer: str, valid_tokens: int) -> None:
    """Whether a row's turn is a prompt or a step is its own affair, and so is snapkv's window."""
    known = family("llama")
    made = run(known, "evict-kv", {"keep": 0.5, "at_least": 4, "scorer": scorer}).module
    first, second = tokens(2, 20, seed=1), tokens(2, 20, seed=2)
    valid = torch.ones(2, 20, dtype=torch.bool)
    valid[1, : 20 - valid_tokens] = False
    both, alone = session(known, made, 2), session(known, made)
    both.feed(first, rows=Rows.LAST)
    both.feed(second, valid, rows=Rows.LAST)
    alone.feed(first[1:], rows=Rows.LAST)
    alone.feed(second[1:, 20 - valid_tokens :], rows=Rows.LAST)
    again = tokens(2, 2, seed=3)
    for at in range(2):
        new = again[:, at : at + 1]
        torch.testing.assert_close(both.feed(new)[1:], alone.feed(new[1:]), atol=1e-5, rtol=1e-5)
    (store,), (own,) = both.cache.placed.values(), alone.cache.placed.values()
    assert int(store.valid[1, : store.length].sum()) == own.length


def test_the_first_tokens_stay_though_the_newest_would_fill_the_budget() -> None:
    known = family("llama")
    options = {"keep": 0.5, "at_least": 8, "scorer": "streaming", "recent": 1.0, "sinks": 4}
    talk = session(known, run(known, "evict-kv", options).module)
    talk.feed(tokens(1, 20), rows=Rows.LAST)
    for i in range(6):
        talk.feed(tokens(1, 1, seed=i))
    (store,) = talk.cache.placed.values()
    held = store.ordinals[0, 0, 0, : store.length].tolist()
    assert set(range(4)) <= set(held)
