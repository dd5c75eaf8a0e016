"""Masks: predicates over original positions, never triangles over slots.

A mask says which key each query may see. Positions are values, so a program that drops tokens
gathers the positions and its masks stay right.
"""

from elidir.ir.errors import IRTypeError
from elidir.ir.op import Op, Value, op
from elidir.ir.ops.tokens import token_set
from elidir.ir.symbols import Dim, as_dim, format_dim
from elidir.ir.types import KV, DType, Mask, Type


def _pair(queries: Value, keys: Value) -> Mask:
    q, k = queries.tensor, keys.tensor
    if len(q.dims) != 2 or len(k.dims) != 2:
        raise IRTypeError(f"positions must be [batch, tokens], not {q} and {k}")
    return Mask((_batch(q.dims[0], k.dims[0]), q.dims[1], k.dims[1]))


def _batch(a: Dim, b: Dim) -> Dim:
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    raise IRTypeError(f"{format_dim(a)} and {format_dim(b)} differ; one of two may be 1")


@op("mask.causal")
class MaskCausal(Op):
    """out[b, q, k] = keys[b, k] <= queries[b, q], both positions."""

    queries: Value
    keys: Value

    def infer(self) -> Type:
        return _pair(self.queries, self.keys)


@op("mask.window")
class MaskWindow(Op):
    """out[b, q, k] = -after <= queries[b, q] - keys[b, k] <= before, over positions.

    A causal sliding window of w tokens has before = w - 1, and is combined with `mask.causal`.
    """

    queries: Value
    keys: Value
    before: int
    after: int

    def infer(self) -> Type:
        return _pair(self.queries, self.keys)


@op("mask.valid")
class MaskValid(Op):
    """out[b, q, k] = valid[b, k], for any query: shape [B, 1, K]."""

    valid: Value

    def infer(self) -> Type:
        valid = self.valid.tensor
        if valid.dtype is not DType.BOOL or len(valid.dims) != 2:
            raise IRTypeError(f"needs bool[batch, tokens], not {valid}")
        return Mask((valid.dims[0], 1, valid.dims[1]))


@op("mask.dense")
class MaskDense(Op):
    """out = a predicate given as data, bool[batch, queries, keys]."""

    x: Value

    def infer(self) -> Type:
        x = self.x.tensor
        if x.dtype is not DType.BOOL or len(x.dims) != 3:
            raise IRTypeError(f"needs bool[batch, queries, keys], not {x}")
        return Mask((x.dims[0], x.dims[1], x.dims[2]))


@op("mask.and")
class MaskAnd(Op):
    """out = a and b, broadcast over batch and queries."""

    a: Value
    b: Value

    def infer(self) -> Type:
        a, b = self.a.type, self.b.type
        if not isinstance(a, Mask) or not isinstance(b, Mask) or a.dims[2] != b.dims[2]:
            raise IRTypeError(f"needs two masks over the same keys, not {a} and {b}")
        return Mask((_batch(a.dims[0], b.dims[0]), _batch(a.dims[1], b.dims[1]), a.dims[2]))


def _step_mask(value: Value) -> Mask:
    """Return a mask over cached keys and as many new ones as there are queries."""
    if not isinstance(value.type, Mask):
        raise IRTypeError(f"{value!r} is not a mask")
    return value.type


@op("mask.keep")
class MaskKeep(Op):
    """The mask of a step for a set of its tokens: their queries, the cached keys, their new keys.

    The mask is [B, N, S + N], the set K of N, the result [B, K, S + K]. Filling is seen by itself
    alone.
    """

    mask: Value
    tokens: Value

    def infer(self) -> Type:
        mask, tokens = _step_mask(self.mask), token_set(self.tokens)
        if mask.dims[1] != tokens.of:
            raise IRTypeError(f"{tokens} does not choose among the queries of {mask}")
        cached = mask.dims[2] - mask.dims[1]
        return Mask((tokens.batch, tokens.length, as_dim(cached + tokens.length)))


@op("mask.state")
class MaskState(Op):
    """The mask of a step over the keys of one state: its S' cached ones, then the new ones.

    The caller's mask is [B, N, S + N]; its last N columns stay. A cached key is seen where the
    state holds it as valid, since every new token comes after it; not by a query that sees none of
    the S cached ones, which is no token. The result is [B, N, S' + N].

    `tokens` is a set of R tokens of the session, first the N new ones and then such as come back.
    The result is then [B, R, S' + R]: one that comes back sees no token behind it.
    """

    mask: Value
    kv: Value
    tokens: Value | None = None

    def infer(self) -> Type:
        mask, kv = _step_mask(self.mask), self.kv.type
        if not isinstance(kv, KV) or not kv.placed:
            raise IRTypeError(f"{self.kv!r} keeps no validity of its own; it must be placed")
        new = mask.dims[1] if self.tokens is None else token_set(self.tokens).length
        return Mask((kv.batch, new, as_dim(kv.length + new)))
