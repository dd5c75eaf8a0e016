"""Texts and windows: what they are cut into, and what is refused in a sentence before any step."""

from pathlib import Path
from typing import Any

import pytest
import torch

import elidir
from elidir.frontends import Feeding, read_text, token_windows
from elidir.ir import ElidirError
from tests.evaluation.models import exact, text
from tests.zoo import LENGTH_LIMIT, NAMED


class Letters:
    """A tokenizer whose tokens are letters, and which begins each text with 1 if it is told to."""

    def __init__(self, *start: int) -> None:
        self.start = list(start)

    def encode(self, text: str) -> list[int]:
        return self.start + [ord(c) for c in text]


def cut(
    *texts: Any, length: int = 4, start: tuple[int, ...] = (), **options: Any
) -> list[list[int]]:
    given = texts[0] if len(texts) == 1 else list(texts)
    return token_windows(given, length, Letters(*start), **options).tolist()


def test_windows_are_whole_and_of_one_text() -> None:
    wanted = [[ord(c) for c in w] for w in ("abcd", "efgh", "mnop")]
    assert cut("abcdefghijk", "lm", "mnopq") == wanted
    assert cut([1, 2, 3, 4, 5, 6, 7, 8, 9]) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert cut(torch.arange(8).view(2, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut([1, 2, 3, 4], torch.tensor([5, 6, 7, 8, 9])) == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_each_window_begins_as_a_text_does() -> None:
    assert cut("abcdefg", start=(1,)) == [[1, 97, 98, 99], [1, 100, 101, 102]]
    assert cut([97, 98, 99, 100], start=(1,)) == [[97, 98, 99, 100]]


def test_a_few_windows_are_spread_over_all() -> None:
    whole = cut(list(range(40)))
    assert cut(list(range(40)), most=3) == [whole[0], whole[3], whole[6]]
    assert cut(list(range(40)), most=99) == whole


def test_a_path_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("abcd")
    assert cut(file) == cut("abcd") == cut(file, "x")


# ---- mistakes


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"caf\xe9 au lait", "is not UTF-8 text (byte 3); save it as UTF-8"),
        (b" \n\t", "is empty; give a file with some text"),
        (None, "cannot read"),
    ],
)
def test_files(tmp_path: Path, data: bytes | None, says: str) -> None:
    file = tmp_path / "a.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ElidirError) as error:
        read_text(file)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("texts", "options", "says"),
    [
        ([], {}, "there is no text"),
        ("", {}, "is empty"),
        ([" \n", "fine"], {}, "is empty"),
        ([[1.5, 2.0]], {}, "a list of token ids"),
        ("text", {}, "no tokenizer"),
        (text(50), {"window": 64}, "50 tokens, and a window has 64; give a longer text"),
        (text(9), {}, "9 tokens, and a window has 16"),
        (text(), {"window": 1}, "has none to predict"),
        (text(), {"window": LENGTH_LIMIT + 1}, f"the model's {LENGTH_LIMIT} positions"),
        (text(), {"window": 32, "batch": 0}, "batch is 0"),
        (text(), {"window": 32, "most": 0}, "windows is 0"),
        (text(), {"window": 32, "feeding": Feeding(chunk=0)}, "chunk is 0"),
        (text(), {"window": 32, "feeding": Feeding(singles=-1)}, "singles is -1"),
        (text(), {"window": 32, "feeding": Feeding(context=32)}, "give one from 1 to 31"),
        (text(), {"window": 32, "feeding": Feeding(context=0)}, "give one from 1 to 31"),
    ],
)
def test_of_quality(texts: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ElidirError) as error:
        exact().quality(texts, **options)
    assert says in str(error.value)


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_models_that_cannot_generate(family: str) -> None:
    compiled = elidir.compile(NAMED[family].factory())
    with pytest.raises(ElidirError, match="cannot generate"):
        compiled.quality(text(), window=32)
    with pytest.raises(ElidirError, match="cannot generate"):
        compiled.evaluate(["passkey"])


def test_an_encoder_decoder_has_no_text_to_score() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=100,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=1,
        num_heads=4,
        decoder_start_token_id=0,
    )
    compiled = elidir.compile(T5ForConditionalGeneration(config).eval())
    with pytest.raises(ElidirError, match="encoder-decoder"):
        compiled.quality(text(), window=32)
