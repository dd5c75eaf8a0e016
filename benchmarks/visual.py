"""drop-visual-tokens on vision-language models of LLaVA-NeXT's shape: answers, tokens and time.

`python examples/train_pictures.py build/pictures`, then `python -m benchmarks.visual quality
build/pictures`: the model that the script trains answers one question about each of 1,000 pictures
of digits that it never saw, with the tokens that HiRED keeps, random ones, and every so many.
`python -m benchmarks.visual speed` times the first token of an untrained model whose language model
has the shape of SmolLM2-135M and whose pictures have 2,880 tokens.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import elidir
from elidir.picture_prompt import Seen

sys.path.append(str(Path(__file__).parents[1] / "examples"))

RATES = (0.4, 0.2, 0.1)
PICTURES, BATCH, TURNS = 1000, 50, 3
POSITIONS = ("original", "compact")
HIRED = {
    "HiRED, paper": {"variant": "paper"},
    "HiRED, code": {"variant": "code"},
    "without the class token": {"scorer": "received"},
}
ALPHAS = (0.0, 0.2, 0.8, 1.0)

# Takes how many tokens there are and how many stay, and returns which.
Choice = Callable[[int, int], Tensor]


def random_tokens(made: torch.Generator, whole: int, count: int) -> Tensor:
    """Return random ones, in order."""
    return torch.randperm(whole, generator=made)[:count].sort().values


def every(whole: int, count: int) -> Tensor:
    """Return ones of equal distance."""
    return torch.arange(count) * whole // count


def hired(model: Any, **options: Any) -> Any:
    """Return the model compiled with the pass, whether it pays on this host or not."""
    given = " ".join(f"{name}={value}" for name, value in options.items())
    return elidir.compile(model, pipeline=f"drop-visual-tokens{{{given} force=true}}, lossless")


def chosen(model: Any, choice: Choice, rate: float, positions: str) -> Any:
    """Return the model over tokens chosen without looking, as many as the pass keeps."""
    made = hired(model, rate=1.0, positions=positions)
    made.features = partial(_few, made.features, choice, rate)
    return made


def _few(features: Any, choice: Choice, rate: float, pixels: Any, sizes: Any) -> list[Seen]:
    found = []
    for seen in features(pixels, sizes):
        whole = len(seen.index)
        kept = choice(whole, int(whole * rate + 1e-9))
        found.append(Seen(seen.features[kept], seen.index[kept]))
    return found


# ---- answers


def quality(folder: str, pictures: int) -> None:
    """Print how many questions about new pictures are answered rightly."""
    from pictures import Painter, questions
    from transformers import LlavaNextForConditionalGeneration

    model = LlavaNextForConditionalGeneration.from_pretrained(folder).eval()
    painted = Painter(1, held_out=True).paint(pictures)
    asked = questions(painted)
    share, words = right(elidir.compile(model), painted.pixels, asked)
    print(f"{pictures} questions; dense {share:.3f} right, {words} tokens of a prompt")
    error = sqrt(share * (1 - share) / pictures)
    print(f"standard error of the dense figure {error:.3f}, at most {0.5 / sqrt(pictures):.3f}")
    names = (*HIRED, "random", "every so many")
    print("| positions | tokens | " + " | ".join(f"{rate:g}" for rate in RATES) + " |")
    print("|---|---|" + "---|" * len(RATES))
    for positions, name in product(POSITIONS, names):
        made = (_made(model, name, rate, positions) for rate in RATES)
        row = [right(each, painted.pixels, asked) for each in made]
        cells = (f"{found:.3f} ({words})" for found, words in row)
        print(f"| {positions} | {name} | " + " | ".join(cells) + " |", flush=True)
    print("| alpha | " + " | ".join(f"{rate:g}" for rate in RATES) + " |")
    for alpha in ALPHAS:
        made = (hired(model, rate=r, alpha=alpha) for r in RATES)
        cells = (f"{right(each, painted.pixels, asked)[0]:.3f}" for each in made)
        print(f"| {alpha:g} | " + " | ".join(cells) + " |", flush=True)


def _made(model: Any, name: str, rate: float, positions: str) -> Any:
    if name in HIRED:
        return hired(model, rate=rate, positions=positions, **HIRED[name])
    choice = every if name.startswith("every") else _random()
    return chosen(model, choice, rate, positions)


def _random() -> Choice:
    return partial(random_tokens, torch.Generator().manual_seed(0))


def right(fast: Any, pixels: Tensor, asked: Tensor) -> tuple[float, int]:
    """Return how many first questions are answered rightly, and the tokens of a prompt."""
    from pictures import BOS, IMAGE, SIDE

    count, words = 0, 0
    for some, lines in zip(pixels.split(BATCH), asked.split(BATCH), strict=True):
        places = torch.full((len(some), PLACES), IMAGE)
        ids = torch.cat((torch.full((len(some), 1), BOS), places, lines[:, :1]), 1)
        sizes = torch.full((len(some), 2), SIDE)
        logits = fast(ids, pixel_values=some, image_sizes=sizes).logits
        count += int((logits[:, -1].argmax(-1) == lines[:, 1]).sum())
        words = logits.shape[1]
    return count / len(pixels), words


PLACES = 192
"""Features and newlines of a picture of 48 x 48 pixels."""


# ---- time


def large() -> tuple[Any, dict[str, Tensor]]:
    """Return an untrained model over 2,880 tokens of a picture, and a prompt for it."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        image_size=336,
        patch_size=14,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=6,
    )
    text = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=3,
        image_grid_pinpoints=[[672, 672]],
    )
    model = LlavaNextForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, *[3] * (5 * 576 + 48), *range(100, 130)]])
    pixels = torch.randn(1, 5, 3, 336, 336)
    sizes = torch.tensor([[672, 672]])
    return model, {"input_ids": ids, "pixel_values": pixels, "image_sizes": sizes}


