"""From a `generate(streamer=...)` that calls back to an iterator of tokens.

transformers, elidir and OpenVINO GenAI hand out tokens by calling a streamer while `generate` runs.
Here the call is made in a second thread and the tokens come through a queue, a constant of some
microseconds a token for each peer alike.
"""

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any


class Streamer:
    """A streamer as transformers has it: `put` gets the prompt first, then each new token."""

    def __init__(self, queue: SimpleQueue[Any]) -> None:
        self.queue = queue
        self.seen_prompt = False

    def put(self, value: Any) -> None:
        if self.seen_prompt:
            self.queue.put(int(value.reshape(-1)[-1]))
        self.seen_prompt = True

    def end(self) -> None:
        """`run` says when generation is over."""


def run(generate: Callable[[Streamer], Any], queue: SimpleQueue[Any]) -> None:
    """Generate, then put an end mark, or the error that was raised."""
    try:
        generate(Streamer(queue))
        queue.put(None)
    except Exception as error:  # carried over to the thread that waits for tokens
        queue.put(error)


def stream(generate: Callable[[Streamer], Any]) -> Iterator[int]:
    """Yield the tokens that `generate(streamer)` hands to its streamer."""
    queue: SimpleQueue[Any] = SimpleQueue()
    thread = Thread(target=run, args=(generate, queue))
    thread.start()
    while (item := queue.get()) is not None:
        if isinstance(item, Exception):
            raise item
        yield item
    thread.join()
