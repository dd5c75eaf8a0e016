"""llama.cpp, through llama-cpp-python, built from source for this CPU.

`q4_1` is the file as it comes; `f32` and `bf16` are the same weights widened once by llama.cpp's
own quantiser and kept in the user's cache folder. One batch holds the whole prompt.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.protocol import Setup

CONTEXT = 2560
BATCH = 2048


class LlamaCpp:
    """A llama.cpp context."""

    def __init__(self, llama: Any) -> None:
        self.llama = llama

    def prefill(self, prompt: list[int]) -> None:
        self.llama.reset()
        self.llama.eval(prompt)

    def tokens(self, prompt: list[int], new: int) -> Iterator[int]:
        self.prefill(prompt)
        for _ in range(new - 1):
            token = int(self.llama.sample(temp=0.0))
            yield token
            self.llama.eval([token])
        yield int(self.llama.sample(temp=0.0))


def load(setup: Setup) -> LlamaCpp:
    """Open the file, widened first where the format asks for it."""
    from llama_cpp import Llama

    path = setup.gguf if setup.format == "q4_1" else widened(setup.gguf, setup.format)
    llama = Llama(
        path,
        n_ctx=CONTEXT,
        n_batch=BATCH,
        n_ubatch=BATCH,
        n_threads=setup.threads,
        n_threads_batch=setup.threads,
        verbose=False,
    )
    return LlamaCpp(llama)


def widened(gguf: str, format: str) -> str:
    """The file with its weights in f32 or bf16, made on first use."""
    import llama_cpp

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "elidir-benchmarks"
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"{Path(gguf).stem}.{format}.gguf"
    if target.exists():
        return str(target)
    types = {"f32": llama_cpp.LLAMA_FTYPE_ALL_F32, "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16}
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize = types[format], True
    unfinished = target.with_suffix(".part")
    if llama_cpp.llama_model_quantize(gguf.encode(), str(unfinished).encode(), options):
        raise RuntimeError(f"llama.cpp cannot widen {gguf} to {format}")
    unfinished.rename(target)
    return str(target)
