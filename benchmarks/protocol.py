"""What a peer can do, and how the driver talks with one: data and clocks, no library of any peer.

Each peer runs in a process of its own, reads one JSON request a line and answers with one line.
Every peer is timed by the same two functions, on token ids that the driver chose: the time to the
first token of a prompt (logits of its last row only), and the rate of greedy decoding behind it.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol


class Peer(Protocol):
    """A loaded model. Greedy, batch of one; a call starts from an empty cache."""

    def tokens(self, prompt: list[int], new: int) -> Iterator[int]:
        """Yield up to `new` greedy tokens after a prompt, each as soon as it is known."""
        ...

    def prefill(self, prompt: list[int]) -> None:
        """Compute the logits of the prompt's last row."""
        ...


@dataclass(frozen=True)
class Setup:
    """What a worker is started with."""

    module: str
    format: str
    gguf: str
    threads: int


@dataclass(frozen=True)
class Request:
    """One measurement: a prefill when `new` is 0, else a decode of `new` tokens."""

    prompt: list[int]
    new: int = 0


@dataclass(frozen=True)
class Sample:
    """One answer: seconds of a prefill, or seconds of each decoded token but the first."""

    seconds: float
    tokens: list[int]

    @property
    def rate(self) -> float:
        """Tokens per second of a decode; the first token belongs to the prompt."""
        return (len(self.tokens) - 1) / self.seconds


def measure(peer: Peer, request: Request) -> Sample:
    """Time one request on a peer."""
    return _decode(peer, request) if request.new else _prefill(peer, request)


def _prefill(peer: Peer, request: Request) -> Sample:
    start = time.perf_counter()
    peer.prefill(request.prompt)
    return Sample(time.perf_counter() - start, [])


def _decode(peer: Peer, request: Request) -> Sample:
    clock: list[float] = []
    tokens: list[int] = []
    for token in peer.tokens(request.prompt, request.new):
        tokens.append(token)
        clock.append(time.perf_counter())
    if len(tokens) < 2:
        raise RuntimeError(f"asked for {request.new} tokens, got {len(tokens)}: nothing to time")
    return Sample(clock[-1] - clock[0], tokens)


def as_json(value: Any) -> dict[str, Any]:
    """The fields of a request, a sample or a set-up, as JSON takes them."""
    return asdict(value)
