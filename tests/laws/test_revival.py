"""What prune-tokens dropped comes back: against LazyLLM's auxiliary cache written out by hand."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import elidir
from elidir.backends.runtime import Opening, Prompt, Rows, Session
from elidir.passes import Pipeline
from elidir.passes.token_pruning.prune_tokens import PruneTokens
from tests.laws.test_laws import tokens

LENGTH, LAYERS, AT_LEAST = 40, 5, 3
CASES = [
    ((3,), (0.2,), 1, 0.0),
    ((3,), (0.2,), 4, 0.0),
    ((3,), (0.2,), 4, 0.04),
    ((1, 3), (0.5, 0.3), 2, 0.0),
    ((1, 2, 4), (0.6,) * 3, 8, 0.03),
]


@pytest.fixture(scope="module")
def model() -> Any:
    """A small random Llama of several layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config).eval()


@dataclass
class ByHand:
    """LazyLLM over one row: keys are recomputed from the rows that reached a layer.

    `parked` has, for each cut, the row of every token that came so far by its position; `came` has
    for each layer the rows that it was given, by position.
    """

    model: Any
    cuts: tuple[int, ...]
    keep: tuple[float, ...]
    revive: int
    above: float = 0.0
    length: int = 0
    came: list[dict[int, Tensor]] = field(default_factory=lambda: [{} for _ in range(LAYERS)])
    parked: list[dict[int, Tensor]] = field(default_factory=lambda: [{} for _ in range(LAYERS)])
    given: list[int] = field(default_factory=lambda: [0] * LAYERS)
    start: int = 0

    def feed(self, ids: Tensor, *, prompt: bool) -> Tensor:
        """Logits of the last token."""
        self.start, self.length = self.length, self.length + ids.shape[1]
        new = list(range(self.start, self.length))
        rows = dict(zip(new, self.model.model.embed_tokens(ids)[0], strict=True))
        wanted = [new[-1]] if prompt else new
        for number, layer in enumerate(self.model.model.layers):
            self.given[number] += len(rows)
            assert not rows.keys() & self.came[number].keys()
            self.came[number] |= rows
            rows, weights = self._layer(layer, rows, self.came[number])
            if number + 1 in self.cuts:
                rows, new = self._cut(number, rows, new, weights[wanted], prompt)
        return self.model.lm_head(self.model.model.norm(rows[wanted[-1]]))

    def _layer(
        self, layer: Any, rows: dict[int, Tensor], came: dict[int, Tensor]
    ) -> tuple[dict[int, Tensor], Tensor]:
        """The rows behind a layer, and attention [T, T] by positions, the mean over heads."""
        places = sorted(came)
        x = torch.stack([came[p] for p in places])[None]
        at = torch.tensor(places)
        mask = torch.zeros(len(places), len(places)).masked_fill(at[None] > at[:, None], -torch.inf)
        turns = self.model.model.rotary_emb(x, at[None])
        given = {"position_embeddings": turns, "attention_mask": mask[None, None]}
        weights = layer.self_attn(layer.input_layernorm(x), **given)[1][0].mean(0)
        found = layer(x, **given)
        found = (found[0] if isinstance(found, tuple) else found)[0]
        whole = torch.zeros(self.length, self.length)
        whole[at[:, None], at[None]] = weights
        return {p: found[places.index(p)] for p in rows}, whole

    def _cut(
        self, number: int, rows: dict[int, Tensor], new: list[int], seen: Tensor, prompt: bool
    ) -> tuple[dict[int, Tensor], list[int]]:
        scores, cut = seen.sum(0), self.cuts.index(number + 1)
        parked = self.parked[cut]
        parked |= rows
        left = new
        if prompt:
            count = max(-(-round(self.keep[cut] * 100) * len(new) // 100), AT_LEAST)
            order = sorted(new[:-1], key=lambda p: -scores[p])
            left = sorted([*order[: count - 1], new[-1]])
        gone = [p for p in parked if p < self.start and p not in self.came[number + 1]]
        back = [p for p in sorted(gone, key=lambda p: -scores[p]) if scores[p] > self.above]
        back = back[: self.revive]
        return {p: parked[p] for p in [*left, *back]}, left


def compiled(
    model: Any, cuts: Any, keep: Any, revive: int, above: float = 0.0, least: int = AT_LEAST
) -> Any:
    """The model with prune-tokens."""
    back = {"revive": revive, "above": above}
    prune = PruneTokens(keep=keep, at=cuts, at_least=least, force=True, **back)
    return elidir.compile(model, pipeline=Pipeline((prune, *Pipeline.parse("lossless").steps)))


def opened(fast: Any, batch: int = 1) -> Session:
    """A session of a compiled model."""
    return fast.language_model().open(
        Opening(Prompt(torch.zeros(batch, 1, dtype=torch.int64), None), 256, use_cache=True)
    )


@pytest.mark.parametrize(("cuts", "keep", "revive", "above"), CASES)
def test_it_is_lazyllm_with_its_auxiliary_cache(
    model: Any, cuts: tuple[int, ...], keep: tuple[float, ...], revive: int, above: float
) -> None:
    talk = opened(compiled(model, cuts, keep, revive, above))
    hand = ByHand(model, cuts, keep, revive, above)
    feeds = [(LENGTH, True), *[(1, False)] * 6, (3, False), (12, True), (1, False)]
    for seed, (count, prompt) in enumerate(feeds):
        ids = tokens(1, count, seed=seed)
        with torch.no_grad():
            wanted = hand.feed(ids, prompt=prompt)
        found = talk.feed(ids, rows=Rows.LAST if prompt else Rows.ALL)[0, -1]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert talk.stats.layer_tokens == hand.given


def test_what_gets_too_little_attention_stays_away(model: Any) -> None:
    """The more, the higher the bar is; above all of it nothing comes back."""
    given = []
    for above in (0.0, 0.04, 1.0):
        talk = opened(compiled(model, (3,), (0.2,), 4, above))
        talk.feed(tokens(1, LENGTH), rows=Rows.LAST)
        for seed in range(4):
            talk.feed(tokens(1, 1, seed=seed))
        given.append(talk.stats.layer_tokens[-1])
    assert given[0] == LENGTH // 5 + 4 * 5
    assert given[0] > given[1] > given[2] == LENGTH // 5 + 4


def test_each_token_goes_through_each_layer_once_until_none_is_left(model: Any) -> None:
    talk = opened(compiled(model, (2,), (0.2,), 4))
    talk.feed(tokens(1, LENGTH), rows=Rows.LAST)
    assert talk.stats.layer_tokens == [LENGTH] * 2 + [LENGTH // 5] * 3
    for seed in range(12):
        talk.feed(tokens(1, 1, seed=seed))
    assert talk.stats.layer_tokens == [LENGTH + 12] * LAYERS
    for store in talk.cache.placed.values():
        held = store.ordinals[0, 0, 0, : store.length].tolist()
        assert sorted(held) == list(range(LENGTH + 12))


@pytest.mark.parametrize(
    ("cuts", "keep", "revive", "above", "least"),
    [
        ((2,), (0.3,), 2, 0.0, 3),
        ((2,), (0.2,), 2, 0.0, 12),
        ((1, 3), (0.5, 0.3), 8, 0.0, 3),
        ((1, 3), (0.5, 0.3), 8, 0.04, 3),
    ],
    ids=["filled", "whole", "two cuts", "unequal"],
)
def test_rows_of_a_batch_get_back_what_they_get_alone(
    model: Any, cuts: Any, keep: Any, revive: int, above: float, least: int
) -> None:
    """With `least` both rows keep as many, so that no slot is filling before a row has all back."""
    fast, ids = compiled(model, cuts, keep, revive, above, least), tokens(2, LENGTH)
    valid = torch.ones(2, LENGTH, dtype=torch.bool)
    valid[1, : LENGTH // 2] = False
    feeds = [tokens(2, 1, seed=i) for i in range(20)]
    both = opened(fast, 2)
    found = [both.feed(ids, valid, rows=Rows.LAST), *[both.feed(f) for f in feeds]]
    for row, start in enumerate((0, LENGTH // 2)):
        alone, own = opened(fast), slice(row, row + 1)
        wanted = [
            alone.feed(ids[own, start:], rows=Rows.LAST),
            *[alone.feed(f[own]) for f in feeds],
        ]
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a[own], b, atol=1e-5, rtol=1e-5)


def test_what_a_step_brought_back_goes_with_it(model: Any) -> None:
    talk = opened(compiled(model, (2,), (0.2,), 3))
    talk.feed(tokens(1, LENGTH), rows=Rows.LAST)
    held = talk.snapshot()
    wanted = talk.feed(tokens(1, 1, seed=1))
    talk.restore(held)
    talk.feed(tokens(1, 4, seed=2))
    assert talk.cache.layer_tokens(0)[-1] > LENGTH // 5
    talk.crop(LENGTH)
    torch.testing.assert_close(talk.feed(tokens(1, 1, seed=1)), wanted, atol=1e-5, rtol=1e-5)


def test_branches_of_a_draft_do_not_see_each_other(model: Any) -> None:
    fast = compiled(model, (2,), (0.2,), 2)
    one, tree = opened(fast), opened(fast)
    for talk in (one, tree):
        talk.feed(tokens(1, LENGTH), rows=Rows.LAST)
    line = tokens(1, 2, seed=1)
    draft = torch.cat([line, line], 1)
    found = tree.feed(draft, parents=[-1, 0, -1, 2])
    torch.testing.assert_close(found[:, :2], found[:, 2:], atol=1e-5, rtol=1e-5)


def test_a_row_that_only_waits_gets_nothing_back(model: Any) -> None:
    fast, ids = compiled(model, (2,), (0.3,), 2), tokens(2, LENGTH)
    both, alone = opened(fast, 2), opened(fast)
    both.feed(ids, rows=Rows.LAST)
    alone.feed(ids[1:], rows=Rows.LAST)
    waits = torch.tensor([[True], [False]])
    for seed in range(3):
        both.feed(tokens(2, 1, seed=seed), waits)
    found, last = both.feed(tokens(2, 1, seed=5)), tokens(2, 1, seed=5)[1:]
    torch.testing.assert_close(found[1:], alone.feed(last), atol=1e-5, rtol=1e-5)


def test_rows_that_get_some_back_in_turn_do_not_hold_filling_for_ever(model: Any) -> None:
    fast, ids, turns = compiled(model, (2,), (0.2,), 8), tokens(2, 120), 20
    both, alone = opened(fast, 2), opened(fast)
    both.feed(ids, rows=Rows.LAST)
    alone.feed(ids[:1], rows=Rows.LAST)
    for seed in range(turns):
        new = tokens(2, 1, seed=seed)
        found = both.feed(new, torch.tensor([[seed % 2 == 0], [seed % 2 == 1]]))
        if seed % 2 == 0:
            torch.testing.assert_close(found[:1], alone.feed(new[:1]), atol=1e-5, rtol=1e-5)
    (length,) = {store.length for store in both.cache.placed.values()} - {120 + turns}
    assert length < 24 + turns * 9


def test_a_step_in_which_all_rows_wait_changes_nothing(model: Any) -> None:
    fast, ids = compiled(model, (2,), (0.3,), 2), tokens(2, LENGTH)
    talk, other = opened(fast, 2), opened(fast, 2)
    for each in (talk, other):
        each.feed(ids, rows=Rows.LAST)
    talk.feed(tokens(2, 1), torch.zeros(2, 1, dtype=torch.bool))
    last = tokens(2, 1, seed=5)
    torch.testing.assert_close(talk.feed(last), other.feed(last), atol=1e-5, rtol=1e-5)
