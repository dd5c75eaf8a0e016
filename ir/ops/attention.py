"""Attention and what prepares its operands: heads, rotary embedding, position biases.

Masks are predicates and have a file of their own; projections are plain linear maps.
"""

from enum import Enum

from elidir.ir.errors import IRTypeError
from elidir.ir.op import Op, Value, Weight, op
from elidir.ir.symbols import as_dim
from elidir.ir.types import DType, Mask, Tensor, Type, broadcast, check_rank


@op("heads.split")
class HeadsSplit(Op):
    """out[b, h, t, d] = x[b, t, h * D + d]: [B, T, H*D] -> [B, H, T, D]."""

    x: Value
    heads: int

    def infer(self) -> Type:
        x = self.x.tensor
        check_rank(x, 3, "[B, T, H*D]")
        width = x.dims[2]
        if not isinstance(width, int) or self.heads < 1 or width % self.heads:
            raise IRTypeError(f"cannot split {x} into {self.heads} heads")
        return Tensor((x.dims[0], self.heads, x.dims[1], width // self.heads), x.dtype)


@op("heads.merge")
class HeadsMerge(Op):
    """out[b, t, h * D + d] = x[b, h, t, d]: [B, H, T, D] -> [B, T, H*D]."""

    x: Value

    def infer(self) -> Type:
        x = self.x.tensor
        check_rank(x, 4, "[B, H, T, D]")
        batch, heads, length, width = x.dims
        return Tensor((batch, length, as_dim(heads * width)), x.dtype)


@op("rope.table")
class RopeTable(Op):
    """cos, sin = cos(pos * freqs) * scale, sin(pos * freqs) * scale: two f32[B, T, D/2].

    `freqs` are the inverse frequencies f32[D/2] (RoFormer, arXiv 2104.09864); `scale` is the
    attention factor of YaRN (arXiv 2309.00071), 1 otherwise. Computed in f32, cast to `dtype`.
    """

    pos: Value
    freqs: Weight
    scale: float = 1.0
    dtype: DType = DType.F32

    def infer(self) -> tuple[Type, ...]:
        pos = self.pos.tensor
        check_rank(self.freqs.type, 1, "frequencies [D/2]")
        return (Tensor((*pos.dims, *self.freqs.type.dims), self.dtype),) * 2


class RopeLayout(Enum):
    """Which channels rotate together: i and i + D/2 (half), or 2i and 2i + 1 (interleaved)."""

    HALF = "half"
    INTERLEAVED = "interleaved"


@op("rope")
class Rope(Op):
    """Rotate channel pairs of each head: (a, b) -> (a cos - b sin, b cos + a sin).

    x is [B, H, T, D]; cos and sin are [B or 1, T, R/2]. With R < D only the first R channels turn.
    """

    x: Value
    cos: Value
    sin: Value
    layout: RopeLayout = RopeLayout.HALF

    def infer(self) -> Type:
        x, cos = self.x.tensor, self.cos.tensor
        if len(x.dims) != 4 or len(cos.dims) != 3 or cos != self.sin.tensor:
            raise IRTypeError(f"needs x[B, H, T, D] and tables [B, T, R/2], not {x} and {cos}")
        if x.dims[2] != cos.dims[1] or cos.dims[0] not in (1, x.dims[0]):
            raise IRTypeError(f"{x} and its table {cos} differ in batch or tokens")
        width, half = x.dims[3], cos.dims[2]
        if isinstance(width, int) and isinstance(half, int) and 2 * half > width:
            raise IRTypeError(f"{x} has fewer channels than its table {cos} turns")
        return x


@op("bias.alibi")
class AlibiBias(Op):
    """out[b, h, q, k] = slopes[h] * keys[b, k], which softmax reads as slopes[h] * (k - q).

    ALiBi (arXiv 2108.12409): the query's own term is constant along a row. Shape [B, H, 1, K].
    """

    keys: Value
    slopes: Weight
    dtype: DType = DType.F32

    def infer(self) -> Type:
        keys, slopes = self.keys.tensor, self.slopes.type
        check_rank(keys, 2, "keys [B, K]")
        check_rank(slopes, 1, "slopes [H]")
        return Tensor((keys.dims[0], slopes.dims[0], 1, keys.dims[1]), self.dtype)


@op("attention")
class Attention(Op):
    """out = softmax(scale * q k^T + bias, where mask) v, heads merged: [B, N, H*Dv].

    q is [B, H, N, D], k [B, G, S, D], v [B, G, S, Dv]: head h reads key head h // (H // G). The
    softmax is in f32. `softcap` c applies c * tanh(s / c) to scores (Gemma 2); `sinks` f32[H] adds
    one logit to each row that takes probability and gives no value (arXiv 2309.17453, gpt-oss).
    A query that may see no key gets zeros.
    """

    q: Value
    k: Value
    v: Value
    mask: Value | None = None
    bias: Value | None = None
    sinks: Weight | None = None
    scale: float = 1.0
    softcap: float | None = None

    def infer(self) -> Type:
        q, k, v = self.q.tensor, self.k.tensor, self.v.tensor
        if len(q.dims) != 4 or len(k.dims) != 4 or len(v.dims) != 4:
            raise IRTypeError(f"q, k, v must be [B, H, T, D], not {q}, {k}, {v}")
        if q.dims[3] != k.dims[3] or k.dims[:3] != v.dims[:3] or q.dims[0] != k.dims[0]:
            raise IRTypeError(f"q, k, v do not fit: {q}, {k}, {v}")
        self._check_heads(q, k)
        self._check_mask(q, k)
        self._check_bias(q, k)
        return Tensor((q.dims[0], q.dims[2], as_dim(q.dims[1] * v.dims[3])), q.dtype)

    def _check_heads(self, q: Tensor, k: Tensor) -> None:
        heads, groups = q.dims[1], k.dims[1]
        known = isinstance(heads, int) and isinstance(groups, int)
        if known and (groups < 1 or heads % groups):
            raise IRTypeError(f"{heads} heads are not a multiple of {groups} key heads")
        if self.sinks is not None and self.sinks.type.dims != (heads,):
            raise IRTypeError(f"the sinks are {self.sinks.type}, not one for each of {heads} heads")

    def _check_mask(self, q: Tensor, k: Tensor) -> None:
        if self.mask is None:
            return
        mask = self.mask.type
        if not isinstance(mask, Mask):
            raise IRTypeError(f"the mask is {mask}; make it with a mask op")
        wanted = (q.dims[0], q.dims[2], k.dims[2])
        if any(m not in (1, w) for m, w in zip(mask.dims, wanted, strict=True)):
            raise IRTypeError(f"{mask} does not fit queries {q} and keys {k}")

    def _check_bias(self, q: Tensor, k: Tensor) -> None:
        if self.bias is None:
            return
        bias, scores = self.bias.tensor, (*q.dims[:3], k.dims[2])
        if len(bias.dims) > 4 or broadcast(bias.dims, scores) != scores:
            raise IRTypeError(f"the bias {bias} does not fit queries {q} and keys {k}")
