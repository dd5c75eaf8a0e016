"""Tiny random models of many families, for tests that must hold on every architecture.

`NAMED` holds the families that elidir promises to capture and raise, three plain decoders written
here in different styles among them; `OTHERS` holds further families of transformers. Each entry
builds its model with two layers from a fixed seed and makes inputs of any batch and length, left
padding included. Nothing here asserts anything, and nothing is downloaded.
"""

from tests.zoo.further import OTHERS
from tests.zoo.making import (
    BERT_LIKE,
    LENGTH_LIMIT,
    LLAMA_LIKE,
    VOCAB,
    Entry,
    Inputs,
    decoder,
    exact,
    left_padding,
    masked_inputs,
    plain_inputs,
    randomize,
    tokens,
)
from tests.zoo.named import NAMED
from tests.zoo.plain import TriangleDecoder

__all__ = [
    "BERT_LIKE",
    "LENGTH_LIMIT",
    "LLAMA_LIKE",
    "NAMED",
    "OTHERS",
    "VOCAB",
    "Entry",
    "Inputs",
    "TriangleDecoder",
    "decoder",
    "exact",
    "left_padding",
    "masked_inputs",
    "plain_inputs",
    "randomize",
    "tokens",
]
