"""State that lives between steps, threaded through ops as values.

A KV value may be read any number of times and consumed once (`kv.append`, `kv.evict`); the verifier
checks it. What `kv.evict` leaves is for the next step. Cropping, gathering and copying a cache
between steps is the runtime's affair, not the program's.
"""

import dataclasses
from fractions import Fraction

import sympy

from elidir.ir.errors import IRTypeError
from elidir.ir.op import Op, Scalar, Value, op
from elidir.ir.ops.tokens import token_set
from elidir.ir.symbols import Dim, as_dim, ceildiv
from elidir.ir.types import KV, DType, Tensor, Type, check_rank


def _kv(value: Value) -> KV:
    if not isinstance(value.type, KV):
        raise IRTypeError(f"{value!r} is not a KV cache")
    return value.type


@op("kv.append")
class KvAppend(Op):
    """out = kv with the keys [B, G, N, D] and values [B, G, N, Dv] of N new tokens at its end.

    A placed state notes which tokens they are: those of the step, or the set `tokens` of all
    tokens of the session.
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


def remaining(held: Dim, new: Dim, keep: float, at_least: int, most: int | None) -> Dim:
    """Return how many tokens stay of `held` and `new` ones; see `KvEvict`."""
    share = Fraction(str(keep)).limit_denominator(10_000)
    grown = held + ceildiv(as_dim(sympy.sympify(new) * share.numerator), share.denominator)
    limits = [held + new, sympy.Max(grown, at_least), *([] if most is None else [most])]
    return as_dim(sympy.Min(*limits))


@op("kv.evict")
class KvEvict(Op):
    """The state without the tokens that matter least, for each key head its own.

    Of S tokens that were held and `new` more, min(S + new, max(S + ceil(keep * new), at_least),
    most) stay; a row's budget comes from its own valid tokens. The first `sinks` tokens of a row
    stay and the newest `recent`, a number or a part of what stays; of the others those that are
    highest by `by`: the newest ("age"), those of small keys ("norm"), or by f32 scores [B, G, S +
    new] ("scores"), which a scored state adds up over the steps. With `shared` all key heads keep
    the same tokens, by their mean score.

    A row of fewer than `prompt` new valid tokens is read as in a step, however long the others are:
    with a `keep` of 0 unless that is 1, or, without `in_step`, all of it stays.
    """

    kv: Value
    scores: Value | None = None
    by: str = "age"
    new: Dim = 1
    keep: float = 0.0
    at_least: int = 1
    most: int | None = None
    recent: Scalar = 0
    sinks: int = 0
    shared: bool = False
    prompt: int = 0
    in_step: bool = True

    def infer(self) -> Type:
        kv = _kv(self.kv)
        if not kv.placed:
            raise IRTypeError(f"{kv} does not know which tokens it holds; it must be placed")
        wanted = Tensor((kv.batch, kv.heads, kv.length), DType.F32)
        if self.scores is not None and self.scores.type != wanted:
            raise IRTypeError(f"scores are {self.scores.type}, but {kv} asks for {wanted}")
        held = as_dim(kv.length - self.new)
        length = remaining(held, self.new, self.keep, self.at_least, self.most)
        return dataclasses.replace(kv, length=length)

    def verify(self) -> None:
        if self.by not in ("age", "norm", "scores") or (self.by == "scores") != bool(self.scores):
            raise IRTypeError(f"evicts by '{self.by}'; it is by age, by norm, or by given scores")
        if self.by == "norm" and not _kv(self.kv).scored:
            raise IRTypeError(f"{self.kv.type} keeps no norms; it must be scored")
        if not 0 <= self.keep <= 1 or self.at_least < 1 or (self.most or 1) < 1:
            raise IRTypeError("keep is from 0 to 1, at_least and most are 1 or more")
        part = isinstance(self.recent, float)
        if self.recent < 0 or self.sinks < 0 or (part and self.recent > 1):
            raise IRTypeError("recent is a number of tokens or a part from 0.0 to 1.0")
