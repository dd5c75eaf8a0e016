"""`elidir run` on a tiny model: the text of transformers, the cache, sampling, chat, JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Elidir


def run_json(elidir: Elidir, folder: Path, *args: object) -> dict[str, Any]:
    said = elidir("run", folder, *args, "--json")
    assert said.code == 0, said.err
    data: dict[str, Any] = json.loads(said.out)
    return data


def by_transformers(folder: Path, prompt: str, new: int, *, chat: bool) -> list[int]:
    """Return the new tokens of transformers' greedy generate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if chat:
        messages = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat)
    model = AutoModelForCausalLM.from_pretrained(folder)
    made = model.generate(**inputs, max_new_tokens=new, do_sample=False)
    found: list[int] = made[0, inputs.input_ids.shape[1] :].tolist()
    return found


@pytest.mark.parametrize("chat", [True, False])
def test_tokens_are_those_of_transformers_first_and_from_the_cache(
    elidir: Elidir, folder: Path, chat: bool
) -> None:
    wanted = by_transformers(folder, "Hello there", 12, chat=chat)
    flag = "--chat" if chat else "--no-chat"
    args = ("Hello there", flag, "--max-new-tokens", 12)
    first, second = run_json(elidir, folder, *args), run_json(elidir, folder, *args)
    assert first["tokens"] == second["tokens"] == wanted
    assert "load artifact" in second["seconds"]
    assert "capture" not in second["seconds"]


def test_the_text_goes_to_stdout_alone(elidir: Elidir, folder: Path) -> None:
    data = run_json(elidir, folder, "Hi", "--max-new-tokens", 8)
    said = elidir("run", folder, "Hi", "--max-new-tokens", 8)
    assert said.out.rstrip("\n") == data["text"].rstrip("\n")
    assert "tokens/s" in said.err


def test_a_seed_repeats_the_draws(elidir: Elidir, folder: Path) -> None:
    args = ("Hi", "--temperature", 2.0, "--top-k", 0, "--max-new-tokens", 16)
    one, two, other = (
        run_json(elidir, folder, *args, "--seed", seed)["tokens"] for seed in (5, 5, 6)
    )
    assert one == two
    assert one != other


def test_temperature_zero_is_greedy(elidir: Elidir, folder: Path) -> None:
    greedy = run_json(elidir, folder, "Hi", "--max-new-tokens", 8)
    cold = run_json(elidir, folder, "Hi", "--max-new-tokens", 8, "--temperature", 0)
    assert cold["tokens"] == greedy["tokens"]


def test_a_damaged_entry_is_built_again_with_a_remark(
    elidir: Elidir, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELIDIR_CACHE", str(tmp_path))
    whole = run_json(elidir, folder, "Hi", "--max-new-tokens", 8)
    (weights,) = tmp_path.glob("models/*/weights.safetensors")
    data = bytearray(weights.read_bytes())
    data[-100] ^= 0x40
    weights.write_bytes(data)
    again = run_json(elidir, folder, "Hi", "--max-new-tokens", 8)
    assert again["tokens"] == whole["tokens"]
    assert "weights.safetensors is damaged" in again["remarks"][-1]
    assert "load artifact" in run_json(elidir, folder, "Hi")["seconds"]


def test_another_dtype_is_another_entry(
    elidir: Elidir, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELIDIR_CACHE", str(tmp_path))  # others run in bfloat16 too
    run_json(elidir, folder, "Hi")
    data = run_json(elidir, folder, "Hi", "--dtype", "bfloat16")
    assert "capture" in data["seconds"]
    assert len(list(tmp_path.glob("models/*"))) == 2


def test_a_cache_that_cannot_be_written_is_done_without(
    elidir: Elidir, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").write_text("in the way")
    monkeypatch.setenv("ELIDIR_CACHE", str(tmp_path))
    assert "not kept in the cache" in run_json(elidir, folder, "Hi")["remarks"][-1]
