"""Decoders that are not among the named families: what generates must be what transformers makes.

Each of these was once without a cache, or wrong with one: experts whose rows lie behind each token,
constants with a row for each token, biases cut from a stored table, scores less their maximum,
positions that padding takes. The plain ones count their tokens in ways that a cache would change.
"""

import pytest
import torch
from torch import Tensor, nn

import elidir
from tests.zoo import (
    BERT_LIKE,
    OTHERS,
    Entry,
    TriangleDecoder,
    exact,
    left_padding,
    masked_inputs,
    randomize,
    tokens,
)

NEW = 26  # past the length at which masks are looked at
ROFORMER = exact("roformer", BERT_LIKE | {"is_decoder": True}, example=masked_inputs)
CACHED = ("mpt", "gpt_oss", "phimoe", "dots1", "ctrl", "openai-gpt")


@pytest.mark.parametrize(
    "entry", [*(OTHERS[n] for n in CACHED), ROFORMER], ids=lambda entry: entry.name
)
def test_further_decoders_get_a_cache_and_the_same_tokens(entry: Entry) -> None:
    model = entry.factory()
    fast = elidir.compile(model)
    assert "step" in fast.program.module.functions, fast.explain()
    mask = left_padding(3, 9)
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    model.generation_config.eos_token_id = None
    for ids, valid in ((tokens(1, 9), None), (tokens(3, 9) * mask, mask)):
        given = torch.ones_like(ids) if valid is None else valid
        wanted = model.generate(ids, attention_mask=given, **options)
        found = fast.generate(ids, attention_mask=valid, eos_token_id=[], **options)
        assert torch.equal(found, wanted)


class RunningCount(TriangleDecoder):
    """Counts its tokens by a running sum of ones."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of token ids."""
        places = torch.ones_like(input_ids).cumsum(1) - 1
        return rest(self, self.words(input_ids) + self.places(places))


class TotalCount(TriangleDecoder):
    """Scales by the number of its tokens."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of token ids."""
        count = torch.ones_like(input_ids).sum(1)[:, None, None]
        return rest(self, self.words(input_ids) * (1 + count / 100))


class InverseLength(TriangleDecoder):
    """Computes with one over the length, which is no tensor."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of token ids."""
        return rest(self, self.words(input_ids) * (1 + 1 / input_ids.shape[1]))


def rest(model: TriangleDecoder, x: Tensor) -> Tensor:
    """All behind the embedding."""
    for block in model.blocks:
        x = block(x)
    return model.head(model.last(x))


@pytest.mark.parametrize("kind", [RunningCount, TotalCount, InverseLength])
def test_what_counts_tokens_is_not_cached(kind: type[nn.Module]) -> None:
    model = randomize(kind())
    fast = elidir.compile(model, example_inputs=(tokens(3, 7),))
    wanted = tokens(2, 5)
    with torch.no_grad():
        for _ in range(NEW):
            wanted = torch.cat([wanted, model(wanted)[:, -1].argmax(-1)[:, None]], dim=1)
    assert torch.equal(fast.generate(tokens(2, 5), max_new_tokens=NEW), wanted)
    assert "step" not in fast.program.module.functions


def test_an_encoder_takes_padding_on_the_right() -> None:
    model = OTHERS["bart"].factory()
    mask = left_padding(3, 9).flip(1)
    inputs = {"input_ids": tokens(3, 9) * mask, "attention_mask": mask}
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 99}
    wanted = model.generate(**inputs, **options)
    assert torch.equal(elidir.compile(model).generate(**inputs, **options), wanted)


def test_a_decoder_without_a_start_begins_as_a_text_does() -> None:
    model = OTHERS["t5"].factory()
    stated = model.generation_config
    stated.decoder_start_token_id, stated.bos_token_id, stated.eos_token_id = None, 5, 99
    options = {"max_new_tokens": 6, "do_sample": False}
    wanted = model.generate(tokens(2, 7), **options)
    assert wanted[0, 0] == 5
    assert torch.equal(elidir.compile(model).generate(tokens(2, 7), **options), wanted)


# ---- numbers made of sizes


SIZED = {
    "inverse": lambda x: x * (1 / x.shape[1] - 0.5 * (x.shape[1] / 2 + 1)),
    "mean": lambda x: x.sum(1) / x.shape[1],
    "filled": lambda x: x + torch.full_like(x, 2 / x.shape[1]),
    "ramp": lambda x: x * (torch.arange(x.shape[1]) / x.shape[1])[:, None],
    "bound": lambda x: x.clamp(max=1 / x.shape[1]) + torch.tensor(x.shape[1]),
    "the last": lambda x: x[:, max(x.shape[1] - 3, 0) :],
}


@pytest.mark.parametrize("name", SIZED)
def test_numbers_made_of_sizes(name: str) -> None:
    function = SIZED[name]
    fast = elidir.compile(function, example_inputs=(torch.randn(3, 5, 4),))
    x = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fast(x), function(x), rtol=0, atol=1e-6)
