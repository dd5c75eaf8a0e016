"""A worker seen from the driver: start it, ask it, stop it.

Workers stay loaded while others are measured, so that repeats can be interleaved; before each
request there is a pause in which the threads of the last one stop spinning. Nothing here knows
what a peer is made of.
"""

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import Entry
from benchmarks.protocol import Request, Sample, Setup, as_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAUSE_SECONDS = 0.3


class PeerError(RuntimeError):
    """A peer that is not there, or that failed at a request; the text is for the table."""


@dataclass
class Session:
    """A running worker."""

    entry: Entry
    process: subprocess.Popen[str]
    load_seconds: float = 0.0
    resident_bytes: int = 0

    def ask(self, request: Request) -> Sample:
        """Have one request measured."""
        time.sleep(PAUSE_SECONDS)
        self.process.stdin.write(json.dumps(as_json(request)) + "\n")
        self.process.stdin.flush()
        reply = read_reply(self.process, self.entry)
        if "failed" in reply:
            raise PeerError(reply["failed"])
        return Sample(**reply["sample"])

    def close(self) -> None:
        """End the worker, which stops when its input does."""
        self.process.communicate(timeout=60)


def start(entry: Entry, gguf: str, threads: int) -> Session:
    """Start a worker and wait until it has loaded its model.

    Raises:
        PeerError: the peer is not installed, cannot load the model, or does not exist yet.
    """
    python = ROOT / entry.environment / "bin" / "python"
    if not python.exists():
        raise PeerError(f"no {entry.environment} here: `make bench` installs the peers into it")
    process = spawn(python, Setup(entry.module, entry.format, gguf, threads), entry)
    hello = read_reply(process, entry)
    if "unavailable" in hello:
        process.communicate(timeout=60)
        raise PeerError(hello["unavailable"])
    return Session(entry, process, **hello["ready"])


def spawn(python: Path, setup: Setup, entry: Entry) -> subprocess.Popen[str]:
    """Run the worker under a peer's interpreter, its log beside the results."""
    environment = os.environ | {"OMP_NUM_THREADS": str(setup.threads), "HF_HUB_OFFLINE": "1"}
    with open(log_of(entry), "w", encoding="utf-8") as log:
        return subprocess.Popen(
            [str(python), "-m", "benchmarks.worker", json.dumps(as_json(setup))],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def read_reply(process: subprocess.Popen[str], entry: Entry) -> dict[str, Any]:
    """Read one line of JSON; a worker that died without one is a peer that failed."""
    line = process.stdout.readline()
    if line:
        reply: dict[str, Any] = json.loads(line)
        return reply
    process.communicate(timeout=60)
    status = process.returncode
    raise PeerError(
        f"its process ended with status {status}: see {log_of(entry).relative_to(ROOT)}"
    )


def log_of(entry: Entry) -> Path:
    """Where a worker's stderr goes."""
    RESULTS.mkdir(exist_ok=True)
    return RESULTS / f"{entry.name.replace('/', '-')}.log"
