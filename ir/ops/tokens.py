"""Dropping tokens: scores, the choice by scores, and taking what was chosen along.

A policy op takes its signal as an operand, so a stale score is a type error and not a wrong answer.
A set is always of the tokens that its operand has, and says how many these are. Merging keeps all
tokens: a map says into which one each goes, and a size how many each stands for.
"""

from fractions import Fraction

import sympy

from elidir.ir.errors import IRTypeError
from elidir.ir.op import Op, Value, Weight, op
from elidir.ir.symbols import Dim, as_dim, ceildiv, format_dim
from elidir.ir.types import KV, DType, Mask, Tensor, TokenSet, Type, check_rank, replace_dim


def token_set(value: Value) -> TokenSet:
    """Return the type of a token set; raises `IRTypeError` for any other value."""
    if not isinstance(value.type, TokenSet):
        raise IRTypeError(f"{value!r} is not a set of tokens; make it with tokens.select")
    return value.type


@op("score.attention")
class ScoreAttention(Op):
    """out[b, g, k] = sum over queries of softmax(scale * q k^T + bias, where mask): f32[B, G, K].

    It is what a key gets of the attention of N queries, or of those that `rows` i64[B, R] names,
    the mean over the heads that share key head g; with `shared` over all heads, f32[B, K]. Operands
    are those of `attention` without the values: q is [B, H, N, D], k [B, G, K, D]. The attention
    beside it stays fused; only these rows are made again.

    With a `seed` the softmax is of (scores + noise) / tau, noise being Gumbel(0, 1), drawn for the
    seed, the layer, the head, and the positions of query and key, which `state` knows: its last N
    tokens are the queries. tau rises from `tau` to `tau_end` over the `tau_steps` tokens behind the
    first feed of a session (arXiv 2403.09054).
    """

    q: Value
    k: Value
    mask: Value | None = None
    bias: Value | None = None
    sinks: Weight | None = None
    state: Value | None = None
    rows: Value | None = None
    scale: float = 1.0
    softcap: float | None = None
    shared: bool = False
    seed: int | None = None
    tau: float = 1.0
    tau_end: float = 1.0
    tau_steps: int = 1

    def infer(self) -> Type:
        q, k = self.q.tensor, self.k.tensor
        check_rank(q, 4, "queries [B, H, N, D]")
        check_rank(k, 4, "keys [B, G, K, D]")
        if q.dims[3] != k.dims[3] or q.dims[0] != k.dims[0]:
            raise IRTypeError(f"queries {q} and keys {k} do not fit")
        mask = None if self.mask is None else self.mask.type
        if mask is not None and mask.dims[1:] not in (
            (q.dims[2], k.dims[2]),
            (1, k.dims[2]),
        ):
            raise IRTypeError(f"{mask} does not fit queries {q} and keys {k}")
        self._check_noise(k)
        rows = None if self.rows is None else self.rows.tensor
        if rows is not None and rows != Tensor((q.dims[0], *rows.dims[1:2]), DType.I64):
            raise IRTypeError(f"rows are {rows}; name queries of each row of {q}")
        batch, groups, keys = k.dims[:3]
        return Tensor((batch, keys) if self.shared else (batch, groups, keys), DType.F32)

    def _check_noise(self, k: Tensor) -> None:
        if self.state is not None and self.rows is not None:
            raise IRTypeError("noise is drawn for all queries; give no rows")
        if (self.seed is None) != (self.state is None):
            raise IRTypeError("noise needs a seed, and the keys' state")
        if self.state is None:
            return
        kv = self.state.type
        if not isinstance(kv, KV) or not kv.placed or kv.length != k.dims[2]:
            raise IRTypeError(f"{self.state!r} does not know where the keys {k} stand")

    def verify(self) -> None:
        if min(self.tau, self.tau_end) <= 0 or self.tau_steps < 1:
            raise IRTypeError("tau is above 0, and changes over one step or more")


@op("tokens.select")
class TokensSelect(Op):
    """The tokens of highest score, `keep` of the valid ones of each row, in their order.

    A row of n valid tokens keeps max(ceil(keep * n), at_least), or n where it has fewer. The tokens
    that `rows` i64[B, R] names are always kept. Scores are f32[B, N], `valid` is bool[B, N]. There
    must be `at_least` tokens.
    """

    scores: Value
    valid: Value
    rows: Value
    keep: float = 1.0
    at_least: int = 1

    def infer(self) -> Type:
        scores, valid, rows = self.scores.tensor, self.valid.tensor, self.rows.tensor
        check_rank(scores, 2, "scores [B, N]")
        if valid != Tensor(scores.dims, DType.BOOL):
            raise IRTypeError(f"scores are {scores}, but valid is {valid}")
        if len(rows.dims) != 2 or rows.dims[0] != scores.dims[0]:
            raise IRTypeError(f"rows are {rows}; name tokens of each row of {scores}")
        batch, tokens = scores.dims
        return TokenSet(batch, kept(tokens, self.keep, self.at_least), tokens)

    def verify(self) -> None:
        if not 0 < self.keep <= 1 or self.at_least < 1:
            raise IRTypeError(f"cannot keep {self.keep} and at least {self.at_least} of the tokens")


