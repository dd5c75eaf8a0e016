"""OpenVINO GenAI, which reads the GGUF file itself and keeps its 4-bit weights.

The pipeline is as users get it, but for the cache of prefixes, which would answer the same prompt
from memory. Its KV cache has 8 bits, its default on a CPU.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.peers.streaming import Streamer, stream
from benchmarks.protocol import Setup

CACHE_GIB = 1


class OpenVinoGenAi:
    """An LLMPipeline on the CPU."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def prefill(self, prompt: list[int]) -> None:
        self.generate(prompt, 1, None)

    def tokens(self, prompt: list[int], new: int) -> Iterator[int]:
        return stream(lambda streamer: self.generate(prompt, new, forward_to(streamer)))

    def generate(self, prompt: list[int], new: int, streamer: Any) -> None:
        """Run the pipeline on token ids, past any end of text."""
        import numpy
        import openvino
        from openvino_genai import GenerationConfig, TokenizedInputs

        ids = numpy.array([prompt], dtype=numpy.int64)
        inputs = TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
        config = GenerationConfig(max_new_tokens=new, do_sample=False, ignore_eos=True)
        self.pipeline.generate(inputs, config, streamer)


def forward_to(streamer: Streamer) -> Any:
    """An OpenVINO streamer that hands its tokens on."""
    from openvino_genai import StreamerBase, StreamingStatus

    class Forward(StreamerBase):
        """Called with one token, or with several at once."""

        def write(self, token: int | list[int]) -> StreamingStatus:
            for one in token if isinstance(token, list) else [token]:
                streamer.queue.put(one)
            return StreamingStatus.RUNNING

        def end(self) -> None:
            streamer.end()

    return Forward()


def load(setup: Setup) -> OpenVinoGenAi:
    """Read and compile the GGUF file."""
    from openvino_genai import LLMPipeline, SchedulerConfig

    scheduler = SchedulerConfig()
    scheduler.enable_prefix_caching = False
    scheduler.cache_size = CACHE_GIB
    scheduler.max_num_batched_tokens = 4096
    options = {"scheduler_config": scheduler, "INFERENCE_NUM_THREADS": setup.threads}
    return OpenVinoGenAi(LLMPipeline(setup.gguf, "CPU", options))
