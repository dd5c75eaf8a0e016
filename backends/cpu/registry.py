"""The registry of cpu kernels: for each op kind, when it is taken and the closure that runs it.

A check returns `Yes` or `No(reason)` for one op by its types and attributes; most kernels need
only the common one, on dtypes. Nothing numeric lives here.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from elidir.backends.dtypes import PRECISE
from elidir.backends.protocol import Answer, BackendError, Kernel, No, Yes
from elidir.backends.weights import Weights
from elidir.ir import DType, Op, ScoreAttention, Tensor

Make: TypeAlias = Callable[[Any, Weights], Kernel]
Check: TypeAlias = Callable[[Any], Answer]

KERNELS: dict[str, tuple[Make, Check]] = {}
DTYPES = (DType.F32, DType.BF16)


def always(op: Op) -> Answer:
    """Take any op."""
    return Yes()


def kernel(kind: type[Op], check: Check = always) -> Callable[[Make], Make]:
    """Register the kernel of an op kind, for ops that pass `check`; a duplicate raises."""

    def register(make: Make) -> Make:
        if kind.kind in KERNELS:
            raise BackendError(f"op '{kind.kind}' has two cpu kernels; remove one")
        KERNELS[kind.kind] = (make, check)
        return make

    return register


def check_dtypes(op: Op) -> Answer:
    """Say whether all floats of an op are of one type, and one that the kernels know.

    Weights that keep their type in a program of any other are their kernel's affair.
    """
    made = () if isinstance(op, ScoreAttention) else op.results  # scores are f32 of any type
    types = [v.type for v in (*op.operands(), *made)]
    if not isinstance(op, PRECISE):
        types += [w.type for w in op.weights()]
    floats = {t.dtype for t in types if isinstance(t, Tensor) and t.dtype.is_float}
    if len(floats) > 1:
        names = ", ".join(sorted(d.value for d in floats))
        return No(f"mixes {names}")
    if unknown := floats - set(DTYPES):
        return No(f"has no {min(d.value for d in unknown)} kernels")
    return Yes()
