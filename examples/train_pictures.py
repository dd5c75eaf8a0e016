"""Train a small LLaVA-NeXT on pictures of digits: python examples/train_pictures.py FOLDER.

The tower learns first, as CLIP's did, from its class token alone: which digit each colour of a
partition is. Then projector and language model learn from questions about whole pictures, all of
whose tokens they are given; the tower stays as it is. Nothing here knows that tokens will be
dropped, unless `--short` gives the language model prompts of many lengths.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from pictures import BOS, COLOURS, IMAGE, MOST, PART, PATCH, SIDE, WORDS, Painter, questions
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    SiglipVisionConfig,
)

ABSENT = 10


def new_model(tower: str = "clip") -> Any:
    """Return an untrained model: a tower of four layers, a language model of three."""
    sizes: dict[str, Any] = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": PART,
        "patch_size": PATCH,
    }
    vision: Any = SiglipVisionConfig(**sizes, vision_use_head=False)
    if tower == "clip":
        vision = CLIPVisionConfig(**sizes, projection_dim=96)
    text = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=BOS,
        eos_token_id=None,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_grid_pinpoints=[[SIDE, SIDE]],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
    )
    return LlavaNextForConditionalGeneration(config)


class Schedule:
    """So many steps: a learning rate that rises, then falls to nothing."""

    def __init__(self, name: str, parameters: Any, rate: float, steps: int) -> None:
        self.parameters = list(parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, rate, (0.9, 0.98), weight_decay=0.01)
        self.name, self.rate, self.steps, self.at = name, rate, steps, 0

    def step(self, scores: Tensor, wanted: Tensor) -> None:
        """Take one step for scores [N, C] of what is wanted [N], and say now and then how it is."""
        loss = cross_entropy(scores.float(), wanted)
        factor = min(self.at / 100, 1.0) * (1 - self.at / self.steps)
        self.optimizer.param_groups[0]["lr"] = self.rate * factor
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.at += 1
        if self.at % 50 == 0:
            shown = wanted != ABSENT
            right = (scores.argmax(-1) == wanted)[shown].float().mean()
            print(f"{self.name} step {self.at}: loss {loss:.3f}, {right:.3f} right", flush=True)


def train_tower(model: Any, painter: Painter, steps: int) -> None:
    """Teach the tower to say of a partition, by its class token, which digit each colour is.

    A tower without one says so by the mean of its patches.
    """
    tower = model.model.vision_tower
    head = nn.Linear(tower.config.hidden_size, len(COLOURS) * (ABSENT + 1))
    schedule = Schedule("tower", [*tower.parameters(), *head.parameters()], 1e-3, steps)
    for _ in range(steps):
        pixels, wanted = painter.paint_partitions(128)
        found = tower(pixels)
        whole = found.pooler_output
        whole = found.last_hidden_state.mean(1) if whole is None else whole
        scores = head(whole).view(-1, ABSENT + 1)
        schedule.step(scores, wanted.flatten())


def train_language(model: Any, painter: Painter, steps: int, *, short: bool = False) -> None:
    """Teach projector and language model to answer questions about pictures.

    With `short`, of a random part of their tokens, from a tenth up to all, at positions counted
    anew.
    """
    model.model.vision_tower.requires_grad_(False)
    trained = (p for p in model.parameters() if p.requires_grad)
    schedule = Schedule("language", trained, 1.5e-3, steps)
    for _ in range(steps):
        pictures = painter.paint(24)
        asked = questions(pictures)
        share = 0.1 + 0.9 * float(torch.rand(())) if short else 1.0
        with torch.autocast("cpu", torch.bfloat16):
            logits = answer_logits(model, pictures.pixels, asked, share)
        shown = torch.arange(MOST) < pictures.count[:, None]
        schedule.step(logits[:, ::2][shown], asked[:, 1::2][shown])


def answer_logits(model: Any, pixels: Tensor, asked: Tensor, share: float = 1.0) -> Tensor:
    """Return the logits f32[B, N, V] behind each of the tokens that follow a picture.

    Of the picture's tokens a random `share` is given.
    """
    sizes = torch.full((len(pixels), 2), SIDE)
    found = model.model.get_image_features(pixels, sizes, return_dict=True)
    images = torch.stack(found.pooler_output)
    if share < 1:
        kept = torch.randperm(images.shape[1])[: int(share * images.shape[1])].sort().values
        images = images[:, kept]
    words = model.get_input_embeddings()
    first = words(torch.full((len(pixels), 1), BOS))
    embeds = torch.cat((first, images.to(first.dtype), words(asked)), 1)
    out = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return model.lm_head(out[:, -asked.shape[1] :])


def accuracy(model: Any, painter: Painter, batches: int = 10) -> float:
    """Return how many first questions about new pictures are answered rightly."""
    right = 0.0
    with torch.no_grad():
        for _ in range(batches):
            pictures = painter.paint(50)
            asked = questions(pictures)[:, :1]
            found = answer_logits(model, pictures.pixels, asked)[:, -1].argmax(-1)
            right += float((found == questions(pictures)[:, 1]).float().mean())
    return right / batches


def main() -> None:
    """Train, say how good it is on held-out digits, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs=2, default=(800, 1000), help="of both parts")
    parser.add_argument("--tower", choices=["clip", "siglip"], default="clip")
    parser.add_argument("--short", action="store_true", help="teach with parts of pictures too")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    model, painter = new_model(given.tower), Painter(given.seed)
    start, worked = time.perf_counter(), time.process_time()
    train_tower(model, painter, given.steps[0])
    train_language(model, painter, given.steps[1], short=given.short)
    minutes = (time.perf_counter() - start) / 60, (time.process_time() - worked) / 60
    print("trained in {:.1f} minutes, {:.1f} of processor time".format(*minutes))
    held_out = Painter(given.seed + 1, held_out=True)
    found = accuracy(model.eval(), held_out)
    print(f"{found:.3f} of the questions about held-out digits are right")
    model.save_pretrained(given.folder)


if __name__ == "__main__":
    main()
