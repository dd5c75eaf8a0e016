"""The generation loop: prompt in, prompt and new tokens out, as transformers' `generate`.

Which model runs, and whether it keeps a cache, is behind `LanguageModel.open`. Scores are changed
in `sampling`, arguments read in `options`; here are the loop, what ends a row, and the streamer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from elidir.backends.runtime import sampling
from elidir.backends.runtime.cacheless import CachelessSession
from elidir.backends.runtime.checks import Prompt, as_prompt
from elidir.backends.runtime.decoder import Decoder, Rows
from elidir.backends.runtime.errors import InputError
from elidir.backends.runtime.layer import LayerSpec
from elidir.backends.runtime.options import GenerationOptions, budget, read_options
from elidir.backends.runtime.session import Prefill, Session

# A cache starts with room for the prompt and so many new tokens; it grows when they are exceeded.
_ROOM = 1024

_Chooser = Callable[[Tensor, Tensor], Tensor]


class Streamer(Protocol):
    """Takes the prompt, then each step's tokens, as transformers' streamers do."""

    def put(self, value: Tensor) -> None:
        """Take i64[B, T] (the prompt) or i64[B] (the tokens of a step)."""

    def end(self) -> None:
        """Learn that there are no more."""


@dataclass(frozen=True)
class Opening:
    """What a decoder is opened for: the prompt, the tokens to reserve room for, and the cache."""

    prompt: Prompt
    capacity: int
    use_cache: bool


@dataclass(frozen=True)
class LanguageModel:
    """What `generate` knows of a model.

    Args:
        open: starts a decoder of as many rows as the prompt has.
        vocabulary: number of token ids, None if it is not known.
        max_positions: positions that the model has, None for any number.
        defaults: its own generation options, such as eos_token_id.
        encodes: whether the prompt goes to an encoder, and generation starts from
            decoder_start_token_id alone.
        padding_counts: whether padding takes positions too.
    """

    open: Callable[[Opening], Decoder]
    vocabulary: int | None = None
    max_positions: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    encodes: bool = False
    padding_counts: bool = False


def decoder_only(
    step: Callable[..., Any] | None,
    forward: Callable[..., Any] | None,
    *,
    layers: Sequence[LayerSpec] | None = None,
    prefill: Prefill | None = None,
    vocabulary: int | None = None,
    max_positions: int | None = None,
    defaults: Mapping[str, Any] | None = None,
    padding_counts: bool = False,
) -> LanguageModel:
    """Return a model that decodes by its `@step`, or by its `@forward` where there is none.

    Args:
        step: as `Session` calls it, or None for a model without a cache.
        forward: as `CachelessSession` calls it; None is allowed when there is a step.
        layers: the cache of each layer; None reads them from `step.params`.
        prefill: what `Session` reads a prompt with; None takes the step.
        vocabulary: number of token ids, None if it is not known.
        max_positions: positions that the model has, None for any number.
        defaults: its own generation options.
        padding_counts: whether padding takes positions too, as where a model counts by itself.
    """
    limits: dict[str, Any] = {"vocabulary": vocabulary, "max_positions": max_positions}
    limits["padding_counts"] = padding_counts
    if step is None and forward is None:
        raise InputError("a model needs a step or a forward to generate; give one of them")

    def open_(opening: Opening) -> Decoder:
        batch = opening.prompt.ids.shape[0]
        if step is None or (forward is not None and not opening.use_cache):
            return CachelessSession(forward, batch=batch, **limits)
        return Session(
            step, layers, prefill=prefill, batch=batch, capacity=opening.capacity, **limits
        )

    return LanguageModel(open_, defaults=defaults or {}, **limits)


def encoder_decoder(
    forward: Callable[..., Any],
    *,
    vocabulary: int | None = None,
    max_positions: int | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """Return a model whose prompt is encoded, decoding without a cache.

    Args:
        forward: called as forward(encoder ids, encoder validity, ids, validity, pos); returns
            logits [B, T, V], or a sequence whose first item they are.
        vocabulary: number of token ids, None if it is not known.
        max_positions: positions of its decoder, None for any number.
        defaults: its own generation options.
    """
    limits: dict[str, Any] = {"vocabulary": vocabulary, "max_positions": max_positions}

    def open_(opening: Opening) -> Decoder:
        ids, valid = opening.prompt.ids, opening.prompt.valid
        valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
        return CachelessSession(partial(forward, ids, valid), batch=ids.shape[0], **limits)

    return LanguageModel(open_, defaults=defaults or {}, encodes=True, **limits)


@torch.no_grad()
def generate(
    model: LanguageModel,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    streamer: Streamer | None = None,
    tokenizer: Any = None,
    **options: Any,
) -> Tensor:
    """Return the prompt and the new tokens, i64[B, T]; rows that ended early are padded.

    Args:
        model: what to generate with.
        input_ids: token ids, one row or several of equal length (padded on the left).
        attention_mask: 1 for tokens, 0 for padding. Without it, pad_token_id marks padding if it is
            not an end-of-sequence token too; otherwise all are tokens.
        streamer: is given the prompt, then each token.
        tokenizer: decodes, for stop_strings.
        options: the fields of `GenerationOptions`, named as in transformers.

    Raises:
        InputError: anything out of its range, or an unknown argument; before any step.
    """
    _check_streamer(streamer)
    read = read_options(options, model.defaults, model.vocabulary)
    mark, either = _padding_mark(read), model.encodes
    prompt = as_prompt(input_ids, attention_mask, model.vocabulary, mark, either_side=either)
    decoded = _start_tokens(prompt, read) if model.encodes else prompt
    longest = decoded.ids.shape[1] if model.padding_counts else decoded.longest
    room = None if model.max_positions is None else model.max_positions + 1 - longest
    new = budget(read, decoded.ids.shape[1], room)
    ending = _Ending(read, tokenizer)
    capacity = decoded.ids.shape[1] + min(new, _ROOM)
    decoder = model.open(Opening(prompt, capacity, read.use_cache))
    return _loop(decoder, decoded, new, read, ending, streamer)


def _padding_mark(options: GenerationOptions) -> int | None:
    """Return the id that marks padding where no mask is given: never one that ends a sequence."""
    return None if options.pad_token_id in options.eos_token_id else options.pad_token_id


def _start_tokens(prompt: Prompt, options: GenerationOptions) -> Prompt:
    start = options.decoder_start_token_id
    if start is None:
        raise InputError("an encoder-decoder starts from a token; give decoder_start_token_id")
    return Prompt(torch.full((prompt.ids.shape[0], 1), start), None)


def _loop(
    decoder: Decoder,
    prompt: Prompt,
    new: int,
    options: GenerationOptions,
    ending: "_Ending",
    streamer: Streamer | None,
) -> Tensor:
    batch, start = prompt.ids.shape
    out = torch.full((batch, start + new), ending.padding)
    out[:, :start] = prompt.ids
    choose = _chooser(options)
    _put(streamer, prompt.ids)
    logits = _prefill(decoder, prompt, options.prefill_chunk_size)
    for end in range(start, start + new):
        scores = ending.hold_back(_scores(logits), end - start)
        forced = _forced(options, end, start + new)
        chosen = choose(scores, out[:, :end]) if forced is None else torch.full((batch,), forced)
        tokens = ending.pad(chosen)
        out[:, end] = tokens
        _put(streamer, tokens)
        if ending.check(tokens, out[:, start : end + 1]) or end == start + new - 1:
            break
        logits = decoder.feed(tokens[:, None], rows=Rows.LAST)
    if streamer is not None:
        streamer.end()
    return out[:, : end + 1].clone()


def _forced(options: GenerationOptions, at: int, length: int) -> int | None:
    """Return the token that stands at an index whatever the scores, or None."""
    if at == length - 1 and options.forced_eos_token_id is not None:
        return options.forced_eos_token_id
    return options.forced_bos_token_id if at == 1 else None


def _prefill(decoder: Decoder, prompt: Prompt, chunk: int | None) -> Tensor:
    length = prompt.ids.shape[1]
    size = length if chunk is None else chunk
    for at in range(0, length, size):
        part = slice(at, at + size)
        valid = None if prompt.valid is None else prompt.valid[:, part]
        logits = decoder.feed(prompt.ids[:, part], valid, rows=Rows.LAST)
    return logits


def _scores(logits: Tensor) -> Tensor:
    """Return the last row's scores [B, V] in no less than float32."""
    last = logits[:, -1]
    return last if last.dtype is torch.float64 else last.to(torch.float32)


