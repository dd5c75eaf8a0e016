"""The registry of reference kernels: one function per op kind, under one decorator.

A kernel function takes the op and the weights and returns the closure that runs it. Nothing
numeric lives here.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from elidir.backends.protocol import BackendError, Kernel
from elidir.backends.weights import Weights
from elidir.ir import Op

Make: TypeAlias = Callable[[Any, Weights], Kernel]

KERNELS: dict[str, Make] = {}


def kernel(kind: type[Op]) -> Callable[[Make], Make]:
    """Register the reference kernel of an op kind; a duplicate raises."""

    def register(make: Make) -> Make:
        if kind.kind in KERNELS:
            raise BackendError(f"op '{kind.kind}' has two reference kernels; remove one")
        KERNELS[kind.kind] = make
        return make

    return register
