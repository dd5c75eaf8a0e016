"""`elidir eval` and `elidir verify`: figures as JSON and as a table, bounds, and early refusals."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Elidir, byte_tokenizer
from tests.cli.test_bad_input import refused

POSITIONS = 512


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with room for a short task, as save_pretrained writes it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("models") / "reader"
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        initializer_range=0.5,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of some 400 tokens."""
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 9)
    return file


def data_of(elidir: Elidir, *args: object) -> dict[str, Any]:
    said = elidir(*args, "--json")
    assert said.code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


def test_eval_measures_text_and_asks_tasks(elidir: Elidir, reader: Path, text: Path) -> None:
    args = ("--text", text, "--window", 64, "--windows", 3, "--lengths", 400, "--depths", "0,1")
    args = (*args, "--tasks", "kl,passkey,needle", "--haystack", text, "--trials", 1)
    data = data_of(elidir, "eval", reader, *args, "--bound", "kl<=0.001")
    assert data["quality"]["kl"]["value"] == 0
    assert data["quality"]["top1"]["value"] == 1
    assert data["quality"]["windows"] == 3
    assert [t["task"] for t in data["tasks"]] == ["passkey", "needle"]
    assert all(t["same"]["value"] == 1 and t["questions"] == 2 for t in data["tasks"])
    assert (data["bounds"], data["missed"]) == (["kl<=0.001"], [])


def test_eval_asks_for_a_passkey_if_there_is_no_text(elidir: Elidir, reader: Path) -> None:
    said = elidir("eval", reader, "--lengths", 400, "--depths", 0.5, "--trials", 1)
    assert said.code == 0, said.err
    assert "passkey, right" in said.out
    assert "400 tokens, depth 0.5" in said.out
    assert "KL" not in said.out


def test_verify_tells_and_judges(elidir: Elidir, reader: Path, text: Path) -> None:
    args = ("verify", reader, text, "--window", 100, "--dtype", "bfloat16")
    said = elidir(*args, "--bound", "kl<=0.05, ppl_ratio<=1.05")
    assert said.code == 0, said.err
    assert "tokens scored in 4 windows of 100: 50 prefilled" in said.out
    missed = elidir(*args, "--bound", "kl<=0")
    assert missed.code == 1
    assert "perplexity" in missed.out
    line = missed.err.splitlines()[-1]
    assert line.startswith("error: the pipeline lossless: kl<=0 is missed, kl is ")


def test_a_saved_model_is_judged_by_its_own_name(
    elidir: Elidir, reader: Path, text: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    pipeline = "lossless, extract-outliers{force=true}"
    assert elidir("compile", reader, "-p", pipeline, "-o", saved).code == 0
    missed = elidir("verify", saved, text, "--window", 64, "--bound", "kl<=0")
    assert "extract-outliers{force=true}: kl<=0 is missed, kl is " in missed.err


def test_a_missed_bound_is_in_the_json_too(elidir: Elidir, reader: Path, text: Path) -> None:
    said = elidir(
        "verify", reader, text, "--window", 64, "--dtype", "bfloat16", "--bound", "kl<=0", "--json"
    )
    assert said.code == 1
    assert json.loads(said.out)["missed"] == ["kl<=0"]


# ---- mistakes, before the model is loaded


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--tasks", "passkeys"], "did you mean 'passkey'?"),
        (["--tasks", "kl"], "kl is measured on text; give --text FILE"),
        (["--bound", "kl<=0.1"], "kl is measured on text; give --text FILE"),
        (["--bound", "pass<=0.1"], "no metric 'pass'"),
        (["--lengths", "many"], "'many' is no list of numbers"),
        (["--depths", "2"], "depth 2 is not from 0"),
        (["--trials", "0"], "trials is 0"),
        (["--text", "none.txt"], "cannot read none.txt"),
        (["--tasks", "needle", "--haystack", "none.txt"], "cannot read none.txt"),
        (["--pipeline", "losless"], "did you mean 'lossless'?"),
    ],
)
def test_of_eval(
    elidir: Elidir, reader: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], says: str
) -> None:
    monkeypatch.setattr("elidir.cache.compile_named", never)
    assert says in refused(elidir, "eval", reader, *args)


def test_of_verify(
    elidir: Elidir, reader: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elidir.cache.compile_named", never)
    assert "is shorter than a window of 999" in refused(
        elidir, "verify", reader, text, "--window", 999
    )
    assert "did you mean 'top1'" in refused(elidir, "verify", reader, text, "--bound", "topl>=1")
    text.write_bytes("café".encode("latin-1"))
    assert "is not UTF-8 text (byte 3)" in refused(elidir, "verify", reader, text)
    text.write_text("")
    assert "is empty" in refused(elidir, "verify", reader, text)


def never(*args: object, **options: object) -> None:
    pytest.fail("a model is compiled")


def test_lengths_and_windows_over_the_models_positions(
    elidir: Elidir, reader: Path, text: Path
) -> None:
    assert f"the model's {POSITIONS} positions; give lengths up to 488" in refused(
        elidir, "eval", reader, "--lengths", 600
    )
    text.write_text("long " * 200)
    assert f"longer than the model's {POSITIONS} positions" in refused(
        elidir, "verify", reader, text, "--window", 600
    )
