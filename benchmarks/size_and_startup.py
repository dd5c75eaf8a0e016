"""Seconds to import, to compile, to load what was saved; memory; seconds to the first token.

Each figure comes from fresh processes and stands beside its limit; the exit status says whether all
limits hold. The model is loaded first, and its memory counted as given: peak memory is what compile
needs above it. Compiled results go to a cache folder that is made for the run.
Run it with `python -m benchmarks.size_and_startup`.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.bench import note
from benchmarks.session import RESULTS, ROOT

IMPORT = "import time; t = time.perf_counter(); import elidir; print(time.perf_counter() - t)"
STARTS = 7


@dataclass(frozen=True)
class Figure:
    """A measurement with its unit, and the most that it may be (None: no limit)."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        return self.limit is None or self.value <= self.limit


def import_time() -> Figure:
    """Median milliseconds of `import elidir`."""
    clock = [float(python("-c", IMPORT)) for _ in range(STARTS)]
    return Figure("import elidir", 1000 * statistics.median(clock), "ms", 150)


def help_time() -> Figure:
    """Median milliseconds of `elidir --help`, interpreter included."""
    clock = [command_seconds("--help")[1] for _ in range(STARTS)]
    return Figure("elidir --help, whole command", 1000 * statistics.median(clock), "ms")


def python(*arguments: str) -> str:
    """Run this interpreter from the root of the repository and return what it printed."""
    return run([sys.executable, *arguments]).stdout


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command, its errors shown when it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done


def command_seconds(*arguments: str) -> tuple[float, float]:
    """Seconds until the `elidir` command wrote its first byte of output, and until it ended."""
    script = Path(sys.executable).with_name("elidir")
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen([script, *arguments], stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        os.read(process.stdout.fileno(), 1)
        first = time.perf_counter() - start
        process.stdout.read()
        if process.wait():
            errors.seek(0)
            raise RuntimeError(f"elidir {' '.join(arguments)} failed: {errors.read()[-2000:]!r}")
    return first, time.perf_counter() - start


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024


def forget_garbage() -> None:
    """Give back what loading has left over, and start the peak again from what is held now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def compile_once(gguf: str, out: str) -> dict[str, Any]:
    """Load, then compile, and measure the compile. Runs in a process of its own."""
    from benchmarks.model import load_transformers

    start = time.perf_counter()
    model = load_transformers(gguf, "float32")
    loaded = time.perf_counter() - start
    weights = sum(p.numel() * 4 for p in model.parameters())

    import elidir

    forget_garbage()
    before = memory("VmRSS")
    start = time.perf_counter()
    compiled = elidir.compile(model)
    seconds = time.perf_counter() - start
    found = {
        "load_seconds": loaded,
        "compile_seconds": seconds,
        "weight_bytes": weights,
        "peak_bytes": memory("VmHWM") - before,
        "kept_bytes": memory("VmRSS") - before,
    }
    compiled.prepare()
    found["prepared_peak_bytes"] = memory("VmHWM") - before
    found["prepared_kept_bytes"] = memory("VmRSS") - before
    if out:
        compiled.save(out)
    return found | {"stages": dict(compiled.stats["seconds"])}


MEMORY = {
    "peak_bytes": ("peak memory above the model", 2.0),
    "kept_bytes": ("memory kept above the model", None),
    "prepared_peak_bytes": ("peak, once the weights are prepared to run", 2.0),
    "prepared_kept_bytes": ("kept, once the weights are prepared to run", None),
}


def compile_figures(gguf: str, out: Path) -> list[Figure]:
    """Seconds by stage and memory of one compile without a cache; what it makes is saved."""
    module = ("-m", "benchmarks.size_and_startup")
    found = json.loads(python(*module, "--compile-once", gguf, "--save", str(out)))
    weights = found["weight_bytes"]
    limits = {"capture": 12.0}
    return [
        Figure("load the GGUF file into transformers", found["load_seconds"], "s"),
        Figure("compile", found["compile_seconds"], "s", 30),
        *(Figure(f"  {name}", s, "s", limits.get(name)) for name, s in found["stages"].items()),
        *(
            Figure(f"{name}, per float32 weights", found[key] / weights, "x", limit)
            for key, (name, limit) in MEMORY.items()
        ),
    ]


LOAD = """
import time; start = time.perf_counter()
import sys, elidir
made = elidir.load(sys.argv[1]); loaded = time.perf_counter()
made.generate([[504, 3575, 282, 4649, 314]], max_new_tokens=1, do_sample=False)
first = time.perf_counter()
from pathlib import Path
from elidir.frontends.sealing import open_sealed
open_sealed(Path(sys.argv[1]))
print(loaded - start, first - loaded, time.perf_counter() - first)
"""


def saved_figures(folder: Path, what: str) -> list[Figure]:
    """Size on disk of a saved model; median seconds to load it, to its first token, to check it."""
    size = sum(p.stat().st_size for p in folder.iterdir())
    runs = [[float(x) for x in python("-c", LOAD, str(folder)).split()] for _ in range(STARTS)]
    load, first, check = (statistics.median(column) for column in zip(*runs, strict=True))
    return [
        Figure(f"saved {what}: size on disk", size / 1e6, "MB"),
        Figure("  import elidir and load", load, "s", 3),
        Figure("  of which hashing", check, "s"),
        Figure("  from there to the first token", first, "s"),
    ]


def first_token_figures() -> list[Figure]:
    """Seconds until `elidir run smollm2` prints, with an empty cache and with a filled one."""
    arguments = ("run", "smollm2", "Why is the sky blue?", "--max-new-tokens", "8")
    cold, _ = command_seconds(*arguments)
    warm, _ = command_seconds(*arguments)
    return [
        Figure("first token of the first `elidir run smollm2`", cold, "s"),
        Figure("first token of the second", warm, "s", 6),
    ]


def measure(gguf: str) -> list[Figure]:
    """Everything, with a cache folder of its own."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        note("import and --help")
        figures = [import_time(), help_time()]
        note("compile, in a process of its own")
        figures += compile_figures(gguf, Path(cache) / "float32")
        note("elidir run, twice")
        figures += first_token_figures()
        note("saved models")
        command_seconds("compile", "smollm2", "--output", f"{cache}/named")
        figures += saved_figures(Path(cache) / "named", "as in the GGUF file (q4_1)")
        return figures + saved_figures(Path(cache) / "float32", "in float32")


def table(figures: list[Figure]) -> Table:
    """Figures with their limits."""
    out = Table(title="size and start-up, SmolLM2-135M in float32")
    for header in ("figure", "value", "limit", ""):
        out.add_column(header, justify="left" if header == "figure" else "right")
    for f in figures:
        limit = "" if f.limit is None else f"{f.limit:g} {f.unit}"
        verdict = "" if f.limit is None else ("holds" if f.holds else "BROKEN")
        out.add_row(f.name, f"{f.value:.2f} {f.unit}", limit, verdict)
    return out


def main() -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile-once", metavar="GGUF", help=argparse.SUPPRESS)
    parser.add_argument("--save", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile_once:
        print(json.dumps(compile_once(args.compile_once, args.save)))
        return 0
    from benchmarks.model import find_gguf

    figures = measure(find_gguf())
    Console(width=100).print(table(figures))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "size_and_startup.json").write_text(
        json.dumps([asdict(f) for f in figures], indent=1)
    )
    return not all(figure.holds for figure in figures)


if __name__ == "__main__":
    sys.exit(main())