def kept(tokens: Dim, keep: float, at_least: int) -> Dim:
    """Return how many of `tokens` are kept: max(ceil(keep * tokens), at_least)."""
    share = Fraction(str(keep)).limit_denominator(10_000)
    part = ceildiv(as_dim(sympy.sympify(tokens) * share.numerator), share.denominator)
    return as_dim(sympy.Max(part, at_least))


@op("tokens.allot")
class TokensAllot(Op):
    """The tokens of highest score of each part, as many as the part gets of one budget: HiRED.

    Scores are f32[I, P, N], `shares` f32[I, P - 1]. Of budget = floor(keep * P * N) tokens the
    first part gets min(floor(first * budget), N), and each other one in proportion to its share
    what is left: those with the greatest remainders one more than the floor, none more than N, so
    that the budget is spent whole. One part alone gets all of it and has no `shares`. Parts stand
    in a row: tokens<I, budget, P * N>, in their order (arXiv 2408.10945).
    """

    scores: Value
    shares: Value | None = None
    keep: float = 1.0
    first: float = 0.5

    def infer(self) -> Type:
        scores = self.scores.tensor
        check_rank(scores, 3, "scores [I, P, N]")
        rows, parts, tokens = scores.dims
        shares = None if self.shares is None else self.shares.tensor
        if (shares is None) != (parts == 1):
            raise IRTypeError(f"{scores}: one part has no shares, several must have them")
        if shares is not None and shares.dims != (rows, as_dim(parts - 1)):
            raise IRTypeError(f"scores are {scores}, but shares are {shares}")
        whole = as_dim(parts * tokens)
        return TokenSet(rows, allotment(whole, self.keep), whole)

    def verify(self) -> None:
        if not 0 < self.keep <= 1 or not 0 <= self.first <= 1:
            raise IRTypeError(f"cannot keep {self.keep} of the tokens, {self.first} in one part")


