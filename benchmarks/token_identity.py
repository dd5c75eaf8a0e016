"""Greedy tokens of elidir beside transformers' `generate`, SmolLM2 in float32.

Twenty prompts of different lengths, 64 new tokens each, alone and in left-padded batches of four. A
first difference is excused only where the float64 margin between the two best tokens is below twice
the noise of float32 on the model, measured here; each one is listed.
"""

import argparse
import json
from dataclasses import dataclass
from typing import Any

import torch

import elidir
from elidir.frontends.huggingface import load

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "Water boils at",
    "def fibonacci(n):",
    "The three laws of motion are",
    "Dear Sir or Madam,",
    "In 1969, humans first",
    "A recipe for pancakes: mix flour,",
    "The quick brown fox",
    "Photosynthesis is the process by which plants",
    "To be, or not to be,",
    "The largest planet in the solar system",
    "My favourite book is about a girl who",
    "Question: why is the sky blue? Answer:",
    "The stock market fell today because",
    "import numpy as np\n\n# matrix product\n",
    "The Roman Empire began",
    "She opened the door and saw",
    "Albert Einstein was born in",
    "List of prime numbers: 2, 3, 5,",
)


@dataclass(frozen=True)
class Difference:
    """A first token that differs: where, the float64 margin there, and whether that excuses it."""

    prompt: str
    batch: int
    at: int
    margin: float
    excused: bool


def tokens(model: Any, tokenizer: Any, prompts: list[str], new: int) -> tuple[Any, Any, Any]:
    """Return (ids and mask, generated tokens) of prompts, padded on the left."""
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    made = model.generate(
        inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=new, do_sample=False
    )
    return inputs.input_ids, inputs.attention_mask, made


def noise(model: Any, exact: Any, ids: torch.Tensor) -> float:
    """Return the largest difference of float32 and float64 logits on some text."""
    with torch.no_grad():
        return float((model(ids).logits.double() - exact(ids).logits).abs().max())


def compare(
    eager: Any, fast: Any, exact: Any, tokenizer: Any, batch: int, new: int, limit: float
) -> list[Difference]:
    """Return the first difference of each prompt, in batches of a size."""
    found = []
    for start in range(0, len(PROMPTS), batch):
        prompts = list(PROMPTS[start : start + batch])
        ids, mask, ours = tokens(fast, tokenizer, prompts, new)
        theirs = tokens(eager, tokenizer, prompts, new)[2]
        width = min(ours.shape[1], theirs.shape[1])
        differ = ours[:, :width] != theirs[:, :width]
        for row in differ.any(1).nonzero().flatten().tolist():
            at = int(differ[row].nonzero()[0])
            margin = top_two_margin(exact, theirs[row, int((mask[row] == 0).sum()) : at])
            excused = margin < 2 * limit
            found.append(Difference(prompts[row], batch, at - ids.shape[1], margin, excused))
    return found


def top_two_margin(exact: Any, ids: torch.Tensor) -> float:
    """Return the lead of the likeliest next token over the second, in float64 logits."""
    first, second = exact(ids[None]).logits[0, -1].topk(2).values
    return float(first - second)


def main() -> None:
    """Print the differences, and how many prompts were token-identical."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stored", action="store_true", help="compile the file, not the model")
    options = parser.parse_args()
    loaded = load("smollm2")
    fast = elidir.compile("smollm2" if options.stored else loaded.model)
    exact = load("smollm2").model.double()
    text = loaded.tokenizer(" ".join(PROMPTS), return_tensors="pt").input_ids
    limit = noise(loaded.model, exact, text)
    rows = [
        d
        for batch in (1, 4)
        for d in compare(loaded.model, fast, exact, loaded.tokenizer, batch, options.new, limit)
    ]
    if options.json:
        print(json.dumps({"noise": limit, "differences": [vars(r) for r in rows]}))
        return
    print(f"float32 noise of the logits: {limit:.2e}")
    for batch in (1, 4):
        differ = [r for r in rows if r.batch == batch]
        print(f"batch {batch}: {len(PROMPTS) - len(differ)} of {len(PROMPTS)} identical")
        for r in differ:
            excuse = "excused" if r.excused else "NOT EXCUSED"
            print(f"  {r.prompt!r} at token {r.at}: margin {r.margin:.2e}, {excuse}")


if __name__ == "__main__":
    main()
