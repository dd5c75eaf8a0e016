"""State that lives between steps, threaded through ops as values.

A KV value may be read any number of times and consumed once (`kv.append`); the verifier checks it.
Cropping, gathering and copying a cache between steps is the runtime's affair, not the program's.
"""

import dataclasses

from elidir.ir.errors import IRTypeError
from elidir.ir.op import Op, Value, op
from elidir.ir.ops.tokens import token_set
from elidir.ir.symbols import as_dim
from elidir.ir.types import KV, DType, Tensor, Type, check_rank


def _kv(value: Value) -> KV:
    if not isinstance(value.type, KV):
        raise IRTypeError(f"{value!r} is not a KV cache")
    return value.type


@op("kv.append")
class KvAppend(Op):
    """out = kv with the keys [B, G, N, D] and values [B, G, N, Dv] of N new tokens at its end.

    A placed state notes their positions too: those of the step's tokens, or of the set of these
    that `tokens` names.
    """

    kv: Value
    k: Value
    v: Value
    tokens: Value | None = None

    def infer(self) -> Type:
        kv, k, v = _kv(self.kv), self.k.tensor, self.v.tensor
        check_rank(k, 4, "keys [B, G, N, D]")
        lead = (kv.batch, kv.heads, k.dims[2])
        if k.dims != (*lead, kv.key_dim) or v.dims != (*lead, kv.value_dim):
            raise IRTypeError(f"keys {k} and values {v} do not fit {kv}")
        if self.tokens is not None:
            _check_tokens(self.tokens, kv, k)
        return dataclasses.replace(kv, length=as_dim(kv.length + k.dims[2]))


def _check_tokens(tokens: Value, kv: KV, k: Tensor) -> None:
    found = token_set(tokens)
    if not kv.placed:
        raise IRTypeError(f"{kv} keeps no positions of its own, so it takes all tokens of a step")
    if (found.batch, found.length) != (k.dims[0], k.dims[2]):
        raise IRTypeError(f"{found} are not the tokens of the keys {k}")


@op("kv.read")
class KvRead(Op):
    """keys, values = everything in the cache: [B, G, S, D] and [B, G, S, Dv]."""

    kv: Value

    def infer(self) -> tuple[Type, ...]:
        kv = _kv(self.kv)
        lead = (kv.batch, kv.heads, kv.length)
        return (Tensor((*lead, kv.key_dim), kv.dtype), Tensor((*lead, kv.value_dim), kv.dtype))


@op("kv.positions")
class KvPositions(Op):
    """The positions of the cached tokens of a placed state, i64[B, S]."""

    kv: Value

    def infer(self) -> Type:
        kv = _kv(self.kv)
        if not kv.placed:
            raise IRTypeError(f"{kv} keeps no positions of its own; they are the caller's %kpos")
        return Tensor((kv.batch, kv.length), DType.I64)
