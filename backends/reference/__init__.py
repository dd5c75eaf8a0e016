"""The reference backend: every op in plain torch, in any dtype; the oracle of all the others.

It favours being right over being fast, and uses torch's own functions where their semantics are
the op's, because those are what models are written in. Norms and softmax take float32 at least.
"""

from typing import ClassVar

from elidir.backends.protocol import Answer, Kernel, No, Yes
from elidir.backends.reference import (
    attention,  # noqa: F401 - importing registers the kernels
    elementwise,  # noqa: F401
    int8,  # noqa: F401
    masks,  # noqa: F401
    merging,  # noqa: F401
    model,  # noqa: F401
    opaque,  # noqa: F401
    reduce,  # noqa: F401
    shape,  # noqa: F401
    state,  # noqa: F401
    tokens,  # noqa: F401
)
from elidir.backends.reference.attention import attention_weights
from elidir.backends.reference.elementwise import UNARY
from elidir.backends.reference.int8 import ZERO_POINT, quantizer
from elidir.backends.reference.opaque import decode_args, encode_args
from elidir.backends.reference.registry import KERNELS
from elidir.backends.reference.state import FunctionalKV, PlacedFunctionalKV
from elidir.backends.weights import Weights
from elidir.ir import Op


class ReferenceBackend:
    """Runs every op with plain torch."""

    name: ClassVar[str] = "reference"

    def available(self) -> Answer:
        """Always: torch is all that it needs."""
        return Yes()

    def supports(self, op: Op) -> Answer:
        """Take every op but `layer`, which is inlined before."""
        return Yes() if op.kind in KERNELS else No(f"has no kernel for {op.kind}")

    def kernel(self, op: Op, weights: Weights) -> Kernel:
        """Return the closure that runs the op."""
        return KERNELS[op.kind](op, weights)


__all__ = [
    "KERNELS",
    "UNARY",
    "ZERO_POINT",
    "FunctionalKV",
    "PlacedFunctionalKV",
    "ReferenceBackend",
    "attention_weights",
    "decode_args",
    "encode_args",
    "quantizer",
]
