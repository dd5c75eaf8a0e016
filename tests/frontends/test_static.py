"""Models captured at stated sizes: the same answers, whatever rules can find out at these sizes.

This is the way of models that export with no other length, so it must hold for every family.
"""

import pytest
import torch
from torch import Tensor, nn

import elidir
from elidir.frontends.capture import capture
from elidir.frontends.raising import raise_capture
from elidir.ir import ElidirError
from tests.frontends.families import Family, arguments, at_valid, eager
from tests.zoo import NAMED, OTHERS, VOCAB, tokens

CASES = [
    *(("llama", 1, 12), ("llama", 2, 1), ("mistral", 1, 26), ("mistral", 2, 26), ("gpt2", 2, 5)),
    *(("bloom", 1, 12), ("bloom", 2, 26), ("opt", 2, 12), ("bert", 1, 12), ("t5", 2, 12)),
    ("jamba", 1, 5),
]


@pytest.mark.parametrize(("name", "batch", "length"), CASES)
def test_static_sizes_change_no_answer(name: str, batch: int, length: int) -> None:
    entry = (NAMED | OTHERS)[name]
    model = entry.factory()
    raised = raise_capture(capture(model, static=(batch, length)), name)
    known = Family(entry, model, raised)
    inputs = entry.example(batch, length)
    if "decoder_input_ids" in inputs:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    found = known.forward(*arguments(known, inputs))[0]
    wanted = eager(model, inputs)[0]
    torch.testing.assert_close(at_valid(found, inputs), at_valid(wanted, inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mamba2", "bart"])
def test_generation_at_fixed_sizes(name: str) -> None:
    model = (NAMED | OTHERS)[name].factory()
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    fast = elidir.compile(model, static=(2, 12))
    for rows in (1, 2, 3):
        wanted = model.generate(tokens(rows, 7), **options)
        assert torch.equal(fast.generate(tokens(rows, 7), eos_token_id=[], **options), wanted)
    with pytest.raises(ElidirError, match="shorten"):
        fast.generate(tokens(1, 14), **options)


@pytest.mark.parametrize("name", ["mamba", "bamba"])
def test_a_model_of_no_other_length_is_captured_at_a_usual_one(name: str) -> None:
    entry = OTHERS[name]
    model = entry.factory()
    model.generation_config.eos_token_id = None
    fast = elidir.compile(model)
    assert "captured for 1 x 64 tokens" in fast.explain()
    inputs = entry.example(2, 9)
    found, wanted = fast(**inputs).logits, eager(model, inputs)[0]
    torch.testing.assert_close(at_valid(found, inputs), at_valid(wanted, inputs), rtol=0, atol=1e-5)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(tokens(2, 7), **options)
    assert torch.equal(fast.generate(tokens(2, 7), eos_token_id=[], **options), wanted)


class SeesAll(nn.Module):
    """Adds the mean of all tokens to each: no token is without those behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, 8)
        self.head = nn.Linear(8, VOCAB)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of token ids."""
        x = self.words(input_ids)
        return self.head(x + x.mean(1, keepdim=True))


def test_a_token_that_sees_those_behind_it_is_not_generated_from_padding() -> None:
    fast = elidir.compile(SeesAll(), example_inputs=(tokens(2, 12),), dynamic=False)
    with pytest.raises(ElidirError, match="a token sees those behind it"):
        fast.generate(tokens(2, 7), max_new_tokens=3)
