"""Loading models by name: GGUF files bit for bit, folders, factories, and clear refusals.

The GGUF files are written here with random weights; the packaged model is left to slower tests.
"""

import sys
from pathlib import Path

import gguf as writer
import numpy as np
import pytest
import torch
from torch import nn

from elidir.frontends.gguf import LoadError, Storage, dequantize, read_gguf
from elidir.frontends.huggingface import check_length, load
from tests.zoo import NAMED

WIDTH, HIDDEN, HEADS, GROUPS, LAYERS, WORDS = 64, 96, 4, 2, 2, 96
HEAD = WIDTH // HEADS
Q = writer.GGMLQuantizationType
FORMATS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"]


def matrix(rows: int, columns: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Random weights."""
    return np.random.default_rng(seed + rows).standard_normal((rows, columns)).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    """A Llama's tensors under GGUF's names; the head is tied to the embedding."""
    sizes = {"attn_q": WIDTH, "attn_k": GROUPS * HEAD, "attn_v": GROUPS * HEAD}
    sizes |= {"attn_output": WIDTH, "ffn_gate": HIDDEN, "ffn_up": HIDDEN}
    tensors = {"token_embd.weight": matrix(WORDS), "output_norm.weight": matrix(1)[0]}
    for layer in range(LAYERS):
        start = f"blk.{layer}."
        for name, rows in sizes.items():
            tensors[f"{start}{name}.weight"] = matrix(rows, seed=layer)
        tensors[f"{start}ffn_down.weight"] = matrix(WIDTH, HIDDEN, seed=layer)
        tensors[f"{start}attn_norm.weight"] = matrix(1, seed=layer)[0]
        tensors[f"{start}ffn_norm.weight"] = matrix(1, seed=layer + 9)[0]
    return tensors


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as a GGUF file, matrices in q4_1, with a byte-level vocabulary."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    out = writer.GGUFWriter(path, "llama")
    out.add_name("tiny")
    out.add_block_count(LAYERS)
    out.add_context_length(128)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(HIDDEN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(GROUPS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list([f"<{i}>" for i in range(3)] + [chr(i) for i in range(33, 125)] + ["ab"])
    out.add_token_types([3, 3, 3] + [1] * 93)
    out.add_token_merges(["a b"])
    out.add_eos_token_id(2)
    for name, values in weights().items():
        kind = Q.Q4_1 if values.ndim == 2 else Q.F32
        data = writer.quants.quantize(values, kind) if values.ndim == 2 else values
        out.add_tensor(name, data, raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def in_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection from GGUF's order (pairs) to transformers' (halves)."""
    return rows.reshape(heads, HEAD // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("name", FORMATS)
def test_dequantize_equals_ggufs_own(name: str) -> None:
    kind, values = Q[name], matrix(6, 96)
    raw = writer.quants.quantize(values, kind)
    wanted = torch.from_numpy(writer.quants.dequantize(raw, kind).astype(np.float32))
    stored = Storage(name.lower(), raw.view(np.uint8).reshape(6, -1), (6, 96))
    assert torch.equal(dequantize(stored), wanted)


def test_gguf_model_holds_what_the_file_holds(llama: Path) -> None:
    loaded = load(str(llama))
    assert not loaded.model.training
    assert (loaded.model.config.num_key_value_heads, loaded.model.config.vocab_size) == (2, WORDS)
    state = loaded.model.state_dict()
    for layer in range(LAYERS):
        for name, ours, heads in (("q_proj", "attn_q", HEADS), ("k_proj", "attn_k", GROUPS)):
            values = weights()[f"blk.{layer}.{ours}.weight"]
            kept = writer.quants.dequantize(writer.quants.quantize(values, Q.Q4_1), Q.Q4_1)
            wanted = torch.from_numpy(in_halves(kept, heads))
            assert torch.equal(state[f"model.layers.{layer}.self_attn.{name}.weight"], wanted)
    logits = loaded.model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert logits.isfinite().all()


def test_storages_give_back_every_parameter(llama: Path) -> None:
    loaded = load(str(llama))
    for name, parameter in loaded.model.named_parameters(remove_duplicate=False):
        stored = loaded.storage(name)
        assert stored.format == ("q4_1" if parameter.dim() == 2 else "f32")
        assert torch.equal(dequantize(stored), parameter)
    assert loaded.storage("lm_head.weight") is loaded.storage("model.embed_tokens.weight")


def test_gguf_tokenizer_reads_text(llama: Path) -> None:
    tokenizer = load(str(llama)).tokenizer
    assert tokenizer.tokenize("cab!") == ["c", "ab", "!"]
    assert tokenizer.decode(tokenizer("cab!")["input_ids"]) == "cab!"
    assert tokenizer.eos_token == "<2>"


def test_a_model_that_was_not_stored_has_its_own_bytes(tmp_path: Path) -> None:
    model = NAMED["llama"].factory().half()
    model.save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert loaded.tokenizer is None
    weight = loaded.model.get_parameter("model.norm.weight")
    stored = loaded.storage("model.norm.weight")
    assert (stored.format, stored.shape) == ("f16", (32,))
    assert torch.equal(dequantize(stored), weight.float())
    with pytest.raises(LoadError, match=r"did you mean 'model\.norm\.weight'"):
        loaded.storage("model.norm.weigth")


FACTORIES = """
from torch import nn

def make():
    return nn.Linear(2, 2).train()

def pair():
    return nn.Linear(2, 2), "tokenizer"

def whole():
    return nn.Linear(2, 2), None, ("x",)

def wrong():
    return 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "some_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "some_factories", raising=False)
    return "some_factories"


def test_factories(factories: str) -> None:
    assert isinstance(load(f"{factories}:make").model, nn.Linear)
    assert not load(f"{factories}:make").model.training
    assert load(f"{factories}:pair").tokenizer == "tokenizer"
    assert load(f"{factories}:whole").example == ("x",)
    with pytest.raises(LoadError, match="did you mean 'make'"):
        load(f"{factories}:mkae")
    with pytest.raises(LoadError, match="returned int"):
        load(f"{factories}:wrong")
    with pytest.raises(LoadError, match=r"cannot be imported.*PYTHONPATH"):
        load("no_such_module_at_all:make")


def test_a_factory_that_fails() -> None:
    with pytest.raises(LoadError, match=r"json:dumps failed with TypeError: .*without arguments"):
        load("json:dumps")


def test_names_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="did you mean 'smollm2'"):
        load("smolm2")
    with pytest.raises(LoadError, match="there is no file"):
        load(str(tmp_path / "none.gguf"))
    with pytest.raises(LoadError, match=r"holds no config\.json"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadError, match="holds no weights"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_with_a_broken_file(name: str, tmp_path: Path) -> None:
    NAMED["llama"].factory().save_pretrained(tmp_path)
    (tmp_path / name).write_text("{broken")
    with pytest.raises(LoadError, match="check that the folder is whole") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_long_prompt_for_a_folder_with_a_broken_config(tmp_path: Path) -> None:
    NAMED["llama"].factory().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(LoadError, match="is no JSON"):
        check_length(str(tmp_path), "long " * 100)


def test_files_that_are_no_gguf(tmp_path: Path, llama: Path) -> None:
    path = tmp_path / "some.gguf"
    whole = llama.read_bytes()
    damaged = {
        b"": "is no GGUF file",
        b"PK\x03\x04 not a model": "is no GGUF file",
        b"GGUF" + b"\x09\0\0\0" + bytes(64): "is GGUF version 9",
        whole[:20]: "damaged GGUF file",
        whole[:500]: "damaged GGUF file",
        whole[:-4096]: "damaged GGUF file",
    }
    for content, message in damaged.items():
        path.write_bytes(content)
        with pytest.raises(LoadError, match=message) as caught:
            read_gguf(path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == content


def test_an_architecture_that_transformers_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    out = writer.GGUFWriter(path, "starcoder9")
    out.add_tensor("token_embd.weight", matrix(4))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    with pytest.raises(LoadError, match=r"starcoder9 is not supported.*Hugging Face folder"):
        load(str(path))


def test_loading_prints_nothing(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(str(llama))
    assert capfd.readouterr() == ("", "")
