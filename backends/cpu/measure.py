"""A microbenchmark of this host, in some ten seconds, and the target file that it writes.

It measures what the cost model asks of a target, with the kernels that this backend runs:
bandwidth of streaming weights, rates of matrix products by dtype, and what one op of a program
costs. All are timed in turn, round after round, and the best time of each counts: other work on
the machine only ever slows one down, and seldom does so all the time.
"""

import itertools
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path as FilePath
from typing import TypeAlias

import torch

from elidir.backends.cpu.linear import multiply
from elidir.backends.dtypes import torch_dtype
from elidir.backends.lowering import lower
from elidir.backends.runtime import Session
from elidir.backends.weights import WeightStore
from elidir.cost_models import (
    Agent,
    Description,
    Path,
    Precision,
    Provenance,
    Quantity,
    Target,
    describe,
    dump_target,
    lines,
    measured_file,
)

STREAM_BYTES = 768 << 20
"""More than the caches that one program gets: with 64 MB twice the bandwidth was measured."""
SECONDS = 9.0
CALLS = 4
ROWS, SIZE = 512, 1024

Run: TypeAlias = Callable[[], object]


def measure_host() -> Target:
    """Return this host as a target, every number measured here."""
    with torch.inference_mode():
        runs = {name: run for name, make in _RUNS.items() if (run := make()) is not None}
        best = best_of(runs, SECONDS)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Target(
        name="cpu",
        title=f"this host ({_processor()}, {torch.get_num_threads()} threads)",
        runs_on="cpu",
        agents={"cpu": _agent(best)},
        paths={f"cpu-{n}": _path(*kinds, best[n]) for n, kinds in _PATHS.items() if n in best},
        aliases=("host",),
        memory_gb=_quantity(memory, "physical memory"),
    )


def write_host(path: FilePath | None = None) -> FilePath:
    """Measure this host and keep it where `load_target("cpu")` finds it; returns the file."""
    path = path or measured_file("cpu")
    text = dump_target(measure_host())
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def _quantity(value: float, source: str) -> Quantity:
    return Quantity(float(f"{value:.4g}"), Provenance.MEASURED, source)


def _assumed(value: float, source: str) -> Quantity:
    return Quantity(value, Provenance.ASSUMED, source)


def _processor() -> str:
    try:
        lines = FilePath("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def best_of(runs: Mapping[str, Run], seconds: float) -> dict[str, float]:
    """Return the shortest time of each, over rounds through all of them in turn, at least three."""
    best = dict.fromkeys(runs, float("inf"))
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 3 or time.perf_counter() < end:
        for name in [n for n in runs for _ in range(CALLS)]:
            start = time.perf_counter()
            runs[name]()
            best[name] = min(best[name], time.perf_counter() - start)
        rounds += 1
    return best


# ---- what is timed


def _stream() -> Run:
    """One row by the next of many weights, so that none is in a cache when its turn comes."""
    weights = torch.ones(STREAM_BYTES // _piece(), 4 * SIZE, SIZE)
    row = torch.ones(1, SIZE)
    products = itertools.cycle([partial(multiply(w, None), row) for w in weights])
    return lambda: next(products)()


def _piece() -> int:
    """Bytes of one of these weights."""
    return 4 * 4 * SIZE * SIZE


TINY = Description(
    name="tiny",
    source="made up: its arithmetic is nothing beside the calls",
    layers=8,
    hidden=64,
    heads=4,
    kv_heads=2,
    ffn=128,
    vocab=64,
    max_positions=64,
    dtype="f32",
)


def _launches() -> Run:
    """A decoded token of a model so small that calls take all the time, in the runtime."""
    module = describe(TINY)
    table = {n: e.type for n, e in module.weights.items()}
    store = WeightStore(
        {n: torch.ones(t.dims, dtype=torch_dtype(t.dtype)) for n, t in table.items()}
    )
    session = Session(lower(module["step"], module, store))
    token = torch.zeros(1, 1, dtype=torch.int64)

    def run() -> None:
        session.feed(token)
        session.crop(0)

    return run


def _calls() -> int:
    """Return how many launches the cost model counts in it."""
    module = describe(TINY)
    found = lines(module, module["step"], Precision())
    return sum(int(w.launches) * line.count for line in found for w in line.works)


def _product(dtype: torch.dtype) -> Run:
    """Some rows by a weight."""
    x = torch.ones(ROWS, SIZE, dtype=dtype)
    return partial(multiply(torch.ones(SIZE, SIZE, dtype=dtype), None), x)


def _int8() -> Run | None:
    """Activations are unsigned, as in int8 linears: signed ones fall to a reference kernel."""
    x = torch.ones(ROWS, SIZE, dtype=torch.uint8)
    scales, zeros = torch.ones(SIZE), torch.zeros(SIZE, dtype=torch.int32)
    rest = (scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    try:
        weight = torch.ops.onednn.qlinear_prepack(torch.ones(SIZE, SIZE, dtype=torch.int8), None)
        run = partial(torch.ops.onednn.qlinear_pointwise.default, x, 1.0, 128, weight, *rest)
        run()
    except (AttributeError, RuntimeError, NotImplementedError):  # torch without these kernels
        return None
    return run


_RUNS: dict[str, Callable[[], Run | None]] = {
    "stream": _stream,
    "launches": _launches,
    "f32": partial(_product, torch.float32),
    "bf16": partial(_product, torch.bfloat16),
    "int8": _int8,
    "f64": partial(_product, torch.float64),
}
_PATHS = {
    "f32": (("matrix", "vector"), ("f32", "f16", "bf16")),
    "bf16": (("matrix",), ("bf16",)),
    "int8": (("matrix",), ("i8",)),
    "f64": (("matrix", "vector"), ("f64",)),
}


# ---- what a target says of it


def _agent(best: Mapping[str, float]) -> Agent:
    size = f"{STREAM_BYTES >> 20} MB"
    rate, launch = _piece() / best["stream"] / 1e9, best["launches"] / _calls() * 1e6
    return Agent(
        dram_gb_per_s=_quantity(rate, f"one-row products, {size} of f32 weights in turn"),
        dram_efficiency=_assumed(1.0, "the bandwidth was measured with a kernel that runs models"),
        launch_us=_quantity(launch, "an op of a decoded token of a tiny model"),
    )


def _path(does: tuple[str, ...], takes: tuple[str, ...], seconds: float) -> Path:
    rate = 2 * ROWS * SIZE * SIZE / seconds / 1e12
    return Path(
        agent="cpu",
        does=does,
        takes=takes,
        peak_tflop_per_s=_quantity(rate, f"{ROWS} rows times a {SIZE} x {SIZE} weight"),
        efficiency=_assumed(1.0, "the rate was measured with a kernel that runs models"),
        overlap_p=_assumed(1.0, "phases add until calibrated"),
    )
