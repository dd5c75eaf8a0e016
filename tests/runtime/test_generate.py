"""`generate`: the same tokens as a loop over the whole sequence, and as transformers' `generate`.

The tiny decoder is compared with a plain loop over `@forward`; a tiny Llama, behind the protocol of
a model without a cache, with what transformers generates from it under the same arguments.
"""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from elidir.backends.runtime import decoder_only, encoder_decoder, generate
from tests.runtime.tiny import language_model, left_padded, tokens, whole


def best_by_hand(ids: Tensor, new: int) -> Tensor:
    """Generate from one row by running the whole of it for each token."""
    for _ in range(new):
        ids = torch.cat([ids, whole(ids)[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"prefill_chunk_size": 3}], ids=str)
def test_greedy_equals_the_loop_over_the_whole(options: dict[str, Any]) -> None:
    ids = tokens(1, 7)
    found = generate(language_model(), ids, max_new_tokens=12, **options)
    assert found.tolist() == best_by_hand(ids, 12).tolist()


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"prefill_chunk_size": 2}], ids=str)
def test_rows_of_a_left_padded_batch_equal_the_rows_alone(options: dict[str, Any]) -> None:
    ids, valid = left_padded((3, 8, 1))
    found = generate(language_model(), ids, valid.long(), max_new_tokens=10, **options)
    for row in range(3):
        alone = best_by_hand(ids[row][valid[row]][None], 10)
        assert found[row, 8:].tolist() == alone[0, -10:].tolist()
        assert found[row, :8].tolist() == ids[row].tolist()


def test_one_row_of_plain_numbers() -> None:
    ids = tokens(1, 5)
    wanted = best_by_hand(ids, 4).tolist()
    model = language_model()
    assert generate(model, ids[0], max_new_tokens=4).tolist() == wanted
    assert generate(model, ids[0].tolist(), max_new_tokens=4).tolist() == wanted
    assert generate(model, ids.to(torch.int32), max_new_tokens=4).tolist() == wanted


def test_padding_is_read_from_its_id_unless_it_also_ends_sequences() -> None:
    ids, valid = left_padded((3, 8))
    wanted = generate(language_model(), ids, valid, max_new_tokens=4).tolist()
    assert generate(language_model(pad_token_id=0), ids, max_new_tokens=4).tolist() == wanted
    both = language_model(pad_token_id=0, eos_token_id=0)
    unread = generate(language_model(), ids, max_new_tokens=4).tolist()
    assert unread != wanted
    assert generate(both, ids, max_new_tokens=4).tolist() == unread


def test_a_row_that_ended_is_padded_and_the_rest_go_on() -> None:
    ids = tokens(3, 6)
    free = generate(language_model(), ids, max_new_tokens=10)
    end = int(free[0, 8])
    found = generate(
        language_model(), ids, max_new_tokens=10, eos_token_id=[end, 60], pad_token_id=0
    )
    for row in range(3):
        new = free[row, 6:].tolist()
        stops = [i for i, t in enumerate(new) if t in (end, 60)]
        kept = new[: stops[0] + 1] if stops else new
        padded = (kept + [0] * 10)[: found.shape[1] - 6]
        assert found[row, 6:].tolist() == padded
    assert (found[0, 9:] == 0).all()


def test_generation_stops_when_all_rows_have_ended() -> None:
    ids = tokens(1, 6)
    free = generate(language_model(), ids, max_new_tokens=10)
    end = int(free[0, 9])
    first = free[0, 6:].tolist().index(end)
    found = generate(language_model(eos_token_id=end), ids, max_new_tokens=10)
    assert found.tolist() == free[:, : 6 + first + 1].tolist()


