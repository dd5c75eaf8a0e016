"""What keys get of attention, `score.attention` by itself: in the native library, or in torch.

A few queries are scored natively, keys being read where they lie. Many are products of torch's,
those that share a key head being rows of one, and what lies above a causal mask is left out; noise
is added natively. Heads too wide for the library are the reference's affair.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from elidir.backends.cpu.alone import Alone, address
from elidir.backends.cpu.forms import attending
from elidir.backends.cpu.memo import Memo
from elidir.backends.cpu.native import tape
from elidir.backends.cpu.native.records import FIRST_OUTER, RUN_OF_KEYS, WIDEST_HEAD, Code
from elidir.backends.cpu.registry import kernel
from elidir.backends.cpu.stored import vector
from elidir.backends.dtypes import torch_dtype
from elidir.backends.protocol import Answer, Kernel, No, Yes
from elidir.backends.reference.noise import Noise
from elidir.backends.reference.tokens import wanted
from elidir.backends.weights import Weights
from elidir.ir import ScoreAttention

FEW_QUERIES = 4  # more are faster as products
QUERIES_AT_ONCE = 64
_MASK = FIRST_OUTER + 5  # the slot of a second output

Maybe: TypeAlias = torch.Tensor | None
FewScores: TypeAlias = Callable[[torch.Tensor, torch.Tensor, Maybe, Maybe], torch.Tensor]
ManyScores: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, Maybe, Maybe, Noise | None], torch.Tensor
]


def _is_plain(op: ScoreAttention) -> Answer:
    if op.seed is not None and not tape.available():
        return No("draws noise, which takes the native library")
    width = op.q.tensor.dims[3]
    return Yes() if isinstance(width, int) and width <= WIDEST_HEAD else No("has very wide heads")


@kernel(ScoreAttention, _is_plain)
def score_attention(op: ScoreAttention, weights: Weights) -> Kernel:
    """Attention of the given queries, added up over them."""
    given = [n for n in ("mask", "bias", "state", "rows") if getattr(op, n) is not None]
    products, native = _products(op, weights), None
    if op.seed is None and tape.available():
        native = _native(op, weights)

    def run(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> torch.Tensor:
        found = dict(zip(given, rest, strict=True))
        q, mask, bias = wanted(found.get("rows"), q, found.get("mask"), found.get("bias"))
        if native is not None and q.shape[2] <= FEW_QUERIES:
            return native(q, k, mask, bias)
        state = found.get("state")
        noise = None if state is None else Noise(op, state, q.shape[1], q.shape[2])
        total = products(q, k, mask, bias, noise)
        return total.mean(1) if op.shared else total

    return run


def _native(op: ScoreAttention, weights: Weights) -> FewScores:
    sinks, dtype = vector(weights, op.sinks), torch_dtype(op.k.tensor.dtype)
    fields = attending(op, address(sinks), dtype, op)
    made = Alone((Code.ATTEND, Code.GAIN), (sinks,), **fields)

    def run(q: torch.Tensor, k: torch.Tensor, mask: Maybe, bias: Maybe) -> torch.Tensor:
        (batch, heads, rows, width), (_, groups, keys, _) = q.shape, k.shape
        runs = -(-keys // RUN_OF_KEYS)
        out = torch.empty(batch, keys) if op.shared else torch.empty(batch, groups, keys)
        scratch = torch.empty(batch * heads * rows * runs * (2 + RUN_OF_KEYS))
        ins, seen = [q.float(), k, k], None
        if bias is not None:
            ins.append(bias.float().expand(batch, heads, rows, keys))
        if mask is not None:
            seen = mask.expand(batch, rows, keys)[..., None]
        extra = (groups, 0, keys, -1 if seen is None else _MASK)
        sizes = {"type": fields["type"], "dims": (batch, heads, rows), "width": width}
        made(ins, [out, seen], scratch, extra=extra, **sizes)
        return out

    return run


def _reach(mask: torch.Tensor) -> list[int]:
    """Return, for each block of queries, how many keys its queries see at most."""
    seen = mask.any(0)
    keys = torch.arange(1, seen.shape[1] + 1)
    last = (seen * keys).amax(1)
    return [int(part.max()) for part in last.split(QUERIES_AT_ONCE)]


REACH = Memo(_reach)


def _products(op: ScoreAttention, weights: Weights) -> ManyScores:
    """Return what scores many queries, block by block against the keys that they see."""
    sinks = None if op.sinks is None else weights.load(op.sinks).float()[None, :, None, None]
    perturb = Alone(Code.PERTURB)

    def run(
        q: torch.Tensor, k: torch.Tensor, mask: Maybe, bias: Maybe, noise: Noise | None
    ) -> torch.Tensor:
        rows, keys = q.shape[2], k.shape[2]
        q, k = q.float() * op.scale, k.float()
        total = torch.zeros(k.shape[:3])
        reach = [keys] * rows if mask is None or mask.shape[1] != rows else REACH(mask)
        for start, end in zip(range(0, rows, QUERIES_AT_ONCE), reach, strict=False):
            some = slice(start, start + QUERIES_AT_ONCE)
            seen, more = _block(mask, 1, some, end), _block(bias, 2, some, end)
            scores = _scores(q[:, :, some], k[:, :, :end], op.softcap, seen, more)
            if noise is not None:
                words = [_bits(x, scores) for x in noise.words(some, end)]
                perturb(words, [scores])
            total[:, :, :end] += _received(scores, sinks, k.shape[1])
        return total

    return run


def _bits(words: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return words of 32 bits as floats of the same bits, for every row of scores."""
    return words.view(torch.float32).expand(*scores.shape[:3], -1)


def _block(x: torch.Tensor | None, axis: int, rows: slice, end: int) -> torch.Tensor | None:
    """Return a mask or bias for some queries, on an axis, and the first keys."""
    if x is None:
        return None
    return (x if x.shape[axis] == 1 else x[(slice(None),) * axis + (rows,)])[..., :end]


def _scores(
    q: torch.Tensor,
    k: torch.Tensor,
    softcap: float | None,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return scores [B, H, R, K]; the heads that share a key head are rows of one product."""
    batch, heads, rows, width = q.shape
    scores = q.reshape(batch, k.shape[1], -1, width) @ k.transpose(-1, -2)
    scores = scores.view(batch, heads, rows, -1)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if bias is not None:
        scores += bias
    return scores if mask is None else scores.masked_fill_(~mask[:, None], -torch.inf)


def _received(scores: torch.Tensor, sinks: torch.Tensor | None, groups: int) -> torch.Tensor:
    """Return what keys get, [B, G, K]: the sum over queries, the mean over heads."""
    keys = scores.shape[3]
    if sinks is not None:
        scores = torch.cat([scores, sinks.expand(*scores.shape[:3], 1)], -1)
    shares = scores.softmax(-1)[..., :keys].unflatten(1, (groups, -1))
    return shares.sum((2, 3)).div_(shares.shape[2])
