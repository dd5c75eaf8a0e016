"""Every pair of lossy passes on SmolLM2, in both orders: does it run, what does it cost and save.

`python -m benchmarks.composition` writes `docs/composition.md`. A pair composes or says why not.
Quality is KL in nats from the original on windows of a text, read through the cache: `--text FILE`,
else the bundled one. Time is that of 2,000 tokens of it and of a token behind them, as shares of
the preset `lossless`: as predicted for some targets, and as measured here, in turns. What acts on
encoders or image towers alone stands in no pair.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import elidir
from elidir.backends.runtime import Decoder, LanguageModel, Opening, Prompt, Rows
from elidir.cost_models import load_target, waterfall
from elidir.frontends import Feeding
from elidir.frontends.calibration import bundled_text
from elidir.passes import Missed

MODEL = "smollm2"
PASSES = {
    "prune-tokens": "prune-tokens",
    "prune-tokens, three cuts": "prune-tokens{keep=0.7 at=(15, 20, 25) revive=0}",
    "evict-kv": "evict-kv",
    "extract-outliers": "extract-outliers",
}
IDENTITY = {
    "prune-tokens": "prune-tokens{keep=1.0 force=true}",
    "prune-tokens, three cuts": "prune-tokens{keep=1.0 force=true revive=0}",
    "evict-kv": "evict-kv{keep=1.0 force=true}",
}
TARGETS = ("a100-80g", "p40", "cpu")
PROMPT, DECODED, TURNS = 2000, 32, 3
WINDOW, WINDOWS, FEEDING = 1500, 2, Feeding(context=1300, chunk=16, singles=32)
PAGE = Path(__file__).resolve().parents[1] / "docs" / "composition.md"
PROLOGUE = """# Composition

