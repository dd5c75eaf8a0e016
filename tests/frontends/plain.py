"""Tiny plain models for tests of raising: one block whose mask and rotary embedding are given.

`Spelled` takes a function that masks the scores and one that turns queries and keys, so that a test
writes only what it is about. Nothing here asserts anything.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elidir.backends import WeightStore, lower
from elidir.frontends.capture import capture
from elidir.frontends.raising import raise_capture
from elidir.ir import Module, Op, flatten
from tests.zoo import VOCAB, randomize, tokens

WIDTH, HEADS = 32, 4
SIZE = WIDTH // HEADS

# (scores [B, H, T, T]) -> masked scores, and (x [B, H, T, D]) -> turned x
MaskFn = Callable[[Tensor], Tensor]
TurnFn = Callable[[Tensor], Tensor]
Normalise = Callable[[Tensor], Tensor]


def as_is(x: Tensor) -> Tensor:
    """The argument."""
    return x


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the keys."""
    return scores.softmax(-1)


class Spelled(nn.Module):
    """Embedding, one attention with a residual, head. The parts are spelled by the caller."""

    def __init__(
        self,
        mask: MaskFn = as_is,
        turn: TurnFn = as_is,
        normalise: Normalise = softmax,
        parts: Sequence[nn.Module] = (),
        *,
        limit: int = 64,
    ) -> None:
        super().__init__()
        self.mask, self.turn, self.normalise = mask, turn, normalise
        self.parts = nn.ModuleList(parts)
        self.limit = limit
        self.table = nn.Embedding(VOCAB, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits f32[B, T, V] of token ids i64[B, T]."""
        batch, length = ids.shape
        torch._check(length <= self.limit)
        x = self.table(ids)
        split = (batch, length, HEADS, SIZE)
        q, k, v = (p.view(split).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
        scores = self.turn(q) @ self.turn(k).transpose(-1, -2) / math.sqrt(SIZE)
        mixed = self.normalise(self.mask(scores)) @ v
        return self.head(x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH)))


@dataclass(frozen=True)
class Raised:
    """What a model became: the ops of its flat forward, and its worst error against eager."""

    module: Module
    ops: tuple[Op, ...]
    error: float

    @property
    def kinds(self) -> Counter[str]:
        """How many ops there are of each kind."""
        return Counter(op.kind for op in self.ops)

    def one(self, kind: str) -> Op:
        """The only op of a kind."""
        (found,) = [op for op in self.ops if op.kind == kind]
        return found


SIZES = ((2, 23), (1, 1), (3, 4))


def raise_plain(
    model: nn.Module, *, example: tuple[int, int] = (2, 6), sizes: Sequence[tuple[int, int]] = SIZES
) -> Raised:
    """Randomize, capture and raise a model of token ids, and run it at other sizes."""
    randomize(model)
    raised = raise_capture(capture(model, (tokens(*example),)), "plain")
    module = raised.module
    run = lower(module["forward"], module, WeightStore(raised.tensors), ("reference",))
    error = 0.0
    for batch, length in sizes:
        ids = tokens(batch, length)
        pos = torch.arange(length).expand(batch, length)
        found = run(ids, torch.ones_like(ids).bool(), pos)[0]
        with torch.no_grad():
            error = max(error, float((found - model(ids)).abs().max()))
    return Raised(module, flatten(module["forward"]).ops, error)
