"""A microbenchmark of this host, in under ten seconds, and the target file that it writes.

It measures what the cost model asks of a target: bandwidth of streaming weights, rates of matrix
products by dtype, and what one operator call costs. Each figure is the best of several rounds,
because other work on the machine only ever slows one down. The figures are of torch with its
current threads.
"""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path as FilePath

import torch

from elidir.cost_models import (
    Agent,
    Path,
    Provenance,
    Quantity,
    Target,
    dump_target,
    measured_file,
)

STREAM_BYTES = 256 << 20
SECONDS = 0.6
SIZE = 1024


def measure_host() -> Target:
    """Return this host as a target, every number measured here."""
    with torch.inference_mode():
        agents = {"cpu": _agent()}
        paths = {f"cpu-{n}": path for n, make in _PATHS.items() if (path := make()) is not None}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Target(
        name="cpu",
        title=f"this host ({_processor()}, {torch.get_num_threads()} threads)",
        runs_on="cpu",
        agents=agents,
        paths=paths,
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


def best_seconds(run: Callable[[], object], seconds: float = SECONDS) -> float:
    """Return the shortest of the calls that fit into `seconds`, of at least three."""
    run()
    best, calls = float("inf"), 0
    end = time.perf_counter() + seconds
    while calls < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        calls += 1
    return best


# ---- what is measured


def _agent() -> Agent:
    return Agent(
        dram_gb_per_s=_quantity(_stream(), "one-row product over 256 MB of f32 weights"),
        dram_efficiency=_assumed(1.0, "the bandwidth was measured with a kernel that runs models"),
        launch_us=_quantity(_launch(), "an addition of 16 numbers, called from Python"),
    )


def _stream() -> float:
    """GB/s at which one row is multiplied by weights that are in no cache."""
    width = 1024
    weights = torch.ones(STREAM_BYTES // 4 // (4 * width * width), width, 4 * width)
    row = torch.ones(1, width)
    seconds = best_seconds(lambda: [torch.mm(row, w) for w in weights], 2 * SECONDS)
    return weights.nbytes / seconds / 1e9


def _launch() -> float:
    """Microseconds of one small operator call."""
    a = torch.ones(16)
    calls = 2000
    return best_seconds(lambda: [torch.add(a, a) for _ in range(calls)]) / calls * 1e6


def _float_rate(dtype: torch.dtype) -> float:
    a = torch.ones(SIZE, SIZE, dtype=dtype)
    return 2 * SIZE**3 / best_seconds(lambda: torch.mm(a, a)) / 1e12


def _path(does: tuple[str, ...], takes: tuple[str, ...], rate: float) -> Path:
    return Path(
        agent="cpu",
        does=does,
        takes=takes,
        peak_tflop_per_s=_quantity(rate, f"a product of two {SIZE} x {SIZE} matrices"),
        efficiency=_assumed(1.0, "the rate was measured with a kernel that runs models"),
        overlap_p=_assumed(1.0, "phases add until calibrated"),
    )


def _f32() -> Path:
    rate = _float_rate(torch.float32)
    return _path(("matrix", "vector"), ("f32", "f16", "bf16"), rate)


def _bf16() -> Path:
    return _path(("matrix",), ("bf16",), _float_rate(torch.bfloat16))


def _f64() -> Path:
    return _path(("matrix", "vector"), ("f64",), _float_rate(torch.float64))


def _int8() -> Path | None:
    a = torch.ones(SIZE, SIZE, dtype=torch.int8)
    try:
        seconds = best_seconds(lambda: torch._int_mm(a, a))
    except (RuntimeError, NotImplementedError):  # this build of torch has no integer product
        return None
    return _path(("matrix",), ("i8",), 2 * SIZE**3 / seconds / 1e12)


_PATHS: dict[str, Callable[[], Path | None]] = {
    "f32": _f32,
    "bf16": _bf16,
    "int8": _int8,
    "f64": _f64,
}
