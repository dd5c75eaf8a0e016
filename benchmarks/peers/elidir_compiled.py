"""elidir: `compile(model)` with its defaults, then the same calls as transformers.

The prefill is `generate` with one new token, so that it includes what elidir's own runtime does
around a step; transformers' row has the bare forward. In float32 and bfloat16 the model is the one
of transformers' row; `q4_1` is the file by its name, whose blocks are computed with in float32.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.model import load_transformers
from benchmarks.peers.streaming import stream
from benchmarks.protocol import Setup


class ElidirCompiled:
    """A compiled model."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled

    def prefill(self, prompt: list[int]) -> None:
        import torch

        self.compiled.generate(torch.tensor([prompt]), max_new_tokens=1)

    def tokens(self, prompt: list[int], new: int) -> Iterator[int]:
        import torch

        ids = torch.tensor([prompt])
        return stream(
            lambda streamer: self.compiled.generate(ids, max_new_tokens=new, streamer=streamer)
        )


def load(setup: Setup) -> ElidirCompiled:
    """Compile the model in float32 or bfloat16, and let go of the original; or the file."""
    import torch

    import elidir

    torch.set_num_threads(setup.threads)
    if setup.format == "q4_1":
        return _prepared(elidir.compile(setup.gguf))
    return _prepared(elidir.compile(load_transformers(setup.gguf, setup.format)))


def _prepared(compiled: Any) -> ElidirCompiled:
    compiled.prepare()  # so that its time and memory count as loading
    return ElidirCompiled(compiled)