class Spelling:
    """A tokenizer of letters: token t is the t-th letter after 'A'."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(65 + i) for i in ids)


def test_stop_strings_end_a_row() -> None:
    ids = tokens(1, 6)
    free = generate(language_model(), ids, max_new_tokens=10)
    text = Spelling().decode(free[0, 6:].tolist())
    found = generate(
        language_model(), ids, max_new_tokens=10, stop_strings=text[3:5], tokenizer=Spelling()
    )
    assert Spelling().decode(found[0, 6:].tolist()) == text[: text.index(text[3:5]) + 2]


class Recorder:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.got: list[list[Any]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        assert not self.ended
        self.got.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


def test_streamer_gets_the_prompt_then_each_token_then_the_end() -> None:
    ids, recorder = tokens(1, 6), Recorder()
    found = generate(language_model(), ids, max_new_tokens=5, streamer=recorder)
    assert recorder.got == [ids.tolist(), *[[t] for t in found[0, 6:].tolist()]]
    assert recorder.ended == 1


def test_seed_makes_draws_repeatable() -> None:
    ids = tokens(2, 6)
    options = {"max_new_tokens": 12, "do_sample": True, "temperature": 2.0}
    first = generate(language_model(), ids, seed=3, **options)
    assert torch.equal(first, generate(language_model(), ids, seed=3, **options))
    assert not torch.equal(first, generate(language_model(), ids, seed=4, **options))


def test_lengths_have_the_defaults_of_transformers() -> None:
    ids = tokens(1, 6)
    assert generate(language_model(), ids).shape[1] == 26
    assert generate(language_model(), ids, max_length=9).shape[1] == 9
    assert generate(language_model(), ids, max_length=9, max_new_tokens=5).shape[1] == 11
    assert generate(language_model(max_length=8), ids).shape[1] == 8
    # With no wish of the caller's, the model's 48 positions are the end; the last token needs none.
    assert generate(language_model(), tokens(1, 40)).shape[1] == 49


def test_the_prompt_is_not_written_to() -> None:
    ids, valid = left_padded((3, 8))
    kept = ids.clone(), valid.clone()
    generate(language_model(), ids, valid, max_new_tokens=3)
    assert torch.equal(ids, kept[0])
    assert torch.equal(valid, kept[1])


# ---- beside transformers


@cache
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
        eos_token_id=None,
        pad_token_id=None,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def forward(ids: Tensor, valid: Tensor, pos: Tensor) -> Tensor:
    found: Tensor = llama()(ids, attention_mask=valid.long(), position_ids=pos).logits
    return found


OPTIONS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.5},
    {"eos_token_id": [3, 9, 17, 29, 44], "pad_token_id": 0},
    {"eos_token_id": [3, 9, 17, 29, 44], "pad_token_id": 0, "min_new_tokens": 6},
    {"do_sample": True},
    {"do_sample": True, "temperature": 1.8, "top_k": 0},
    {"do_sample": True, "temperature": 1.5, "top_k": 20, "top_p": 0.8},
    {"do_sample": True, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("lengths", [(6,), (2, 7, 4)], ids=str)
def test_same_tokens_as_transformers(lengths: tuple[int, ...], options: dict[str, Any]) -> None:
    ids, valid = left_padded(lengths)
    torch.manual_seed(5)
    wanted = llama().generate(ids, attention_mask=valid.long(), max_new_tokens=12, **options)
    torch.manual_seed(5)
    model = decoder_only(None, forward, vocabulary=61)
    found = generate(model, ids, valid.long(), max_new_tokens=12, **options)
    assert found.tolist() == wanted.tolist()


def test_encoder_decoder_as_transformers() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=61, **sizes, initializer_factor=3.0)).eval()
    t5.generation_config.decoder_start_token_id = 0
    ids, valid = left_padded((4, 7))

    def run(source: Tensor, source_valid: Tensor, out: Tensor, valid: Tensor, _: Tensor) -> Any:
        masks = {"attention_mask": source_valid.long(), "decoder_attention_mask": valid.long()}
        return [t5(source, decoder_input_ids=out, **masks).logits]

    wanted = t5.generate(ids, attention_mask=valid.long(), max_new_tokens=8, do_sample=False)
    defaults = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    found = generate(encoder_decoder(run, defaults=defaults), ids, valid, max_new_tokens=8)
    assert found.tolist() == wanted.tolist()
    assert len(set(found[:, 1:].flatten().tolist())) > 1
