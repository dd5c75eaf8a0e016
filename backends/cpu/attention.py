"""Attention through torch's flash kernel for processors.

The query heads that share a key head are rows of one product where there is one token, so keys
are read once and never repeated. A mask is looked at once per step: one that hides nothing is
dropped, and a triangle becomes the kernel's own. Many rows of bfloat16 are attended to in float32
on x86 without AMX: torch's kernel takes 1.6 times as long in bfloat16 there, for 512 tokens.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from elidir.backends.cpu.memo import Memo
from elidir.backends.cpu.registry import kernel
from elidir.backends.protocol import Answer, Kernel, No, Yes
from elidir.backends.weights import Weights
from elidir.ir import Attention

WIDENED_ROWS = 16  # fewer do not pay for the conversion of keys and values


@cache
def is_slow_in_bf16() -> bool:
    """Return whether torch's kernel is slower in bfloat16 than in float32 here."""
    found = torch.cpu.get_capabilities()
    return found.get("architecture") == "x86_64" and not found.get("amx_bf16")


def _is_plain(op: Attention) -> Answer:
    if op.softcap is not None:
        return No("torch's kernel has no softcap")
    if op.sinks is not None:
        return No("torch's kernel has no sinks")
    if op.bias is not None and tuple(op.bias.type.dims[-3:-1]) != (1, 1):
        return No("adds a bias to scores that is more than a number for each key")
    return Yes()


@dataclass(frozen=True)
class _Seen:
    """A mask as the kernel takes it: additive [B or 1, 1, Q or 1, K], a triangle, or none."""

    additive: torch.Tensor | None
    is_causal: bool = False


_EVERYTHING = _Seen(None)


def _classify(mask: torch.Tensor, dtype: torch.dtype) -> _Seen:
    if bool(mask.all()):
        return _EVERYTHING
    queries, keys = mask.shape[1:]
    if queries == keys and bool((mask == torch.ones(queries, keys, dtype=torch.bool).tril()).all()):
        return _Seen(None, is_causal=True)
    additive = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -math.inf)
    return _Seen(additive[:, None])


def _biased(bias: torch.Tensor, mask: torch.Tensor | None) -> _Seen:
    """A number for each key, [B or 1, 1, 1, K], and the mask beside it."""
    return _Seen(bias if mask is None else bias.masked_fill(~mask[:, None], -math.inf))


@kernel(Attention, _is_plain)
def attention(op: Attention, weights: Weights) -> Kernel:
    """Scores, softmax, mix; heads merged."""
    scale, takes_mask, takes_bias = op.scale, op.mask is not None, op.bias is not None

    def run(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor | None
    ) -> torch.Tensor:
        mask = rest[0] if takes_mask else None
        dtype, (batch, heads, rows, width), groups = q.dtype, q.shape, k.shape[1]
        if dtype is torch.bfloat16 and rows >= WIDENED_ROWS and is_slow_in_bf16():
            q, k, v = q.float(), k.float(), v.float()
        seen = _EVERYTHING if mask is None else SEEN(mask, q.dtype)
        if takes_bias and rest[-1] is not None:
            seen = _biased(rest[-1].to(q.dtype), mask)
        if rows == 1:  # a triangle of one row hides nothing
            grouped = q.reshape(batch, groups, heads // groups, width)
            out = F.scaled_dot_product_attention(
                grouped, k, v, attn_mask=seen.additive, scale=scale
            )
            return out.reshape(batch, 1, -1)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=seen.additive,
            is_causal=seen.is_causal,
            scale=scale,
            enable_gqa=heads != groups,
        )
        return out.transpose(1, 2).reshape(batch, rows, -1).to(dtype)

    return run


SEEN = Memo(_classify)
