"""Bad input: one clear sentence with the remedy, before any step, and nothing has changed.

Each case names what the user sees. The model's step must not have run.
"""

from typing import Any

import pytest
import torch

from elidir.backends.runtime import (
    CacheError,
    InputError,
    LanguageModel,
    Opening,
    Session,
    decoder_only,
    encoder_decoder,
    generate,
)
from elidir.ir import ElidirError
from tests.runtime.tiny import POSITIONS, VOCABULARY, session, tokens


def unreachable(*_: Any) -> Any:
    raise AssertionError("the model ran")


def opened(opening: Opening) -> Session:
    return Session(unreachable, [], batch=opening.prompt.ids.shape[0])


MODEL = LanguageModel(opened, VOCABULARY, POSITIONS)
PADDED = torch.tensor([[0, 0, 1], [1, 1, 1]])

CASES: list[tuple[str, Any, dict[str, Any], str]] = [
    ("no tokens", [], {}, "the prompt is empty; give at least one token"),
    ("no rows", torch.zeros(0, 4, dtype=torch.int64), {}, "the prompt is empty"),
    ("id too high", [[1, 2], [3, 61]], {}, r"token id 61 \(row 1, token 1\).* from 0 to 60"),
    ("id below 0", [1, -1], {}, r"token id -1 \(row 0, token 1\) is out of range"),
    ("ids of floats", [0.5], {}, "token ids are integers, not torch.float32"),
    ("ragged rows", [[1, 2], [3]], {}, "lists of equal length; pad the shorter rows on the left"),
    ("three dimensions", [[[1]]], {}, r"token ids are \[tokens\] or \[rows, tokens\]"),
    ("text", "hello", {}, "token ids must be a tensor or lists"),
    (
        "long prompt",
        tokens(1, POSITIONS + 2),
        {},
        "longer than the model's .* by 2 tokens",
    ),
    ("many new", tokens(1, 40), {"max_new_tokens": 10}, "give max_new_tokens=9"),
    (
        "short max_length",
        [1, 2, 3],
        {"max_length": 3},
        "give a larger max_length, or max_new",
    ),
    ("mask shape", [[1, 2]], {"attention_mask": [[1]]}, r"shape \[1, 1\], the token ids \[1, 2\]"),
    ("mask values", [[1, 2]], {"attention_mask": [[2, 1]]}, r"0 \(padding\) and 1 \(token\) only"),
    (
        "all padding",
        [[1], [1]],
        {"attention_mask": [[1], [0]]},
        "row 1 of the prompt is all",
    ),
    ("right padding", PADDED.flip(1), {"attention_mask": PADDED.flip(1)}, "pad on the left"),
    (
        "typo",
        [1],
        {"max_new_token": 3},
        "did you mean 'max_new_tokens'",
    ),
    ("typo of the mask", [1], {"attention_masks": 3}, "did you mean 'attention_mask'"),
    ("unknown", [1], {"zzz": 3}, "no argument 'zzz'; known: attention_mask, "),
    (
        "no new tokens",
        [1],
        {"max_new_tokens": 0},
        "tokens is 0; .* whole number of at least 1",
    ),
    (
        "half a token",
        [1],
        {"max_new_tokens": 1.5},
        "tokens is 1.5; it must be a whole number",
    ),
    ("cold", [1], {"temperature": -1.0}, "temperature is -1.0; it must be above 0"),
    ("top_k", [1], {"top_k": -1}, "top_k is -1; it must be a whole number of at least 0"),
    ("top_p", [1], {"top_p": 1.5}, "top_p is 1.5; it must be above 0 and at most 1"),
    ("penalty", [1], {"repetition_penalty": 0}, "repetition_penalty is 0; it must be above 0"),
    ("flag", [1], {"do_sample": "yes"}, "do_sample is 'yes'; it must be True or False"),
    ("seed", [1], {"seed": "x"}, "seed is 'x'; it must be a whole number"),
    ("eos", [1], {"eos_token_id": [1, -3]}, "eos_token_id is -3"),
    ("eos beyond", [1], {"eos_token_id": 61}, "eos_token_id is 61; .* from 0 to 60"),
    ("pad beyond", [1], {"pad_token_id": 99}, "pad_token_id is 99; .* from 0 to 60"),
    ("stop string", [1], {"stop_strings": ""}, "stop_strings is ''; .* none of them empty"),
    ("streamer", [1], {"streamer": 3}, "streamer 3 has no put and end"),
    (
        "no tokenizer",
        [1],
        {"stop_strings": "x"},
        "need the tokenizer; give tokenizer=",
    ),
]


@pytest.mark.parametrize(
    ("ids", "options", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_generate_refuses(ids: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        generate(MODEL, ids, **options)
    assert isinstance(caught.value, ElidirError)


def test_encoder_decoder_needs_a_first_token() -> None:
    with pytest.raises(InputError, match="give decoder_start_token_id"):
        generate(encoder_decoder(unreachable), [1, 2])


def test_a_model_needs_something_to_run() -> None:
    with pytest.raises(InputError, match="needs a step or a forward"):
        decoder_only(None, None)


FEEDS: list[tuple[str, dict[str, Any], str]] = [
    ("id", {"ids": tokens(2, 1) + 61}, "out of range"),
    ("rows", {"ids": tokens(3, 1)}, "expected 2 rows of tokens, got 3"),
    ("valid", {"ids": tokens(2, 3), "valid": torch.ones(2, 2)}, "give one value for each token"),
    ("positions", {"ids": tokens(2, 46)}, f"50 positions are needed and the model has {POSITIONS}"),
    ("position", {"ids": tokens(2, 1), "positions": torch.tensor([[1], [48]])}, "49 positions"),
    ("below 0", {"ids": tokens(2, 1), "positions": torch.tensor([[1], [-1]])}, "nonnegative"),
    ("shape", {"ids": tokens(2, 2), "positions": torch.zeros(2, 3)}, r"shape \[2, 3\], the ids"),
    ("parent", {"ids": tokens(2, 2), "parents": [-1, 1]}, "token 1 of the draft has parent 1"),
    ("parents", {"ids": tokens(2, 2), "parents": [-1]}, r"parents have shape \[1, 1\]"),
    ("wanted", {"ids": tokens(2, 2), "rows": [2]}, "rows must be from 0 to 1"),
    ("none wanted", {"ids": tokens(2, 2), "rows": []}, r"rows are \[R\] or \[2, R\]"),
]


@pytest.mark.parametrize(("feed", "message"), [c[1:] for c in FEEDS], ids=[c[0] for c in FEEDS])
def test_a_session_refuses_and_stays_as_it_was(feed: dict[str, Any], message: str) -> None:
    under_way = session(2)
    under_way.feed(tokens(2, 4))
    under_way.step = unreachable
    with pytest.raises(InputError, match=message):
        under_way.feed(**feed)
    assert under_way.length == 4
    assert under_way.cache.next_positions().tolist() == [[4], [4]]


def test_accept_refuses_what_the_last_feed_did_not_bring() -> None:
    under_way = session()
    under_way.feed(tokens(1, 4))
    with pytest.raises(CacheError, match="accept takes indices below 4"):
        under_way.accept([4])
    under_way.crop(3)
    with pytest.raises(CacheError, match="accept takes indices below 0"):
        under_way.accept([0])