def allotment(tokens: Dim, keep: float) -> Dim:
    """Return floor(keep * tokens)."""
    share = Fraction(str(keep)).limit_denominator(10_000)
    return as_dim(sympy.sympify(tokens) * share.numerator // share.denominator)


@op("tokens.index")
class TokensIndex(Op):
    """Where each token of a set stands in what it was chosen from, -1 for filling: i64[B, K]."""

    tokens: Value

    def infer(self) -> Type:
        found = token_set(self.tokens)
        return Tensor((found.batch, found.length), DType.I64)


@op("tokens.take")
class TokensTake(Op):
    """out[.., r, ..] = x[.., rows[b, r], ..] along `axis`: the chosen tokens of each batch row.

    x is [B, ..]; `rows` is i64[B, R], or a set. Of a mask [B, N, K] the chosen queries are taken.
    """

    x: Value
    rows: Value
    axis: int = 1

    def infer(self) -> Type:
        x, batch, count = self.x.type, *self._chosen()
        if isinstance(x, Mask):
            return Mask((x.dims[0], count, x.dims[2]))
        x = self.x.tensor
        if not 1 <= self.axis < len(x.dims):
            raise IRTypeError(f"{x} has no tokens along axis {self.axis}")
        of = token_set(self.rows).of if isinstance(self.rows.type, TokenSet) else None
        if x.dims[0] != batch or of not in (None, x.dims[self.axis]):
            raise IRTypeError(f"{self.rows.type} does not choose among the tokens of {x}")
        return Tensor(replace_dim(x.dims, self.axis, count), x.dtype)

    def _chosen(self) -> tuple[Dim, Dim]:
        if isinstance(self.rows.type, TokenSet):
            return self.rows.type.batch, self.rows.type.length
        rows = self.rows.tensor
        if len(rows.dims) != 2 or not rows.dtype.is_int:
            raise IRTypeError(f"rows {rows} are no integers for each batch row")
        return rows.dims[0], rows.dims[1]


@op("tokens.within")
class TokensWithin(Op):
    """A set of the tokens of another set, as a set of what that one was chosen from."""

    inner: Value
    outer: Value

    def infer(self) -> Type:
        inner, outer = token_set(self.inner), token_set(self.outer)
        if inner.of != outer.length:
            held = format_dim(outer.length)
            raise IRTypeError(f"{inner} does not choose among the {held} tokens of {outer}")
        return TokenSet(inner.batch, inner.length, outer.of)


@op("tokens.valid")
class TokensValid(Op):
    """Which tokens of a set are no filling: bool[B, K]."""

    tokens: Value

    def infer(self) -> Type:
        found = token_set(self.tokens)
        return Tensor((found.batch, found.length), DType.BOOL)


@op("tokens.find")
class TokensFind(Op):
    """Where tokens i64[B, R] of the whole stand in a set that holds them: i64[B, R]."""

    tokens: Value
    rows: Value

    def infer(self) -> Type:
        token_set(self.tokens)
        return self.rows.tensor


@op("tokens.new")
class TokensNew(Op):
    """The new tokens of a step as a set of all tokens of the session: the last N of S + N.

    `pos` i64[B, N] are their positions, `cached` is S.
    """

    pos: Value
    cached: Dim = 0

    def infer(self) -> Type:
        check_rank(self.pos.tensor, 2, "positions [B, N]")
        batch, new = self.pos.tensor.dims
        return TokenSet(batch, new, as_dim(self.cached + new))


@op("tokens.revive")
class TokensRevive(Op):
    """back, going = parked tokens that come back, and these behind the tokens of a step.

    Of the tokens from before the step that `parked` holds and `kv` does not, those come back whose
    score is above `above`, in each row at most the `most` highest (the auxiliary cache of LazyLLM,
    arXiv 2407.14057). How many these are, of the row that has most, is known once it has run: that
    binds the symbol `count`. `scores` are f32[B, S'] over the slots of `parked`, which may have the
    step's tokens already; `back` is a set of these slots. `fresh` is a set of the session's tokens,
    and so is `going`: `fresh`, and then `back`.
    """

    scores: Value
    parked: Value
    kv: Value
    fresh: Value
    count: Dim
    most: int = 1
    above: float = 0.0

    def infer(self) -> tuple[Type, ...]:
        parked, kv, fresh = self.parked.type, self.kv.type, token_set(self.fresh)
        if not isinstance(parked, KV) or not isinstance(kv, KV) or not kv.placed:
            raise IRTypeError(f"{self.kv!r} does not know which tokens it holds; it must be placed")
        if self.scores.type != Tensor((parked.batch, parked.length), DType.F32):
            raise IRTypeError(f"scores are {self.scores.type}, not one for each slot of {parked}")
        back = TokenSet(parked.batch, self.count, parked.length)
        return back, TokenSet(fresh.batch, as_dim(fresh.length + self.count), fresh.of)

    def bound(self) -> dict[str, Value]:
        return {str(self.count): self.results[0]}

    def verify(self) -> None:
        if not isinstance(self.count, sympy.Symbol):
            raise IRTypeError(f"count is {self.count}; give a symbol, which the op binds")
        if self.most < 1 or self.above < 0:
            given = f"most={self.most} above={self.above}"
            raise IRTypeError(f"{given} bring nothing back; most is 1 or more, above 0 or more")


# ---- merging


@op("tokens.match")
class TokensMatch(Op):
    """into, merged = which token each goes into, and how many each then stands for.

    Bipartite soft matching (ToMe, arXiv 2210.09461): the tokens of a row, but for the first
    `protect`, are dealt out in turn to two sides, and the `share` of them whose best cosine with a
    token of the other side is greatest go into that one. `signal` is [B, T, D]; `sizes` i64[B, T]
    is how many each stands for, 0 for padding, which takes no part: a row of n others has
    floor(share * (n - protect)) fewer. Then come protected ones, the rest of the first side, the
    second side, padding. `into` is i64[B, T], `merged` i64[B, K].
    """

    signal: Value
    sizes: Value
    share: float
    protect: int = 0

    def infer(self) -> tuple[Type, ...]:
        signal, sizes = self.signal.tensor, self.sizes.tensor
        check_rank(signal, 3, "a signal [B, T, D]")
        if sizes != Tensor(signal.dims[:2], DType.I64):
            raise IRTypeError(f"the signal is {signal}, but the sizes are {sizes}")
        batch, tokens = sizes.dims
        left = unmerged(tokens, self.share, self.protect)
        return sizes, Tensor((batch, left), DType.I64)

    def verify(self) -> None:
        if not 0 <= self.share <= 0.5 or self.protect < 0:
            raise IRTypeError(
                f"cannot merge {self.share} of the tokens but for {self.protect}; half at most"
            )


def unmerged(tokens: Dim, share: float, protect: int) -> Dim:
    """Return how many of `tokens` are left: tokens - floor(share * (tokens - protect))."""
    part = Fraction(str(share)).limit_denominator(10_000)
    stay = sympy.sympify(tokens) * (part.denominator - part.numerator)
    return ceildiv(as_dim(stay + protect * part.numerator), part.denominator)


@op("tokens.merge")
class TokensMerge(Op):
    """out[b, k] = the mean of the x[b, t] that go into k, weighed by sizes[b, t]: [B, K, D].

    Where all of these are padding, of size 0, it is their plain mean.
    """

    x: Value
    sizes: Value
    into: Value
    merged: Value

    def infer(self) -> Type:
        x, into, merged = self.x.tensor, self.into.tensor, self.merged.tensor
        check_rank(x, 3, "tokens [B, T, D]")
        check_rank(merged, 2, "merged sizes [B, K]")
        of = Tensor(x.dims[:2], DType.I64)
        if self.sizes.tensor != of or into != of or merged.dims[0] != x.dims[0]:
            raise IRTypeError(f"{self.sizes.type} and {into} are not of the tokens of {x}")
        return Tensor((x.dims[0], merged.dims[1], x.dims[2]), x.dtype)
