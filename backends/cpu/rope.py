"""Rotary embedding in one pass through the native library, or in three calls of torch's.

torch's way is for whole heads with the half layout alone, over tables that are doubled once per
step; what it leaves is the reference's.
"""

import torch

from elidir.backends.cpu.alone import Alone
from elidir.backends.cpu.memo import Memo
from elidir.backends.cpu.native import tape
from elidir.backends.cpu.native.records import Code
from elidir.backends.cpu.registry import kernel
from elidir.backends.protocol import Answer, Kernel, No, Yes
from elidir.backends.weights import Weights
from elidir.ir import Rope, RopeLayout


def _is_plain(op: Rope) -> Answer:
    if tape.available():
        return Yes()
    if op.layout is not RopeLayout.HALF:
        return No("rotates neighbouring channels")
    if op.x.tensor.dims[-1] != 2 * op.cos.tensor.dims[-1]:
        return No("rotates only some of the channels")
    return Yes()


def _double(cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T, D/2] tables -> [B, 1, T, D]: cos twice, and sin with the sign of its term."""
    return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]


DOUBLED = Memo(_double)


@kernel(Rope, _is_plain)
def rope(op: Rope, weights: Weights) -> Kernel:
    """Rotate channel pairs."""
    return _native(op) if tape.available() else _in_torch(op)


def _native(op: Rope) -> Kernel:
    turn = Alone(Code.ROPE, fn=int(op.layout is RopeLayout.INTERLEAVED))

    def run(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        tables = (cos.shape[0], *cos.shape[1:])
        batch = x.shape[0]
        cos, sin = (t.expand(batch, *tables[1:]) for t in (cos, sin))
        out = torch.empty(x.shape, dtype=x.dtype)
        turn([x, cos, sin], [out], inner=tables[-1])
        return out

    return run


def _in_torch(op: Rope) -> Kernel:
    """Return x cos + swap(x) sin, the halves swapped by a roll."""
    half = op.cos.tensor.dims[-1]

    def run(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        cosines, sines = DOUBLED(cos, sin)
        return torch.addcmul(x * cosines, x.roll(half, -1), sines)

    return run
