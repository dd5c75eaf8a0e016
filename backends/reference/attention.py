"""Attention, rotary embedding and position biases in plain torch.

Scores, softmax and rotation follow what models compute in eager mode. Where torch's fused
attention means the same it is used; what it has no parameter for (softcap, sinks) is written out
in float32.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from elidir.backends.dtypes import torch_dtype
from elidir.backends.protocol import Kernel
from elidir.backends.reference.reduce import wide
from elidir.backends.reference.registry import kernel
from elidir.backends.weights import Weights
from elidir.ir import AlibiBias, Attention, Rope, RopeLayout, RopeTable, ScoreAttention

# ---- rotary embedding


@kernel(RopeTable)
def rope_table(op: RopeTable, weights: Weights) -> Kernel:
    """Cosine and sine of each position's angles."""
    freqs = weights.load(op.freqs)
    freqs = freqs.to(wide(freqs.dtype))
    scale, dtype = op.scale, torch_dtype(op.dtype)

    def run(pos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = pos.to(freqs.dtype)[..., None] * freqs
        return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)

    return run


def _half(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _interleaved(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


_ROTATE = {RopeLayout.HALF: _half, RopeLayout.INTERLEAVED: _interleaved}


@kernel(Rope)
def rope(op: Rope, weights: Weights) -> Kernel:
    """Rotate channel pairs; channels beyond the table's stay."""
    rotate, dtype = _ROTATE[op.layout], torch_dtype(op.x.tensor.dtype)

    def run(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        width = 2 * cos.shape[-1]
        cos, sin = cos[:, None], sin[:, None]
        turned = rotate(x[..., :width], cos, sin).to(dtype)
        return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], dim=-1)

    return run


# ---- position biases


@kernel(AlibiBias)
def alibi(op: AlibiBias, weights: Weights) -> Kernel:
    """A slope times the key's position, per head."""
    slopes, dtype = weights.load(op.slopes), torch_dtype(op.dtype)
    slopes = slopes.to(wide(slopes.dtype))[:, None, None]
    return lambda keys: (slopes * keys.to(slopes.dtype)[:, None, None, :]).to(dtype)


# ---- attention


@kernel(Attention)
def attention(op: Attention, weights: Weights) -> Kernel:
    """Scores, softmax, mix; heads merged."""
    sinks = None if op.sinks is None else weights.load(op.sinks)
    core = _fused(op) if sinks is None and op.softcap is None else _written_out(op, sinks)
    takes_mask = op.mask is not None
    takes_bias = op.bias is not None

    def run(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor | None
    ) -> torch.Tensor:
        mask = rest[0] if takes_mask else None
        bias = rest[-1] if takes_bias else None
        repeats = q.shape[1] // k.shape[1]
        if repeats > 1:
            k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
        out = core(q, k, v, mask, bias).transpose(1, 2).flatten(2)
        return out if mask is None else out.masked_fill(~mask.any(-1)[..., None], 0)

    return run


Core = Callable[..., torch.Tensor]


def _fused(op: Attention) -> Core:
    scale = op.scale

    def core(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        seen = None if mask is None else mask[:, None]
        if bias is not None:
            bias = bias.to(q.dtype)
            seen = bias if seen is None else bias.masked_fill(~seen, float("-inf"))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)

    return core


def _written_out(op: Attention, sinks: torch.Tensor | None) -> Core:
    softmax = _probabilities(op.scale, op.softcap, sinks)

    def core(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        return softmax(q, k, mask, bias).to(v.dtype) @ v

    return core


def probabilities(op: ScoreAttention, weights: Weights) -> Core:
    """Return `attention_weights` as an op asks for them."""
    return attention_weights(
        op.scale, op.softcap, None if op.sinks is None else weights.load(op.sinks)
    )


def attention_weights(
    scale: float, softcap: float | None = None, sinks: torch.Tensor | None = None
) -> Core:
    """Return the function (q, k, mask, bias, adjust) -> attention [B, H, R, K].

    Key heads are repeated; `adjust` is applied to scores before the softmax.
    """
    softmax = _probabilities(scale, softcap, sinks)

    def run(
        q: torch.Tensor,
        k: torch.Tensor,
        mask: torch.Tensor | None,
        bias: torch.Tensor | None,
        adjust: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        return softmax(q, k.repeat_interleave(q.shape[1] // k.shape[1], dim=1), mask, bias, adjust)

    return run


def _probabilities(scale: float, softcap: float | None, sinks: torch.Tensor | None) -> Core:
    def run(
        q: torch.Tensor,
        k: torch.Tensor,
        mask: torch.Tensor | None,
        bias: torch.Tensor | None,
        adjust: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        scores = (q @ k.transpose(-1, -2)).to(wide(q.dtype)) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if bias is not None:
            scores = scores + bias
        if adjust is not None:
            scores = adjust(scores)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        return _softmax(scores, sinks)

    return run


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the keys, a sink taking its share of each row."""
    if sinks is None:
        return scores.softmax(-1)
    sink = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
