"""The cpu backend: float32 and bfloat16 on x86 and ARM through torch's own operators.

What makes it fast is the layout of weights, which are rearranged once, and fewer calls. It takes
an op only where that beats the reference, and says why it leaves the others.
"""

from collections.abc import Sequence
from typing import ClassVar

from elidir.backends.cpu import (
    attention,  # noqa: F401 - importing registers the kernels
    int8,  # noqa: F401
    linear,  # noqa: F401
    norm,  # noqa: F401
    rope,  # noqa: F401
    scores,  # noqa: F401
)
from elidir.backends.cpu.joined import Joined
from elidir.backends.cpu.measure import measure_host, write_host
from elidir.backends.cpu.native import tape
from elidir.backends.cpu.registry import KERNELS, check_dtypes
from elidir.backends.cpu.segments import segments
from elidir.backends.protocol import Answer, Kernel, No, Run, RunKernel, Yes
from elidir.backends.weights import Weights
from elidir.ir import Op


class CpuBackend:
    """Runs the heavy ops of a decoder on the host's processor."""

    name: ClassVar[str] = "cpu"

    def available(self) -> Answer:
        """Always: torch runs on a processor."""
        return Yes()

    def supports(self, op: Op) -> Answer:
        """Take the ops with a kernel, in one float type that it knows."""
        if op.kind not in KERNELS:
            return No("is no faster than the reference")
        return check_dtypes(op) and KERNELS[op.kind][1](op)

    def kernel(self, op: Op, weights: Weights) -> Kernel:
        """Return the closure that runs the op, its weights rearranged."""
        return KERNELS[op.kind][0](op, weights)

    def runs(self, ops: Sequence[Op]) -> Sequence[range]:
        """Return the runs of ops that have native forms, where the library can be built."""
        return segments(ops) if tape.available() else ()

    def join(self, run: Run, weights: Weights) -> RunKernel:
        """Return the closure that runs them as one call."""
        return Joined(run, weights)


__all__ = ["KERNELS", "CpuBackend", "measure_host", "write_host"]