Each lossy pass alone and each pair of them in both orders, on SmolLM2 in float32, made by
`python -m benchmarks.composition` (see [results](results.md#the-machines) for the machine). A pair
composes, or the second says why it does not act and what to write instead; the first then acts
alone.

- **at identity**: the largest difference of a logit from dense, of a prompt of 200 tokens and 4
  decoded ones, both passes at the weakest setting that changes the program. `extract-outliers` has
  none.
- **KL**: nats from the original on {text}, of which all but
  200 are prefilled, with the 95 % interval.
- **prefill, decode**: of a prompt of 2,000 tokens of it and of one token behind them, as shares
  of the preset `lossless`; measured on this machine, both in turns in one process, and predicted
  for three targets. The weights of `lossless` are the file's blocks of four bits, so that a token
  reads fewer bytes with them than in int8.

"""
EPILOGUE = """
`merge-tokens` rewrites encoders and `drop-visual-tokens` the image function of vision-language
models. Where a model has a cache or no tower they say so and change nothing, so they stand in no
pair above. That each pair that composes keeps rows independent is a test
(`tests/laws/test_composition.py`).
"""


@dataclass(frozen=True)
class Row:
    """What is known of some passes in an order."""

    names: tuple[str, ...]
    missed: str
    identity: str
    kl: str
    shares: tuple[str, ...]

    def __str__(self) -> str:
        state = self.missed or "composes"
        return f"| {', '.join(self.names)} | {state} | {self.identity} | {self.kl} | " + (
            " | ".join(self.shares) + " |"
        )


def compiled(steps: Sequence[str]) -> elidir.Compiled:
    """Return the model with some passes."""
    made: elidir.Compiled = elidir.compile(MODEL, pipeline=", ".join([*steps, "lossless"]))
    return made


def opened(model: LanguageModel, ids: Tensor) -> Decoder:
    """Return a session with room for a prompt."""
    return model.open(Opening(Prompt(ids, None), ids.shape[1] + 256, use_cache=True))


def prompt(length: int) -> Tensor:
    """Return random token ids."""
    return torch.randint(5, 40_000, (1, length), generator=torch.Generator().manual_seed(0))


def answered(model: LanguageModel) -> Tensor:
    """Return the logits of a short prompt's last token and of some decoded ones."""
    ids = prompt(204)
    talk = opened(model, ids)
    found = [talk.feed(ids[:, :200], rows=Rows.LAST)]
    found += [talk.feed(ids[:, 200 + i : 201 + i]) for i in range(4)]
    return torch.cat(found, 1)


def predicted(dense: elidir.Compiled, made: elidir.Compiled, target: str) -> str:
    """Return the predicted shares of a target."""
    pair = [("", dense.program.module), ("", made.program.module)]
    old, new = waterfall(pair, [load_target(target)], prompt=PROMPT)
    prefill = new.prefill_seconds / old.prefill_seconds
    return f"x{prefill:.2f}, x{new.decode_seconds / old.decode_seconds:.2f}"


def measured(models: Sequence[LanguageModel], text: Sequence[int]) -> str:
    """Return the shares that the second of two models takes of the first's time."""
    turns = [[timed(model, text) for model in models] for _ in range(TURNS)]
    prefill, decode = (median(new[i] / old[i] for old, new in turns) for i in range(2))
    return f"x{prefill:.2f}, x{decode:.2f}"


def timed(model: LanguageModel, text: Sequence[int]) -> tuple[float, float]:
    """Return the seconds of a text's beginning as a prompt, and of some tokens behind it."""
    ids = torch.tensor([text[:PROMPT]])
    talk, start = opened(model, ids), time.perf_counter()
    talk.feed(ids, rows=Rows.LAST)
    read = time.perf_counter()
    for token in text[PROMPT : PROMPT + DECODED]:
        talk.feed([[token]], rows=Rows.LAST)
    return read - start, time.perf_counter() - read


def row(names: tuple[str, ...], dense: elidir.Compiled, text: str) -> Row:
    """Return what is known of some passes in this order."""
    made, identity = compiled([PASSES[n] for n in names]), ""
    models = (dense.language_model(), made.language_model())
    remarks = [r for r in made.program.result.remarks if isinstance(r, Missed)]
    missed = [f"{r.by}: {r.reason}" for r in remarks if any(n.startswith(r.by) for n in names)]
    if all(n in IDENTITY for n in names):
        weakest = compiled([IDENTITY[n] for n in names]).language_model()
        identity = f"{(answered(models[0]) - answered(weakest)).abs().max():.1e}"
    kl = str(made.quality(text, window=WINDOW, most=WINDOWS, feeding=FEEDING).kl)
    ids = dense.tokenizer.encode(text)
    shares = (measured(models, ids), *(predicted(dense, made, t) for t in TARGETS))
    return Row(names, "; ".join(missed), identity, kl, shares)


def orders() -> list[tuple[str, ...]]:
    """Return each pass, and each pair of passes in both orders."""
    kinds = {n: p.split("{")[0] for n, p in PASSES.items()}
    pairs = [p for p in permutations(PASSES, 2) if kinds[p[0]] != kinds[p[1]]]
    return [*((n,) for n in PASSES), *pairs]


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path)
    given = parser.parse_args()
    text = given.text.read_text() if given.text else bundled_text()
    source = (
        f"{WINDOWS} windows of {WINDOW:,} tokens of {'a text' if given.text else 'the licence'}"
    )
    dense = compiled([])
    head = [f"{t}: prefill, decode" for t in ("measured", *TARGETS)]
    lines = [f"| passes, in this order | runs | at identity | KL | {' | '.join(head)} |"]
    lines.append("|" + "---|" * (4 + len(head)))
    for names in orders():
        lines.append(str(row(names, dense, text)))
        print(lines[-1], flush=True)
    settings = "\n".join(f"- `{PASSES[n]}` is {n}" for n in PASSES if PASSES[n] != n)
    PAGE.write_text(
        PROLOGUE.format(text=source) + settings + "\n\n" + "\n".join(lines) + "\n" + EPILOGUE
    )


if __name__ == "__main__":
    main()