def _check_streamer(streamer: Any) -> None:
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise InputError(
            f"streamer {streamer!r} has no put and end; give transformers' TextStreamer"
        )


def _put(streamer: Streamer | None, tokens: Tensor) -> None:
    if streamer is not None:
        streamer.put(tokens.cpu())


def _chooser(options: GenerationOptions) -> _Chooser:
    """Return the function from scores [B, V] and history [B, T] to tokens [B]."""
    penalty, warp = options.repetition_penalty, _warpers(options)
    generator = None if options.seed is None else torch.Generator().manual_seed(options.seed)
    sample = options.do_sample

    def choose(scores: Tensor, history: Tensor) -> Tensor:
        if penalty != 1:
            scores = sampling.penalize_repetition(scores, history, penalty)
        for change in warp:
            scores = change(scores)
        return sampling.draw(scores, generator) if sample else sampling.greedy(scores)

    return choose


def _warpers(options: GenerationOptions) -> list[Callable[[Tensor], Tensor]]:
    if not options.do_sample:
        return []
    found: list[Callable[[Tensor], Tensor]] = []
    if options.temperature != 1:
        found.append(partial(sampling.temper, temperature=options.temperature))
    if options.top_k:
        found.append(partial(sampling.keep_top_k, k=options.top_k))
    if options.top_p < 1:
        found.append(partial(sampling.keep_top_p, p=options.top_p))
    return found


