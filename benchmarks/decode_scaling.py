"""What a decoded token costs behind prompts of growing length.

A step reads the weights once, whatever the prompt; only attention reads more, the cached keys and
values. The last column times that attention by itself, so that the growth of a token can be set
beside what attention needs: more growth than that would be copies of the cache, or worse.
Run it with `python -m benchmarks.decode_scaling`.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.bench import note, start_all
from benchmarks.model import find_gguf, prompt
from benchmarks.peers import Entry
from benchmarks.protocol import Request
from benchmarks.session import RESULTS, Session

LENGTHS = (64, 256, 512, 1024, 1536)
TOKENS = 16
PEERS = (
    Entry("transformers_eager", "float32"),
    Entry("elidir_compiled", "float32"),
    Entry("elidir_compiled", "bfloat16"),
    Entry("elidir_compiled", "q4_1"),
)
SMOLLM2 = {"layers": 30, "heads": 9, "kv_heads": 3, "width": 64}


@dataclass(frozen=True)
class Point:
    """Milliseconds of one decoded token behind a prompt, in the least disturbed repeat."""

    peer: str
    length: int
    milliseconds: float


def time_peer(session: Session, gguf: str, repeats: int) -> list[Point]:
    """Measure a peer at every length, lengths interleaved."""
    session.ask(Request(prompt(gguf, LENGTHS[-1], 0), 2))
    samples: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for repeat in range(repeats):
        for length in LENGTHS:
            sample = session.ask(Request(prompt(gguf, length, repeat), TOKENS))
            samples[length].append(1000 / sample.rate)
    name = session.entry.name
    return [Point(name, length, min(ms)) for length, ms in samples.items()]


def attention_alone(length: int, threads: int, repeats: int = 50) -> float:
    """Milliseconds of one token's attention over a cache of that length, in all layers, float32."""
    import torch

    torch.set_num_threads(threads)
    shape = SMOLLM2
    query = torch.randn(1, shape["heads"], 1, shape["width"])
    caches = torch.randn(shape["layers"], 2, 1, shape["kv_heads"], length, shape["width"])
    attend = torch.nn.functional.scaled_dot_product_attention
    clock = []
    for _ in range(repeats):
        start = time.perf_counter()
        for keys, values in caches:
            attend(query, keys, values, enable_gqa=True)
        clock.append(time.perf_counter() - start)
    return 1000 * min(clock)


def growth(points: list[Point], peer: str) -> dict[int, float]:
    """Milliseconds that a token costs more than behind the shortest prompt."""
    own = {point.length: point.milliseconds for point in points if point.peer == peer}
    return {length: ms - own[LENGTHS[0]] for length, ms in own.items()}


def table(points: list[Point]) -> Table:
    """Prompt lengths down, peers across: a token's milliseconds and their growth."""
    peers = list(dict.fromkeys(point.peer for point in points))
    out = Table(title="one decoded token: milliseconds (growth since the shortest prompt)")
    out.add_column("prompt", justify="right")
    for peer in peers:
        out.add_column(peer, justify="right")
    own = {(point.peer, point.length): point.milliseconds for point in points}
    more = {peer: growth(points, peer) for peer in peers}
    for length in LENGTHS:
        cells = [f"{own[peer, length]:.1f} ({more[peer][length]:+.1f})" for peer in peers]
        out.add_row(str(length), *cells)
    return out


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    gguf = find_gguf()
    run = start_all(list(PEERS), gguf, args.threads)
    points = []
    for session in run.sessions:
        note(f"measuring {session.entry.name}")
        points += time_peer(session, gguf, args.repeats)
        session.close()
    points += [Point("attention alone", n, attention_alone(n, args.threads)) for n in LENGTHS]
    Console(width=160).print(table(points))
    for name, reason in run.missing.items():
        print(f"{name} is missing: {reason}")
    path = RESULTS / "decode_scaling.json"
    path.write_text(json.dumps([asdict(point) for point in points], indent=1))
    print(f"{TOKENS} tokens, the least of {args.repeats} repeats; written to {path}")


if __name__ == "__main__":
    main()
