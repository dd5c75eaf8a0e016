"""One peer in a process of its own: JSON requests in, JSON answers out, a line each.

The first line out is `{"ready": {...}}` or `{"unavailable": reason}`. What the peer's library
prints goes to stderr: the answers have the process's first stdout to themselves. Started by
`benchmarks.session`, with the interpreter of the peer's own environment.
"""

import importlib
import json
import os
import sys
import time
from typing import Any, TextIO

from benchmarks.protocol import Peer, Request, Setup, as_json, measure


def resident_bytes() -> int:
    """Memory that this process holds now."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def private_stdout() -> TextIO:
    """Keep stdout for the answers, and send everybody else's output to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def load(setup: Setup) -> tuple[Peer | None, dict[str, Any]]:
    """Load a peer, or say in one sentence why it cannot be had."""
    start = time.perf_counter()
    try:
        peer = importlib.import_module(f"benchmarks.peers.{setup.module}").load(setup)
    except Exception as error:  # whatever a peer's library raises, the others still run
        return None, {"unavailable": f"{type(error).__name__}: {error}".splitlines()[0]}
    seconds = time.perf_counter() - start
    return peer, {"ready": {"load_seconds": seconds, "resident_bytes": resident_bytes()}}


def answer(peer: Peer, line: str) -> dict[str, Any]:
    """Run one request."""
    try:
        return {"sample": as_json(measure(peer, Request(**json.loads(line))))}
    except Exception as error:  # one measurement that fails is reported, and ends nothing
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def main() -> None:
    """Serve requests until stdin closes."""
    out = private_stdout()
    peer, hello = load(Setup(**json.loads(sys.argv[1])))
    print(json.dumps(hello), file=out)
    if peer is None:
        return
    for line in sys.stdin:
        print(json.dumps(answer(peer, line)), file=out)


if __name__ == "__main__":
    main()
