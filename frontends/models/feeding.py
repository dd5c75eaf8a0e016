"""What a model of transformers is fed with while it is captured, made up from its config alone.

The inputs are those of its own `generate`, without a cache. Nothing here runs or exports a model.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from elidir.frontends.signature import (
    BATCH,
    EXAMPLE,
    LENGTH,
    LIMITS,
    ROLES,
    TARGET,
    CaptureError,
    Dims,
    Feed,
    Leaf,
    Role,
    freeze,
)

LENGTH_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "max_target_positions",
)


def hugging_face_feed(model: Any, static: tuple[int, int] | None) -> Feed:
    """Feed a model of transformers as its own `generate` would, without a cache.

    Args:
        model: a `PreTrainedModel`.
        static: batch and length, where these may not vary.

    Raises:
        CaptureError: the kind of inputs cannot be told from the model.
    """
    sizes = _sizes(model, static)
    tensors = _hugging_face_tensors(model, sizes)
    leaves: list[Leaf | None] = [
        Leaf(name, ROLES.get(name, Role.OTHER), dims) for name, (_, dims) in tensors.items()
    ]
    kwargs = {name: tensor.to(model.device) for name, (tensor, _) in tensors.items()}
    feed = Feed((), kwargs, tuple(leaves), _limits(model))
    if static is not None:
        feed = freeze(feed, feed.names)
    return stateless(model, feed)


USUAL = 64
"""Tokens that a program of fixed sizes takes if nothing is said: a text of one or two sentences."""


def usual_sizes(model: Any) -> tuple[int, int]:
    """Batch and length of a model of transformers that is captured at no other than fixed sizes."""
    return 1, min(USUAL, _limits(model)[LENGTH][1])


def check_static(static: Any) -> None:
    """Refuse what is no batch and length."""
    pair = static if isinstance(static, tuple | list) else ()
    if len(pair) != 2 or not all(type(n) is int and n >= 1 for n in pair):
        raise CaptureError(
            f"static={static} is no batch and length; both must be at least 1, as in (1, 128)"
        )


def stateless(model: Any, feed: Feed) -> Feed:
    """Ask a model of transformers to keep no cache."""
    if "use_cache" not in inspect.signature(model.forward).parameters:
        return feed
    if "use_cache" in feed.kwargs or feed.args:
        return feed
    return replace(feed, kwargs={**feed.kwargs, "use_cache": False}, leaves=(*feed.leaves, None))


def _sizes(model: Any, static: tuple[int, int] | None) -> dict[str, int]:
    """The sizes of the example: as stated, else small ones within the model's positions."""
    limit = _limits(model)[LENGTH][1]
    if static is not None:
        batch, length = static
        if length > limit:
            raise CaptureError(
                f"static={static} asks for {length} tokens and the model has {limit} positions; "
                "give a shorter length"
            )
        return {BATCH: batch, LENGTH: length, TARGET: length}
    return {name: min(size, limit) for name, size in EXAMPLE.items()}


def _limits(model: Any) -> dict[str, tuple[int, int]]:
    """Bounds of the dimensions, the length's from the config where it states one."""
    text = model.config.get_text_config()
    stated = (getattr(text, name, None) for name in LENGTH_FIELDS)
    length = next((n for n in stated if isinstance(n, int) and n > 0), None)
    if length is None:
        return dict(LIMITS)
    length -= _reserved(model, length)
    return {**LIMITS, LENGTH: (1, length), TARGET: (1, length)}


def _reserved(model: Any, length: int) -> int:
    """Rows of a position table that no token gets, since counting starts after the padding's."""
    try:
        words = model.get_input_embeddings()
    except NotImplementedError:  # transformers finds it by its usual names only
        words = None
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding))
    places = (t for t in tables if t is not words)
    offsets = (t.padding_idx for t in places if t.num_embeddings == length)
    return max((offset + 1 for offset in offsets if offset is not None), default=0)


Sized = dict[str, tuple[Tensor, Dims]]


def _hugging_face_tensors(model: Any, sizes: Mapping[str, int]) -> Sized:
    """Name, example and dimensions of each tensor that the model takes."""
    main = model.main_input_name
    if main == "pixel_values":
        return {main: _pixels(model.config, model.dtype, sizes)}
    if main == "input_features" and model.config.is_encoder_decoder:
        return {main: _features(model, sizes), **_decoder_tokens(sizes)}
    if main != "input_ids":
        raise CaptureError(
            f"{type(model).__name__} takes {main}, which cannot be made up from its config; "
            "give example_inputs="
        )
    if model.config.is_encoder_decoder:
        return {**_tokens(sizes, positions=False), **_decoder_tokens(sizes)}
    named = inspect.signature(model.forward).parameters
    tokens = _tokens(sizes, positions=_takes_positions(model))
    return {name: made for name, made in tokens.items() if name in named or main not in named}


def _takes_positions(model: Any) -> bool:
    """Whether this is a decoder that is told positions; encoders count their own."""
    parameters = inspect.signature(model.forward).parameters
    decodes = model.can_generate() or getattr(model.config, "is_decoder", True)
    return {"position_ids", "past_key_values"} <= set(parameters) and decodes


def _tokens(sizes: Mapping[str, int], *, positions: bool) -> Sized:
    """Ids and mask, and positions where the model takes them."""
    shape = (sizes[BATCH], sizes[LENGTH])
    dims: Dims = (BATCH, LENGTH)
    tensors: Sized = {
        "input_ids": (torch.zeros(shape, dtype=torch.long), dims),
        "attention_mask": (torch.ones(shape, dtype=torch.long), dims),
    }
    if positions:
        tensors["position_ids"] = (torch.arange(shape[1]).repeat(shape[0], 1), dims)
    return tensors


def _decoder_tokens(sizes: Mapping[str, int]) -> Sized:
    """Ids of the decoder beside an encoder."""
    ids = torch.zeros(sizes[BATCH], sizes[TARGET], dtype=torch.long)
    return {"decoder_input_ids": (ids, (BATCH, TARGET))}


def _pixels(config: Any, dtype: torch.dtype, sizes: Mapping[str, int]) -> tuple[Tensor, Dims]:
    """An image of the size that the config states."""
    config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    channels = getattr(config, "num_channels", 3)
    pixels = torch.zeros(sizes[BATCH], channels, height, width, dtype=dtype)
    return pixels, (BATCH, channels, height, width)


def _features(model: Any, sizes: Mapping[str, int]) -> tuple[Tensor, Dims]:
    """Audio features of the one length that the encoder's positions allow."""
    config = model.config
    bins = getattr(config, "num_mel_bins", None)
    frames = getattr(config, "max_source_positions", None)
    if bins is None or frames is None:
        raise CaptureError(
            f"the audio that {type(model).__name__} takes cannot be made up from its config; "
            "give example_inputs="
        )
    features = torch.zeros(sizes[BATCH], bins, 2 * frames, dtype=model.dtype)
    return features, (BATCH, bins, 2 * frames)
