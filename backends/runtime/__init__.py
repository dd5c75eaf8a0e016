"""The runtime: sessions, the KV cache, generation and sampling.

A `Session` feeds tokens to a compiled `@step` and keeps its cache; a `CachelessSession` runs a
whole `@forward` each time; `generate` runs either. Kernels and lowering are in `elidir.backends`.
"""

from elidir.backends.runtime.cache import KVCache, Snapshot
from elidir.backends.runtime.cacheless import CachelessSession
from elidir.backends.runtime.checks import Prompt
from elidir.backends.runtime.decoder import Call, Decoder, Rows, Stats
from elidir.backends.runtime.errors import CacheError, InputError
from elidir.backends.runtime.features import Reader, at_positions
from elidir.backends.runtime.generate import (
    LanguageModel,
    Opening,
    Streamer,
    decoder_only,
    encoder_decoder,
    generate,
)
from elidir.backends.runtime.layer import LayerKV, LayerSpec, layer_specs
from elidir.backends.runtime.options import GenerationOptions, read_options
from elidir.backends.runtime.sampling import (
    draw,
    forbid,
    greedy,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    temper,
)
from elidir.backends.runtime.session import Prefill, Session

__all__ = [
    "CacheError",
    "CachelessSession",
    "Call",
    "Decoder",
    "GenerationOptions",
    "InputError",
    "KVCache",
    "LanguageModel",
    "LayerKV",
    "LayerSpec",
    "Opening",
    "Prefill",
    "Prompt",
    "Reader",
    "Rows",
    "Session",
    "Snapshot",
    "Stats",
    "Streamer",
    "at_positions",
    "decoder_only",
    "draw",
    "encoder_decoder",
    "forbid",
    "generate",
    "greedy",
    "keep_top_k",
    "keep_top_p",
    "layer_specs",
    "penalize_repetition",
    "read_options",
    "temper",
]
