"""Every pair of lossy passes on SmolLM2, in both orders: does it run, what does it cost and save.

`python -m benchmarks.composition` prints a table. A pair either composes or says why not. Time is
predicted for a prompt of 2,000 tokens, as a share of that of the preset `lossless`; quality is KL
in nats from the original on windows of a text, read through the cache: `--text FILE`, else the
bundled one.
"""

import argparse
from itertools import permutations
from pathlib import Path

import elidir
from elidir.cost_models import load_target, waterfall
from elidir.frontends.calibration import bundled_text
from elidir.passes import Missed

MODEL = "smollm2"
PASSES = {
    "prune-tokens": "prune-tokens{keep=0.7}",
    "evict-kv": "evict-kv{keep=0.5 scorer=snapkv}",
    "extract-outliers": "extract-outliers",
}
TARGETS = ("cpu", "a100-80g", "p40")
PROMPT, WINDOW, WINDOWS = 2000, 1024, 2


def row(names: tuple[str, ...], dense: elidir.Compiled, text: str) -> str:
    """Return a row of the table: the passes in order, what was refused, KL, and shares of time."""
    pipeline = ", ".join([*(PASSES[n] for n in names), "lossless"])
    made = elidir.compile(MODEL, pipeline=pipeline)
    missed = [
        f"{r.by}: {r.reason}"
        for r in made.program.result.remarks
        if isinstance(r, Missed) and r.by in PASSES
    ]
    found = made.quality(text, window=WINDOW, most=WINDOWS)
    shares = []
    for target in TARGETS:
        pair = [("", dense.program.module), ("", made.program.module)]
        old, new = waterfall(pair, [load_target(target)], prompt=PROMPT)
        shares.append(f"x{new.prefill_seconds / old.prefill_seconds:.2f}, ")
        shares[-1] += f"x{new.decode_seconds / old.decode_seconds:.2f}"
    state = "; ".join(missed) or "composes"
    return f"| {', '.join(names)} | {state} | {found.kl} | {' | '.join(shares)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path)
    given = parser.parse_args()
    text = given.text.read_text() if given.text else bundled_text()
    dense = elidir.compile(MODEL)
    head = " | ".join(f"prefill, decode on {t}" for t in TARGETS)
    print(f"| passes, in this order | runs | KL, nats | {head} |")
    print("|" + "---|" * (3 + len(TARGETS)))
    for names in [(n,) for n in PASSES] + list(permutations(PASSES, 2)):
        print(row(names, dense, text), flush=True)


if __name__ == "__main__":
    main()
