"""Small vision towers with their projectors, of three kinds, raised once for all tests of a file.

Each module leads from pixels to features and, in eager attention, says what its tower looks at.
Nothing here asserts anything.
"""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from elidir.backends import WeightStore, lower
from elidir.frontends.capture import capture
from elidir.frontends.raising import Raised, raise_capture
from elidir.ir import Module
from elidir.passes import Pipeline, PipelineResult, Verify, passes

SIDE, PATCH, PARTS, WIDTH = 24, 4, 5, 32
TOKENS = (SIDE // PATCH) ** 2
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}


@dataclass(frozen=True)
class Looks:
    """Attention [Q, H, T, T] of each layer, and features [Q, N, D]."""

    attentions: Sequence[Tensor]
    features: Tensor


def mlp() -> nn.Sequential:
    """A projector that works token by token."""
    return nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, 24))


class OfTransformers(nn.Module):
    """A tower of transformers; `front` tokens before the patches are left out."""

    def __init__(self, tower: Any, front: int, projector: nn.Module) -> None:
        super().__init__()
        self.tower, self.front, self.projector = tower, front, projector

    def forward(self, pixels: Tensor) -> Tensor:
        flat = pixels.flatten(0, 1) if pixels.dim() == 5 else pixels
        states = self.tower(flat, output_hidden_states=True).hidden_states[-2]
        return self.projector(states[:, self.front :])

    def looks(self, pixels: Tensor) -> Looks:
        """What it looks at."""
        eager = copy.deepcopy(self)
        eager.tower.set_attn_implementation("eager")
        found = eager.tower(pixels.flatten(0, 1), output_attentions=True)
        return Looks(found.attentions, self(pixels))


class PlainViT(nn.Module):
    """A ViT as anyone might write it, with two registers behind its class token, without norms."""

    def __init__(self, width: int = WIDTH, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.embed = nn.Linear(3 * PATCH * PATCH, width)
        self.front = nn.Parameter(torch.randn(3, width))
        self.place = nn.Parameter(torch.randn(TOKENS, width))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.projector = nn.Linear(width, 24)

    def patches(self, pixels: Tensor) -> Tensor:
        """Return the content of each patch [Q, N, 48]."""
        cut = pixels.flatten(0, 1).unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def run(self, pixels: Tensor, seen: list[Tensor] | None) -> Tensor:
        """Return features, noting attention."""
        x = self.embed(self.patches(pixels)) + self.place
        x = torch.cat((self.front.expand(x.shape[0], -1, -1), x), 1)
        for qkv, up in zip(self.qkv, self.up, strict=True):
            q, k, v = qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            if seen is not None:
                seen.append(torch.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, -1))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + mixed.transpose(1, 2).flatten(2)
            x = x + up(x).relu()
        return self.projector(x[:, 3:])

    def forward(self, pixels: Tensor) -> Tensor:
        return self.run(pixels, None)

    def looks(self, pixels: Tensor) -> Looks:
        """What it looks at."""
        seen: list[Tensor] = []
        return Looks(seen, self.run(pixels, seen))


def made(name: str) -> Any:
    """Return a new tower, random from a fixed seed: clip, siglip, plain."""
    torch.manual_seed(0)
    if name == "clip":
        return OfTransformers(CLIPVisionModel(CLIPVisionConfig(**SIZES)), 1, mlp())
    if name == "siglip":
        tower = SiglipVisionModel(SiglipVisionConfig(**SIZES, vision_use_head=False))
        return OfTransformers(tower, 0, mlp())
    return PlainViT()


@dataclass(frozen=True, eq=False)
class Seen:
    """A tower beside the module that it was raised to."""

    model: Any
    raised: Raised

    @property
    def module(self) -> Module:
        """The module as raised."""
        return self.raised.module

    def run(self, **options: Any) -> PipelineResult:
        """The result of the pass."""
        step = passes()["drop-visual-tokens"](**options)
        return Pipeline((step,)).run(self.module, instruments=[Verify()])

    def outputs(self, module: Module, pixels: Tensor) -> list[Tensor]:
        """What `@forward` of a module made of it returns."""
        store = WeightStore(self.raised.tensors)
        return list(lower(module["forward"], module, store, ("reference",))(pixels))


def raised(model: nn.Module, example: Tensor | None = None, *, dynamic: bool = True) -> Seen:
    """Capture and raise a tower."""
    example = pictures(2) if example is None else example
    model = model.eval()
    return Seen(model, raise_capture(capture(model, (example,), dynamic=dynamic), "tower"))


@functools.cache
def tower(name: str) -> Seen:
    """Capture and raise a tower, once in each process."""
    return raised(made(name))


def pictures(count: int, seed: int = 0) -> Tensor:
    """Random pictures [count, 5, 3, 24, 24]."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(count, PARTS, 3, SIDE, SIDE, generator=made)
