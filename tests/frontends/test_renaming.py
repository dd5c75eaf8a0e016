"""Nothing hangs on names: with other names of modules, classes and weights models raise the same.

The twins are made by substitution in the source text of the three plain decoders of the zoo, and of
transformers' Llama. The raised texts must be equal but for the names of weights and for locations.
"""

import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from elidir.frontends.capture import capture
from elidir.frontends.raising import raise_capture
from elidir.ir import format_module
from tests.zoo import LLAMA_LIKE, plain, randomize, tokens

LOCATION = re.compile(r"  # .*$", re.MULTILINE)
NAME = re.compile(r"@[\w.]+")


def neutral(text: str) -> str:
    """The text without locations, weights numbered in the order in which programs read them."""
    text = LOCATION.sub("", text)
    lines = text.splitlines()
    table = sorted(NAME.sub("@", line) for line in lines if line.startswith("  weight "))
    programs = [line for line in lines if not line.startswith("  weight ")]
    numbers: dict[str, str] = {}
    program = NAME.sub(lambda m: numbers.setdefault(m[0], f"@{len(numbers)}"), "\n".join(programs))
    return "\n".join([*table, program])


def import_text(text: str, path: Path) -> ModuleType:
    """Write a module's source and import it."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def substitute(text: str, names: Mapping[str, str]) -> str:
    """Rename whole words, but not after `config.`; every name must occur."""
    for old, new in names.items():
        text, count = re.subn(rf"(?<!config\.)\b{old}\b", new, text)
        assert count, f"{old} does not occur"
    return text


def raised_text(model: nn.Module, example: Any = None) -> str:
    """The full text of a model as raised."""
    return format_module(raise_capture(capture(model, example), "twin").module)


def same_but_for_names(first: str, second: str, renamed: set[str]) -> None:
    """The texts are equal but for names; of the old names of weights none is left."""
    assert first != second
    assert neutral(first) == neutral(second)
    weights = {part for name in NAME.findall(second) for part in name[1:].split(".")}
    assert not weights & renamed


# Attributes and classes of each decoder that get other names; `cos` and `sin` are also functions.
PLAIN = {
    "TriangleDecoder": "words places blocks last head query key value out before after up down "
    "future TriangleBlock TriangleDecoder",
    "FusedDecoder": "wte h ln_f lm_head qkv out gate_up down first second gain Scale FusedBlock "
    "FusedDecoder",
    "ParallelDecoder": "table layers norm head wq wk wv wo feed ParallelBlock ParallelDecoder",
}


def self_names(text: str, names: Mapping[str, str]) -> str:
    """Rename attributes (`.name`, and buffers by their string) and classes."""
    for old, new in names.items():
        wanted = rf"\b{old}\b" if old[0].isupper() else rf'(?<=\.){old}\b|(?<="){old}(?=")'
        text = re.sub(wanted, new, text)
    return text


@pytest.mark.parametrize("cls", PLAIN)
def test_a_plain_decoder_under_other_names(cls: str, tmp_path: Path) -> None:
    # Falling numbers: where names were sorted, the order would change.
    old = PLAIN[cls].split()
    names = {n: f"{'Z' if n[0].isupper() else 'z'}{99 - i}" for i, n in enumerate(old)}
    parts = [n for n in old if n[0].isupper()]
    source = "\n\n".join(inspect.getsource(getattr(plain, part)) for part in parts)
    source = self_names(source, names)
    source = re.sub(r'(?<=self\.)(cos|sin)\b|(?<=")(cos|sin)(?=")', r"z_\1\2", source)
    head = (
        "from tests.zoo.plain import *\nfrom tests.zoo.plain import F, Tensor, math, nn, torch\n\n"
    )
    twin = import_text(head + source, tmp_path / f"renamed_{cls.lower()}.py")
    ids = (tokens(2, 6),)
    first = raised_text(randomize(getattr(plain, cls)()), ids)
    second = raised_text(randomize(getattr(twin, names[cls])()), ids)
    same_but_for_names(first, second, {n for n in names if n not in ("layers", "h")})


LLAMA = {
    "self_attn": "zoom",
    "mlp": "aa",
    "input_layernorm": "zz_early",
    "post_attention_layernorm": "a_late",
    "q_proj": "one",
    "k_proj": "two",
    "v_proj": "three",
    "o_proj": "four",
    "gate_proj": "zeta",
    "up_proj": "beta",
    "down_proj": "alpha",
    "embed_tokens": "words",
    "lm_head": "answer",
    "rotary_emb": "turner",
    "inv_freq": "speeds",
    "original_inv_freq": "first_speeds",
    "LlamaRMSNorm": "Zebra",
    "LlamaRotaryEmbedding": "Yak",
    "LlamaMLP": "Xerus",
    "LlamaAttention": "Wolf",
    "LlamaDecoderLayer": "Vole",
    "LlamaModel": "Tiger",
    "LlamaPreTrainedModel": "Stoat",
    "LlamaForCausalLM": "Rat",
}


@pytest.fixture(scope="module")
def renamed_llama(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Llama as transformers has it, under other names."""
    from transformers.models.llama import modeling_llama

    text = inspect.getsource(modeling_llama)
    text = text.replace("from ...", "from transformers.").replace(
        "from .", "from transformers.models.llama."
    )
    text = re.sub(r"(?<=self\.)layers\b", "floors", substitute(text, LLAMA))
    text = re.sub(r"(?<=self\.)norm\b", "leveller", text)
    text = re.sub(r'(?<=self\.)model\b|(?<=")model(?=[".])', "trunk", text)
    # transformers itself asks for this name where the table is not called `embed_tokens`.
    text = text.replace(
        "class Tiger(Stoat):", 'class Tiger(Stoat):\n    _input_embed_layer = "words"'
    )
    path = tmp_path_factory.mktemp("models") / "renamed_llama.py"
    return import_text(text, path)


def test_llama_under_other_names(renamed_llama: ModuleType) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**LLAMA_LIKE, tie_word_embeddings=False)
    with torch.random.fork_rng():
        first = raised_text(randomize(LlamaForCausalLM(config)))
        second = raised_text(randomize(renamed_llama.Rat(config)))
    same_but_for_names(first, second, set(LLAMA) | {"model", "norm"})
