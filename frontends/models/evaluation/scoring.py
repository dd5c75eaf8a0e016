"""Scoring a text through the cache: a part of a window is prefilled, the rest is fed behind it.

Two models read the same windows in step. Each piece of logits is compared and dropped, so that a
large vocabulary needs memory for one piece only. What the figures are made into is in `quality`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from elidir.backends.runtime import (
    CachelessSession,
    Call,
    Decoder,
    LanguageModel,
    Opening,
    Prompt,
    Rows,
)
from elidir.frontends.evaluation.errors import EvaluationError

Notify = Callable[[str, int, int], object]
"""Is told what is being done, how much of it is done, and how much there is."""


def quiet(what: str, done: int, whole: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Feeding:
    """How a window is fed. What is prefilled is not scored: its cache is what the rest is read on.

    Args:
        context: tokens that are prefilled in one step; None for half of the window.
        chunk: tokens of each step after it.
        singles: tokens at the end that are fed one by one, as generation does.
    """

    context: int | None = None
    chunk: int = 64
    singles: int = 16

    def check(self, length: int) -> None:
        """Raise `EvaluationError` if windows of a length cannot be fed so."""
        for name, value, least in (("chunk", self.chunk, 1), ("singles", self.singles, 0)):
            if value < least:
                raise EvaluationError(f"{name} is {value}; it must be {least} or more")
        if not 1 <= self.prefilled(length) < length:
            raise EvaluationError(
                f"a context of {self.context} tokens leaves none of a window of {length} to "
                f"score; give one from 1 to {length - 1}"
            )

    def prefilled(self, length: int) -> int:
        """Return how many tokens of a window are prefilled."""
        return length // 2 if self.context is None else self.context

    def steps(self, length: int, chunk: int) -> list[tuple[int, int]]:
        """Return the steps of a window as (begin, end). The last token is only predicted."""
        start, end = self.prefilled(length), length - 1
        middle = max(start, end - self.singles)
        starts = [0, *range(start, middle, chunk), *range(middle, end)]
        return list(zip(starts, [*starts[1:], end], strict=True))


@dataclass(frozen=True)
class Window:
    """What two models make of one window: means over its scored tokens.

    Args:
        kl: KL(dense || compiled) in nats.
        top1: share of tokens that both hold most likely.
        nll: of the text's own tokens, by the dense model, in nats.
        nll_compiled: the same by the compiled model.
    """

    kl: float
    top1: float
    nll: float
    nll_compiled: float


@dataclass
class Clock:
    """Steps that a model took, and the bytes of its cache at the end."""

    prefills: list[Call] = field(default_factory=list)
    singles: list[Call] = field(default_factory=list)
    kv_bytes: int = 0

    def add(self, decoder: Decoder) -> None:
        """Take the steps of a decoder that has read a window."""
        calls = decoder.stats.calls
        self.prefills.append(calls[0])
        self.singles += [c for c in calls[1:] if c.new == 1]
        self.kv_bytes = max(self.kv_bytes, decoder.stats.kv_bytes)

    @property
    def prefill(self) -> float:
        """Seconds of a prefill, the median."""
        return median(c.seconds for c in self.prefills)

    @property
    def step(self) -> float | None:
        """Seconds of a single token, the median, None if there was none."""
        return median(c.seconds for c in self.singles) if self.singles else None


def score(
    models: tuple[LanguageModel, LanguageModel],
    ids: Tensor,
    feeding: Feeding,
    *,
    batch: int = 1,
    notify: Notify = quiet,
) -> tuple[list[Window], tuple[Clock, Clock]]:
    """Return what a dense and a compiled model make of windows i64[W, N], and their clocks.

    `batch` windows are read at a time, each in a row of its own.
    """
    found: list[Window] = []
    clocks = Clock(), Clock()
    for group in ids.split(batch):
        notify("text", len(found), len(ids))
        decoders = _open(models[0], group), _open(models[1], group)
        found += _score(decoders, group, feeding)
        for clock, decoder in zip(clocks, decoders, strict=True):
            clock.add(decoder)
    return found, clocks


def _open(model: LanguageModel, ids: Tensor) -> Decoder:
    return model.open(Opening(Prompt(ids, None), ids.shape[1], use_cache=True))


def _score(decoders: tuple[Decoder, Decoder], ids: Tensor, feeding: Feeding) -> list[Window]:
    """Read windows; without a cache one by one, so that no token sees those after it.

    (A model that could be given no cache may not be causal.)
    """
    length = ids.shape[1]
    whole = any(isinstance(d, CachelessSession) for d in decoders)
    total = torch.zeros(4, len(ids), dtype=torch.float64)
    for begin, end in feeding.steps(length, 1 if whole else feeding.chunk):
        rows = Rows.ALL if begin else Rows.LAST
        dense, compiled = (d.feed(ids[:, begin:end], rows=rows) for d in decoders)
        targets = ids[:, end + 1 - dense.shape[1] : end + 1]
        total += compare(dense, compiled, targets).sum(-1)
    if bool(total.isnan().any()):
        raise EvaluationError("the logits are no numbers (NaN); look for NaN in the weights")
    return [Window(*row) for row in (total / (length - feeding.prefilled(length))).T.tolist()]


def compare(dense: Tensor, compiled: Tensor, targets: Tensor) -> Tensor:
    """Return f64[4, B, n]: KL, agreement, and the targets' surprise by each model, in nats.

    Args:
        dense: logits [B, n, V].
        compiled: logits [B, n, V].
        targets: the tokens that came, i64[B, n].
    """
    p, q = (x.double().log_softmax(-1) for x in (dense, compiled))
    kl = (p.exp() * (p - q)).masked_fill(p.isneginf(), 0.0).sum(-1)
    same = dense.argmax(-1) == compiled.argmax(-1)
    surprise = [-x.gather(-1, targets[..., None])[..., 0] for x in (p, q)]
    return torch.stack([kl, same.double(), *surprise])
