"""The arguments of `generate`: transformers' names and defaults, checked before any step.

Options are data; what they do to scores is in `sampling`, and when generation stops in `generate`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from elidir.backends.runtime.errors import InputError
from elidir.ir import nearest

DEFAULT_NEW_TOKENS = 20


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate.

    Args:
        max_new_tokens: new tokens at most; goes before `max_length`. With neither, 20.
        max_length: tokens at most, the prompt's included.
        min_new_tokens: new tokens before an end-of-sequence token may come.
        do_sample: draw from the distribution; otherwise the best token is taken, and temperature,
            top_k and top_p do nothing.
        temperature: scores are divided by it.
        top_k: only so many of the best tokens may be drawn; 0 for all.
        top_p: only the most likely tokens that sum to this probability may be drawn.
        repetition_penalty: above 1, tokens of the prompt and the output become less likely.
        seed: makes the draws repeatable; None takes torch's own generator, as transformers does.
        eos_token_id: a row ends after this token, or one of these.
        pad_token_id: fills rows that have ended; None takes the first end-of-sequence token.
        stop_strings: a row ends when its new text has one of these; needs `tokenizer=`.
        decoder_start_token_id: an encoder-decoder's first token.
        forced_bos_token_id: the token after the first one, whatever its score (BART, mBART).
        forced_eos_token_id: the token at the end of a full length, whatever its score.
        use_cache: whether a KV cache may be used.
        prefill_chunk_size: feed the prompt in chunks of so many tokens, which bounds memory.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    stop_strings: tuple[str, ...] = ()
    decoder_start_token_id: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    use_cache: bool = True
    prefill_chunk_size: int | None = None


_FORCED = {"forced_bos_token_id", "forced_eos_token_id"}
_SPECIAL = {"decoder_start_token_id", "eos_token_id", "pad_token_id", *_FORCED}
_NAMES = tuple(f.name for f in dataclasses.fields(GenerationOptions))
_ARGUMENTS = (*_NAMES, "attention_mask", "input_ids", "streamer", "tokenizer")


def read_options(
    given: Mapping[str, Any], defaults: Mapping[str, Any], vocabulary: int | None = None
) -> GenerationOptions:
    """Return options from a caller's arguments over a model's defaults (its generation config).

    An argument of None is one not given. Defaults that are no options here are left out, and so are
    special tokens that the vocabulary does not have (configs have -1 for none).

    Raises:
        InputError: an unknown argument, or a value out of its range.
    """
    for name in given:
        if name not in _NAMES:
            raise InputError(f"generate has no argument '{name}'{nearest(name, _ARGUMENTS)}")
    asked = {n: _READERS[n](n, v) for n, v in given.items() if v is not None}
    for name in _SPECIAL & asked.keys():
        _check_special(name, asked[name], vocabulary)
    own = {n: v for n, v in defaults.items() if n in _NAMES and v is not None}
    usable = {n: _usable(n, v, vocabulary) for n, v in own.items() if n not in asked}
    merged = asked | {n: _READERS[n](n, v) for n, v in usable.items() if v is not None}
    return GenerationOptions(**merged)


def _check_special(name: str, value: int | tuple[int, ...], vocabulary: int | None) -> None:
    for token in value if isinstance(value, tuple) else (value,):
        if vocabulary is not None and token >= vocabulary:
            raise InputError(f"{name} is {token}; token ids are from 0 to {vocabulary - 1}")


def _usable(name: str, value: Any, vocabulary: int | None) -> Any:
    """Return a model's default without token ids that do not exist, None if nothing is left."""
    if name not in _SPECIAL:
        return value
    kept = [t for t in _listed(value) if t >= 0 and (vocabulary is None or t < vocabulary)]
    return (kept if name == "eos_token_id" else kept[0]) if kept else None


def _whole(least: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        return value

    return read


def _number(name: str, value: Any, rule: str, fits: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise InputError(f"{name} is {value!r}; it must be {rule}")
    return float(value)


def _temperature(name: str, value: Any) -> float:
    return _number(name, value, "above 0 (for the best token, use do_sample=False)", _positive)


def _penalty(name: str, value: Any) -> float:
    return _number(name, value, "above 0 (1 changes nothing)", _positive)


def _probability(name: str, value: Any) -> float:
    return _number(name, value, "above 0 and at most 1", lambda x: 0 < x <= 1)


def _positive(value: float) -> bool:
    return 0 < value < float("inf")


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; it must be True or False")
    return value


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    return tuple(_whole(0)(name, item) for item in _listed(value))


def _listed(value: Any) -> list[Any]:
    """Return one or several items, a tensor's too, as a list."""
    many = value.tolist() if hasattr(value, "tolist") else value
    return list(many) if isinstance(many, list | tuple) else [many]


def _strings(name: str, value: Any) -> tuple[str, ...]:
    many = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(item, str) and item for item in many):
        raise InputError(f"{name} is {value!r}; it must be a string or several, none of them empty")
    return many


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "max_new_tokens": _whole(1),
    "max_length": _whole(1),
    "min_new_tokens": _whole(0),
    "do_sample": _flag,
    "temperature": _temperature,
    "top_k": _whole(0),
    "top_p": _probability,
    "repetition_penalty": _penalty,
    "seed": _whole(0),
    "eos_token_id": _token_ids,
    "pad_token_id": _whole(0),
    "stop_strings": _strings,
    "decoder_start_token_id": _whole(0),
    "forced_bos_token_id": _whole(0),
    "forced_eos_token_id": _whole(0),
    "use_cache": _flag,
    "prefill_chunk_size": _whole(1),
}


def budget(options: GenerationOptions, prompt: int, available: int | None) -> int:
    """Return how many tokens may be generated after a prompt of so many, at least one.

    Args:
        options: as the caller gave them.
        prompt: width of the prompt, padding included.
        available: new tokens that the model's positions leave room for, or None.

    Raises:
        InputError: the prompt fills `max_length`, or the model has too few positions.
    """
    new = _wanted(options, prompt)
    if available is None:
        return new
    if available < 1:
        raise InputError(
            f"the prompt of {prompt} tokens is longer than the model's positions; shorten it by "
            f"{1 - available} tokens"
        )
    if options.max_new_tokens is None and options.max_length is None:
        return min(new, available)
    if new > available:
        raise InputError(
            f"after a prompt of {prompt} tokens the model has positions for {available} new ones, "
            f"not {new}; shorten the prompt or give max_new_tokens={available}"
        )
    return new


def _wanted(options: GenerationOptions, prompt: int) -> int:
    if options.max_new_tokens is not None:
        return options.max_new_tokens
    if options.max_length is None:
        return DEFAULT_NEW_TOKENS
    if options.max_length <= prompt:
        raise InputError(
            f"max_length is {options.max_length} and the prompt has {prompt} tokens; give a larger "
            "max_length, or max_new_tokens"
        )
    return options.max_length - prompt
