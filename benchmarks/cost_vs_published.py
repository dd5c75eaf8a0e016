"""How far the uncalibrated cost model is from measurements that others published.

    python benchmarks/cost_vs_published.py published_measurements.csv

The file has the columns hardware, engine, model, dtype, batch, prompt_len, gen_len, metric, value,
notes and split. Only `split=dev` rows are scored, of models that have a description and of hardware
that has a target. This informs; it gates nothing: the roofline knows the chip, not the engine.
"""

import argparse
import csv
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from elidir.cost_models import DescriptionError, describe, load_description, snapshot
from elidir.ir import Module

EIGHT_CORES = {f"paths.gpu-{p}.peak_tflop_per_s": 2.863 for p in ("f16", "quantised")}
HARDWARE: dict[str, str | dict[str, Any]] = {
    "NVIDIA Tesla P40 24GB": "p40",
    "NVIDIA A100 PCIe 80GB": {"base": "a100", "dram_gb_per_s": 1935},
    "NVIDIA A100-SXM4-80GB (power-limited 330 W)": "a100",
    "Apple M2 8-core GPU (100 GB/s)": {"base": "m2", **EIGHT_CORES},
    "Samsung Galaxy S24 (Snapdragon 8 Gen 3)": "npu",
}
MODELS = {
    "Llama-2-7B": "llama-2-7b",
    "Llama-3-8B": "llama-3-8b",
    "Llama-3.1-8B": "llama-3-8b",
    "Llama-3-70B": "llama-3-70b",
    "Llama-3.1-70B": "llama-3-70b",
}
FORMATS = {"int4-g32 (w4a16)": "q4_0", "w4a16": "int4", "q4_k_m": "q4_k", "bf16": "bf16"}
METRICS = ("decode_tok_s", "prefill_tok_s")
INTEGER = ("p40", "m2", "npu")  # whose engines multiply quantised weights in int8


@dataclass(frozen=True)
class Scored:
    """One published row and what is predicted for it, in tokens a second."""

    row: dict[str, str]
    published: float
    predicted: float


def module_of(row: dict[str, str]) -> Module | None:
    """Return the module of a row, in its storage format; None if there is no description of it."""
    name = row["dtype"].lower()
    stored = FORMATS.get(name, name)
    if row["model"] not in MODELS:
        return None
    description = load_description(MODELS[row["model"]])
    if stored in ("f16", "fp16", "bf16"):
        return describe(replace(description, dtype="bf16" if stored == "bf16" else "f16"))
    try:
        return describe(replace(description, dtype="f16", format=stored.removesuffix("_s")))
    except DescriptionError:
        return None


def score(row: dict[str, str]) -> Scored | None:
    """Return the prediction for a row; None if the model cannot speak about it."""
    target = HARDWARE.get(row["hardware"])
    module = module_of(row) if target and row["batch"] == "1" else None
    if target is None or module is None:
        return None
    prompt, new = (int(float(row[n] or 0)) for n in ("prompt_len", "gen_len"))
    base = target if isinstance(target, str) else target["base"]
    quantised = next(iter(module.weights.values())).format != ""
    dtype = "i8" if quantised and base in INTEGER else None
    if row["metric"] == "decode_tok_s":
        found = snapshot("", module, target, context=prompt + new // 2, dtype=dtype)
        return Scored(row, float(row["value"]), 1 / found.decode_seconds)
    batch = re.search(r"n_ubatch=(\d+)|n_batch=(\d+)", row["notes"])
    chunk = int(batch[1] or batch[2]) if batch else prompt
    middle = {"S": (prompt - chunk) // 2}  # what is cached at the middle one of the passes
    found = snapshot("", module, target, prompt=chunk, dtype=dtype, bindings=middle)
    return Scored(row, float(row["value"]), chunk / found.prefill_seconds)


def scored(path: Path) -> Iterator[Scored]:
    """Yield every row that can be scored."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            scorable = row["split"] == "dev" and row["metric"] in METRICS
            if scorable and (found := score(row)):
                yield found


def main() -> None:
    """Print every scored row and a summary by hardware and metric."""
    parser = argparse.ArgumentParser(description="Score predictions against published rows.")
    parser.add_argument("rows", type=Path, help="published_measurements.csv")
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for s in scored(parser.parse_args().rows):
        ratio = s.predicted / s.published
        groups[s.row["hardware"], s.row["metric"]].append(ratio)
        what = f"{s.row['hardware'][:24]:24} {s.row['engine'][:20]:20} {s.row['model']:13}"
        sizes = f"{s.row['dtype'][:16]:16} {s.row['prompt_len']:>5}+{s.row['gen_len']:<5}"
        speeds = f"{s.row['metric']:13} {s.published:8.1f} {s.predicted:8.1f}"
        print(f"{what} {sizes} {speeds} x{ratio:.2f}")
    for (hardware, metric), ratios in groups.items():
        error = statistics.mean(abs(r - 1) for r in ratios)
        median = statistics.median(ratios)
        print(f"{hardware}: {metric}, {len(ratios)} rows, median x{median:.2f}, MAPE {error:.0%}")


if __name__ == "__main__":
    main()
