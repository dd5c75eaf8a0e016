"""What lm-eval asks of a model: log-likelihoods and text, always over the cache.

A context is prefilled in one step, and its continuation is scored behind it, so that what a pass
did to the cache counts. (A log-likelihood that comes of one pass over both never reads the cache.)
lm-eval itself is not needed here; its class is in `elidir.harness`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch

from elidir.backends.runtime import (
    Decoder,
    LanguageModel,
    Opening,
    Prompt,
    Rows,
    Session,
    generate,
)
from elidir.frontends.evaluation.errors import EvaluationError
from elidir.frontends.evaluation.texts import start_of
from elidir.frontends.tokenizer import Tokenizer

USUAL_POSITIONS = 2048
"""Tokens of a window of a model that has any number of positions."""

Scored = tuple[float, bool]
"""The log-likelihood of a continuation in nats, and whether greedy decoding would give it."""


@dataclass(frozen=True)
class Harness:
    """A language model as lm-eval sees one.

    Args:
        model: what is evaluated.
        tokenizer: its tokenizer.
        chunk: tokens of each step after a context.
        new_tokens: of generated text, where a task does not say.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    chunk: int = 64
    new_tokens: int = 256

    def __post_init__(self) -> None:
        """Refuse what has no continuation to score."""
        if self.model.encodes:
            raise EvaluationError("an encoder-decoder does not go on from a text; give a decoder")

    @property
    def positions(self) -> int:
        """Tokens that are read at most."""
        return self.model.max_positions or USUAL_POSITIONS

    # -- log-likelihoods

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """Return the log-likelihood of each continuation after its context.

        Pairs that share a context share its prefill.
        """
        encoded = [self._pair(*pair) for pair in pairs]
        order = sorted(range(len(pairs)), key=lambda i: encoded[i][0])
        found: dict[int, Scored] = {}
        for context, group in groupby(order, key=lambda i: encoded[i][0]):
            indices = list(group)
            scores = self._scores(context, [encoded[i][1] for i in indices])
            found.update(zip(indices, scores, strict=True))
        return [found[i] for i in range(len(pairs))]

    def rolling(self, text: str) -> float:
        """Return the log-likelihood of a whole text, each token predicted once.

        A text with more tokens than the model has positions is cut; each part is read with as
        much context as there is room for.
        """
        tokens = self._encode(text, begun=False)
        whole, size = [*self._prefix(), *tokens], self.positions
        total = 0.0
        for begin in range(1, len(whole), size):
            end = min(begin + size, len(whole))
            start = max(0, end - 1 - size)
            ((score, _),) = self._scores(whole[start:begin], [whole[begin:end]])
            total += score
        return total

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return both as ids; spaces at the end of a context belong to the continuation."""
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        if not kept:
            return self._prefix(), self._encode(continuation, begun=False)
        before = self._encode(kept, begun=True)
        after = self._encode(kept + continuation, begun=True)[len(before) :]
        room = self.positions + 1 - len(after)
        if room < 1:
            raise EvaluationError(
                f"a continuation has {len(after)} tokens, more than the model's {self.positions} "
                "positions; leave the task out"
            )
        return before[-room:], after

    def _encode(self, text: str, *, begun: bool) -> list[int]:
        """Return ids; `begun` ones start as a text does, once, whether the text says so or not."""
        start, ids = start_of(self.tokenizer), self.tokenizer.encode(text)
        size = len(start)
        if size and ids[size : 2 * size] == start:
            ids = ids[size:]
        return ids if begun or not size else ids[size:]

    def _prefix(self) -> list[int]:
        """Return what stands before a text that has no context."""
        if start := start_of(self.tokenizer):
            return start
        for name in ("bos_token_id", "eos_token_id"):
            found = self.model.defaults.get(name)
            if found is not None:
                return [found] if isinstance(found, int) else list(found[:1])
        raise EvaluationError("the model has no token to begin a text with; give bos_token_id")

    def _scores(self, context: Sequence[int], continuations: list[list[int]]) -> Iterator[Scored]:
        """Yield the score of each continuation of one context, which is prefilled once."""
        longest = max(len(c) for c in continuations)
        ids = torch.tensor([list(context)])
        decoder = self.model.open(Opening(Prompt(ids, None), len(context) + longest, True))
        first = decoder.feed(ids, rows=Rows.LAST)
        back = _way_back(decoder)
        for at, continuation in enumerate(continuations):
            if at:
                back()
            yield self._score(decoder, first, continuation)

    def _score(self, decoder: Decoder, first: torch.Tensor, tokens: Sequence[int]) -> Scored:
        targets, total, greedy, at = torch.tensor(tokens), 0.0, True, 0
        for rows in self._rows(decoder, first, targets):
            said = targets[at : at + rows.shape[0]]
            logs = rows.double().log_softmax(-1)
            total += float(logs.gather(-1, said[:, None]).sum())
            greedy = greedy and bool((rows.argmax(-1) == said).all())
            at += rows.shape[0]
        return total, greedy

    def _rows(
        self, decoder: Decoder, first: torch.Tensor, targets: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        """Yield the logits [n, V] that predict the targets, step by step."""
        yield first[0][: len(targets)]
        for part in targets[:-1].split(self.chunk):
            if len(part):
                yield decoder.feed(part[None], rows=Rows.ALL)[0]

    # -- text

    def until(self, context: str, options: Mapping[str, Any]) -> str:
        """Return the text that follows a context, up to a stop string, which is left out.

        `options` are lm-eval's: until, max_gen_toks, do_sample, temperature and the like.
        """
        given = dict(options)
        stops = given.pop("until", None) or []
        stops = [stops] if isinstance(stops, str) else list(stops)
        new = int(given.pop("max_gen_toks", self.new_tokens))
        if not given.get("do_sample"):
            given = {"do_sample": False}
        room = self.positions + 1 - new
        if room < 1:
            raise EvaluationError(
                f"{new} new tokens are more than the model's {self.positions} positions; give a "
                "smaller max_gen_toks"
            )
        ids = (self._encode(context, begun=True) or self._prefix())[-room:]
        if stops:
            given |= {"stop_strings": tuple(stops), "tokenizer": self.tokenizer}
        out = generate(self.model, [ids], max_new_tokens=new, **given)
        text = self.tokenizer.decode(out[0, len(ids) :].tolist())
        return min((text.partition(stop)[0] for stop in stops), key=len, default=text)


def _way_back(decoder: Decoder) -> Callable[[], None]:
    """Return what takes a decoder back to here; a cache that evicts takes a copy for it."""
    if isinstance(decoder, Session) and decoder.cache.placed:
        return partial(decoder.restore, decoder.snapshot())
    return partial(decoder.crop, decoder.length)