class _Ending:
    """Knows which rows have ended, and fills them."""

    def __init__(self, options: GenerationOptions, tokenizer: Any) -> None:
        self.ends, self.strings = frozenset(options.eos_token_id), options.stop_strings
        self.tokenizer, self.least = tokenizer, options.min_new_tokens or 0
        self.padding = _padding(options)
        self._end_ids = torch.tensor(options.eos_token_id, dtype=torch.int64)
        self._done: list[bool] = []
        if self.strings and tokenizer is None:
            raise InputError("stop_strings need the tokenizer; give tokenizer= as well")

    def hold_back(self, scores: Tensor, made: int) -> Tensor:
        """Rule out the end of a sequence before there are enough new tokens."""
        if made >= self.least or not self.ends:
            return scores
        return sampling.forbid(scores, self._end_ids)

    def pad(self, tokens: Tensor) -> Tensor:
        """Replace the tokens of rows that have ended by padding."""
        if not any(self._done):
            return tokens
        return tokens.masked_fill(torch.tensor(self._done), self.padding)

    def check(self, tokens: Tensor, new: Tensor) -> bool:
        """Note which rows end with these tokens [B]; returns whether all have ended."""
        if not self.ends and not self.strings:
            return False
        found = tokens.tolist()
        self._done = self._done or [False] * len(found)
        for row, token in enumerate(found):
            if not self._done[row]:
                self._done[row] = token in self.ends or self._has_string(new[row])
        return all(self._done)

    def _has_string(self, new: Tensor) -> bool:
        """Whether a stop string is in the text of the latest tokens, each at least a byte."""
        if not self.strings:
            return False
        window = max(len(s.encode()) for s in self.strings) + 1
        text = self.tokenizer.decode(new[-window:].tolist())
        return any(s in text for s in self.strings)


def _padding(options: GenerationOptions) -> int:
    if options.pad_token_id is not None:
        return options.pad_token_id
    return options.eos_token_id[0] if options.eos_token_id else 0