def speed() -> None:
    """Print the time to the first token as a ratio to dense, all in turns in one process.

    What the cost model predicts stands beside it.
    """
    model, given = large()
    made = {1.0: elidir.compile(model)} | {r: hired(model, rate=r) for r in RATES}
    whole: dict[float, list[float]] = {rate: [] for rate in made}
    sight: dict[float, list[float]] = {rate: [] for rate in made}
    for _, (rate, fast) in product(range(TURNS + 1), made.items()):
        seen, first = once(fast, given)
        sight[rate].append(seen)
        whole[rate].append(first)
    sight, whole = ({r: s[1:] for r, s in x.items()} for x in (sight, whole))  # not the first turn
    print("| rate | tokens | pictures, s | first token, s | ratio | predicted | language model |")
    print("|---|---|---|---|---|---|---|")
    for rate, fast in made.items():
        words = fast(**given).logits.shape[1]
        total, seen = median(whole[rate]), median(sight[rate])
        pairs = list(zip(whole[rate], whole[1.0], sight[rate], sight[1.0], strict=True))
        ratio = median(a / b for a, b, _, _ in pairs)
        words_alone = median((a - c) / (b - d) for a, b, c, d in pairs)
        told = predicted(fast) / predicted(made[1.0])
        print(
            f"| {rate:g} | {words} | {seen:.2f} | {total:.2f} | {ratio:.3f} | {told:.3f} | "
            f"{words_alone:.3f} |"
        )


def predicted(fast: Any) -> float:
    """Return the seconds to the first token by the cost model."""
    found = fast.report("cpu", prompt=31, new=1, image_size=(672, 672))
    return sum(phase.seconds for phase in found.targets[0].phases)


def once(fast: Any, given: dict[str, Tensor]) -> tuple[float, float]:
    """Return the seconds of a picture's features, and those to the first token with them."""
    start = time.perf_counter()
    fast.features(given["pixel_values"], given["image_sizes"])
    seen = time.perf_counter() - start
    fast.generate(**given, max_new_tokens=1)
    return seen, time.perf_counter() - start - seen


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["quality", "speed"])
    parser.add_argument("folder", nargs="?", default="build/pictures")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    quality(given.folder, given.pictures) if given.what == "quality" else speed()


if __name__ == "__main__":
    main()
