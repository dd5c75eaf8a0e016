"""A tiny compiled model, one whose scores a pass has flattened, and what the tests know of it.

The flattening is known, so that what evaluation says of it can be computed apart. Nothing here
asserts anything.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import elidir
from elidir.ir import Builder, Linear, Module, Mul, Op, Value
from elidir.passes import Context, Invariant, Pass, PassResult
from tests.zoo import LENGTH_LIMIT, NAMED, VOCAB, tokens

FACTOR = 0.7


@dataclass(frozen=True)
class Flatten(Pass):
    """Multiplies the scores of tokens, and so flattens their distribution."""

    name = "flatten"
    invariant = Invariant.QUALITY

    factor: float = FACTOR

    def run(self, module: Module, cx: Context) -> PassResult:
        def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
            head = isinstance(op, Linear) and op.weight.type.dims[0] == VOCAB
            return (b.emit(Mul(b.emit(op.clone()), self.factor)),) if head else None

        return cx.result(cx.rewrite(module, rule))


@cache
def model() -> nn.Module:
    """A tiny Llama of transformers."""
    return NAMED["llama"].factory()


@cache
def exact() -> elidir.Compiled:
    """The same, compiled without loss."""
    return elidir.compile(model())


@cache
def flattened() -> elidir.Compiled:
    """The same, its scores flattened."""
    return elidir.compile(model(), pipeline=[Flatten()])


def text(length: int = 3 * LENGTH_LIMIT, seed: int = 5) -> list[int]:
    """Random token ids."""
    return tokens(1, length, seed=seed)[0].tolist()


def by_hand(ids: Tensor, context: int, factor: float = FACTOR) -> Tensor:
    """KL, agreement and both surprises [4, W, N - context] of windows, by transformers alone."""
    with torch.no_grad():
        scores = model()(ids).logits[:, context - 1 : -1].double()
    p, q = scores.log_softmax(-1), (scores * factor).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    said = ids[:, context:, None]
    surprise = [-x.gather(-1, said)[..., 0] for x in (p, q)]
    return torch.stack([kl, torch.ones_like(kl), *surprise])
