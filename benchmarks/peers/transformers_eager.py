"""transformers, eager: what a user has before compiling, and what every row is compared with.

Prefill is one forward with a cache and logits of the last row only; tokens come from the library's
own `generate` through a streamer that runs in a thread of its own, as users stream it.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.model import load_transformers
from benchmarks.peers.streaming import stream
from benchmarks.protocol import Setup


class TransformersEager:
    """A model of transformers, as it comes."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefill(self, prompt: list[int]) -> None:
        import torch

        with torch.inference_mode():
            self.model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)

    def tokens(self, prompt: list[int], new: int) -> Iterator[int]:
        import torch

        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        options = {"max_new_tokens": new, "do_sample": False, "attention_mask": mask}
        return stream(lambda streamer: self.model.generate(ids, streamer=streamer, **options))


def load(setup: Setup) -> TransformersEager:
    """Load the GGUF file into transformers in float32 or bfloat16."""
    import torch

    torch.set_num_threads(setup.threads)
    return TransformersEager(load_transformers(setup.gguf, setup.format))
