"""A tiny decoder with random weights, which the runtime's tests feed.

Its program is the text in `tiny.ir`: the stateless `@forward` is the oracle of `@step`. Both run by
the reference backend, in float64, so that a difference is a mistake and not noise. Nothing here
asserts anything.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elidir.backends import Executable, WeightStore, lower
from elidir.backends.runtime import CachelessSession, LanguageModel, Session, decoder_only
from elidir.ir import DType, parse_module

VOCABULARY = 61
POSITIONS = 48
TOLERANCE = {"rtol": 0.0, "atol": 1e-9}


@cache
def programs() -> tuple[Executable, Executable]:
    """Return the executables of `@forward` and `@step`, over the same weights."""
    module = parse_module((Path(__file__).parent / "tiny.ir").read_text())
    generator = torch.Generator().manual_seed(7)
    weights = {
        name: torch.randn(entry.type.dims, generator=generator) / entry.type.dims[-1] ** 0.5
        for name, entry in module.weights.items()
    }
    weights["freqs"] = 10.0 ** -torch.arange(4)
    # Attention outweighs the last token, so that what it may see decides the next.
    weights["0.o"] *= 8
    weights["1.o"] *= 8
    store = WeightStore(weights)
    forward, step = (
        lower(module[name], module, store, backends=("reference",), dtype=DType.F64)
        for name in ("forward", "step")
    )
    return forward, step


def session(batch: int = 1, **options: Any) -> Session:
    """Return an empty session over `@step`."""
    limits = {"vocabulary": VOCABULARY, "max_positions": POSITIONS}
    return Session(programs()[1], batch=batch, **(limits | options))


def cacheless(batch: int = 1) -> CachelessSession:
    """Return an empty session over `@forward`."""
    limits = {"vocabulary": VOCABULARY, "max_positions": POSITIONS}
    return CachelessSession(programs()[0], batch=batch, **limits)


def language_model(**defaults: Any) -> LanguageModel:
    """Return the model as `generate` takes it."""
    forward, step = programs()
    limits = {"vocabulary": VOCABULARY, "max_positions": POSITIONS}
    return decoder_only(step, forward, defaults=defaults, **limits)


def whole(ids: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the logits [B, T, V] of `@forward`, positions as transformers counts them."""
    valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
    return programs()[0](ids, valid, (valid.cumsum(1) - 1).clamp(min=0))[0]


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    """Return random token ids i64[batch, length], none of them 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)


def left_padded(lengths: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return ids and validity of rows with so many tokens each, padded on the left with 0."""
    width = max(lengths)
    valid = torch.arange(width)[None] >= width - torch.tensor(lengths)[:, None]
    return tokens(len(lengths), width, seed) * valid, valid
