"""Every op kind: the type it infers from good operands, and its message for bad ones.

One row of `GOOD` and at least one of `BAD` for each kind in the registry; a test compares the
lists, so an op that is added without its rows fails. What ops compute is tested with the backends.
"""

from collections.abc import Callable
from typing import Any

import pytest

from elidir import ir
from elidir.ir import OPS, DType, IRTypeError, Op, Tensor, Value, Weight, symbol

B, C, T, S = (symbol(name) for name in "BCTS")
F32, I64 = DType.F32, DType.I64


def v(*dims: ir.Dim, dtype: DType = F32) -> Value:
    """A tensor value."""
    return Value(Tensor(dims, dtype), "v")


def w(*dims: int, dtype: DType = F32) -> Weight:
    """A weight."""
    return Weight("w", Tensor(dims, dtype))


X = v(B, T, 8)
IDS, VALID = v(B, T, dtype=I64), v(B, T, dtype=DType.BOOL)
Q, K = v(B, 4, T, 8), v(B, 2, S, 8)
MASK = Value(ir.Mask((B, T, S)), "m")
KV = Value(ir.KV(B, 2, S, 8, 8, F32), "kv")
ROWS = v(B, 3, dtype=I64)
OWN = Value(ir.KV(B, 2, S, 8, 8, F32, placed=True), "kv")
SCORED = Value(ir.KV(B, 2, S, 8, 8, F32, placed=True, scored=True), "kv")
SET = Value(ir.TokenSet(B, 3, T), "set")
STEP = Value(ir.Mask((B, T, S + T)), "m")
SCORES, K_SCORES = v(B, T), v(B, 2, S)
BODY = ir.make_body("b", ir.Region((X,), (), (X, X)))

GRID = v(B, T, 8, dtype=DType.U8)
ONE, COLUMNS = w(), w(3, dtype=I64)
BYTES = w(4, 8, dtype=DType.I8)

GOOD: dict[str, tuple[Callable[[], Op], str]] = {
    "add": (lambda: ir.Add(X, v(8, dtype=DType.BF16)), "f32[B, T, 8]"),
    "add_norm": (lambda: ir.AddNorm(X, X, w(8)), "f32[B, T, 8], f32[B, T, 8]"),
    "attention": (lambda: ir.Attention(Q, K, K, MASK), "f32[B, T, 32]"),
    "bias.alibi": (lambda: ir.AlibiBias(IDS, w(4)), "f32[B, 4, 1, T]"),
    "cast": (lambda: ir.Cast(X, DType.I8), "i8[B, T, 8]"),
    "compare": (lambda: ir.Compare(X, 0, "ge"), "bool[B, T, 8]"),
    "concat": (lambda: ir.Concat((X, v(B, 2, 8)), 1), "f32[B, T + 2, 8]"),
    "const": (lambda: ir.Const(w(3, dtype=I64)), "i64[3]"),
    "conv": (lambda: ir.Conv(v(B, 3, 9), w(4, 3, 3), stride=(2,), padding=(1,)), "f32[B, 4, 5]"),
    "cumsum": (lambda: ir.Cumsum(VALID, -1), "i64[B, T]"),
    "div": (lambda: ir.Div(IDS, 2), "f32[B, T]"),
    "embed": (lambda: ir.Embed(IDS, w(100, 8)), "f32[B, T, 8]"),
    "expand": (lambda: ir.Expand(v(B, 1, 8), (3, B, T, 8)), "f32[3, B, T, 8]"),
    "ffn.experts": (
        lambda: ir.FfnExperts(X, v(B, T, 2, dtype=I64), v(B, T, 2), w(4, 6, 8), w(4, 8, 3)),
        "f32[B, T, 8]",
    ),
    "ffn.gated": (lambda: ir.FfnGated(X, w(16, 8), w(16, 8), w(4, 16)), "f32[B, T, 4]"),
    "full": (lambda: ir.Full((B, 2), 0, F32), "f32[B, 2]"),
    "heads.merge": (lambda: ir.HeadsMerge(Q), "f32[B, T, 32]"),
    "heads.split": (lambda: ir.HeadsSplit(X, 2), "f32[B, 2, T, 4]"),
    "iota": (lambda: ir.Iota(T), "i64[T]"),
    "kv.append": (
        lambda: ir.KvAppend(KV, v(B, 2, T, 8), v(B, 2, T, 8)),
        "kv<B, 2, S + T, 8, 8, f32>",
    ),
    "kv.evict": (
        lambda: ir.KvEvict(SCORED, K_SCORES, "scores", 3, 0.5, 4, 100, recent=0.3),
        "kv<B, 2, min(100, S, max(4, S - 1)), 8, 8, f32, placed, scored>",
    ),
    "kv.positions": (lambda: ir.KvPositions(OWN), "i64[B, S]"),
    "kv.read": (lambda: ir.KvRead(KV), "f32[B, 2, S, 8], f32[B, 2, S, 8]"),
    "layer": (lambda: ir.Layer(BODY, (X,), "layers.0"), "f32[B, T, 8], f32[B, T, 8]"),
    "linear": (lambda: ir.Linear(X, w(4, 8), w(4)), "f32[B, T, 4]"),
    "linear.int8": (
        lambda: ir.LinearInt8(GRID, BYTES, w(4), ONE, w(4), v(B, T, 4)),
        "f32[B, T, 4]",
    ),
    "linear.split": (lambda: ir.LinearSplit(X, w(5, 8), (2, 3)), "f32[B, T, 2], f32[B, T, 3]"),
    "mask.and": (lambda: ir.MaskAnd(MASK, Value(ir.Mask((1, 1, S)))), "mask[B, T, S]"),
    "mask.causal": (lambda: ir.MaskCausal(IDS, v(1, S, dtype=I64)), "mask[B, T, S]"),
    "mask.dense": (lambda: ir.MaskDense(v(B, T, S, dtype=DType.BOOL)), "mask[B, T, S]"),
    "mask.keep": (lambda: ir.MaskKeep(STEP, SET), "mask[B, 3, S + 3]"),
    "mask.state": (lambda: ir.MaskState(STEP, OWN, SET), "mask[B, 3, S + 3]"),
    "mask.valid": (lambda: ir.MaskValid(VALID), "mask[B, 1, T]"),
    "mask.window": (lambda: ir.MaskWindow(IDS, IDS, 3, 0), "mask[B, T, T]"),
    "matmul": (lambda: ir.MatMul(Q, v(8, 5)), "f32[B, 4, T, 5]"),
    "maximum": (lambda: ir.Maximum(X, v(dtype=DType.F64)), "f32[B, T, 8]"),
    "minimum": (lambda: ir.Minimum(v(dtype=DType.F16), v(dtype=DType.BF16)), "f32[]"),
    "mul": (lambda: ir.Mul(2.0, IDS), "f32[B, T]"),
    "norm.layer": (lambda: ir.LayerNorm(X, w(8), w(8)), "f32[B, T, 8]"),
    "norm.rms": (lambda: ir.RmsNorm(X), "f32[B, T, 8]"),
    "opaque": (lambda: ir.Opaque((X,), (), "aten.x", "[]", (MASK.type,)), "mask[B, T, S]"),
    "pad": (lambda: ir.Pad(X, 1, -1, 3), "f32[B, T + 2, 8]"),
    "permute": (lambda: ir.Permute(X, (2, 0, 1)), "f32[8, B, T]"),
    "pow": (lambda: ir.Pow(X, 2), "f32[B, T, 8]"),
    "quantize": (lambda: ir.Quantize(X, ONE, COLUMNS), "u8[B, T, 8], f32[B, T, 3]"),
    "quantize.add_norm": (
        lambda: ir.QuantizeAddNorm(X, X, w(8), ONE),
        "f32[B, T, 8], u8[B, T, 8]",
    ),
    "quantize.gated": (lambda: ir.QuantizeGated(X, X, ONE, act="relu"), "u8[B, T, 8]"),
    "quantize.norm": (lambda: ir.QuantizeNorm(X, w(8), ONE), "u8[B, T, 8]"),
    "reduce": (lambda: ir.Reduce(X, "argmax", (0, -1)), "i64[T]"),
    "reshape": (lambda: ir.Reshape(X, (B * T, 2, 4)), "f32[B*T, 2, 4]"),
    "rope": (lambda: ir.Rope(Q, v(1, T, 3), v(1, T, 3)), "f32[B, 4, T, 8]"),
    "rope.table": (lambda: ir.RopeTable(IDS, w(4)), "f32[B, T, 4], f32[B, T, 4]"),
    "score.attention": (lambda: ir.ScoreAttention(Q, K, MASK), "f32[B, 2, S]"),
    "slice": (lambda: ir.Slice(X, -1, 1, 8, 3), "f32[B, T, 3]"),
    "softmax": (lambda: ir.Softmax(X, -1), "f32[B, T, 8]"),
    "sub": (lambda: ir.Sub(VALID, IDS), "i64[B, T]"),
    "take": (lambda: ir.Take(X, v(3, 5, dtype=I64), 1), "f32[B, 3, 5, 8]"),
    "tokens.allot": (
        lambda: ir.TokensAllot(v(B, 3, T), v(B, 2), 0.1, 0.5),
        "tokens<B, (3*T)//10, 3*T>",
    ),
    "tokens.index": (lambda: ir.TokensIndex(SET), "i64[B, 3]"),
    "tokens.find": (lambda: ir.TokensFind(SET, ROWS), "i64[B, 3]"),
    "tokens.new": (lambda: ir.TokensNew(IDS, S), "tokens<B, T, S + T>"),
    "tokens.revive": (
        lambda: ir.TokensRevive(v(B, S), KV, OWN, SET, C, 2, 0.1),
        "tokens<B, C, S>, tokens<B, C + 3, T>",
    ),
    "tokens.match": (
        lambda: ir.TokensMatch(X, IDS, 0.3, 1),
        "i64[B, T], i64[B, ceildiv(7*T + 3, 10)]",
    ),
    "tokens.merge": (lambda: ir.TokensMerge(X, IDS, IDS, ROWS), "f32[B, 3, 8]"),
    "tokens.select": (
        lambda: ir.TokensSelect(SCORES, VALID, ROWS, 0.3, 4),
        "tokens<B, max(4, ceildiv(3*T, 10)), T>",
    ),
    "tokens.take": (lambda: ir.TokensTake(Q, SET, 2), "f32[B, 4, 3, 8]"),
    "tokens.valid": (lambda: ir.TokensValid(SET), "bool[B, 3]"),
    "tokens.within": (
        lambda: ir.TokensWithin(Value(ir.TokenSet(B, 2, 3)), SET),
        "tokens<B, 2, T>",
    ),
    "topk": (lambda: ir.TopK(X, 2), "f32[B, T, 2], i64[B, T, 2]"),
    "unary": (lambda: ir.Unary(X, "not"), "bool[B, T, 8]"),
    "where": (lambda: ir.Where(VALID, True, False), "bool[B, T]"),
}

BAD: list[tuple[str, Callable[[], Op], str]] = [
    ("add", lambda: ir.Add(X, v(B, T, 7)), "dimensions 8 and 7 do not broadcast"),
    ("add", lambda: ir.Add(1, 2), "one operand must be a value"),
    ("add", lambda: ir.Add(X, MASK), "is not a tensor"),
    ("add_norm", lambda: ir.AddNorm(X, v(8), w(8)), "differ"),
    ("attention", lambda: ir.Attention(X, K, K), "must be [B, H, T, D]"),
    ("attention", lambda: ir.Attention(Q, K, v(B, 2, T, 8)), "q, k, v do not fit"),
    ("attention", lambda: ir.Attention(v(1, 4, T, 8), K, K), "q, k, v do not fit"),
    ("attention", lambda: ir.Attention(v(B, 3, T, 8), K, K), "3 heads are not a multiple of 2"),
    ("attention", lambda: ir.Attention(Q, K, K, VALID), "make it with a mask op"),
    ("attention", lambda: ir.Attention(Q, Q, Q, MASK), "mask[B, T, S] does not fit"),
    ("attention", lambda: ir.Attention(Q, K, K, bias=v(4, 1, T)), "do not broadcast"),
    ("attention", lambda: ir.Attention(Q, K, K, bias=v(1, 1, 1, 1, 1)), "the bias"),
    ("attention", lambda: ir.Attention(Q, K, K, sinks=w(2)), "not one for each of 4 heads"),
    ("bias.alibi", lambda: ir.AlibiBias(X, w(4)), "needs keys [B, K]"),
    ("bias.alibi", lambda: ir.AlibiBias(IDS, w(4, 1)), "needs slopes [H]"),
    ("cast", lambda: ir.Cast(MASK, F32), "is not a tensor"),
    ("compare", lambda: ir.Compare(X, 0, "eqq"), "unknown comparison 'eqq'; did you mean 'eq'?"),
    ("concat", lambda: ir.Concat((), 0), "no parts"),
    ("concat", lambda: ir.Concat((X, IDS), 0), "differ in rank or dtype"),
    ("concat", lambda: ir.Concat((X, v(B, T, 7)), 1), "differ beside axis 1"),
    ("const", lambda: ir.Const(w(3)), "is not in the weight table"),
    ("conv", lambda: ir.Conv(v(B, 3, 9), w(4, 3, 3, 3)), "do not fit strides of 1 axes"),
    ("conv", lambda: ir.Conv(v(B, 3, 9), w(4, 3, 3), padding=(1, 1)), "one number for each axis"),
    ("conv", lambda: ir.Conv(v(B, 3, 9), w(4, 3, 3), groups=3), "channels"),
    ("conv", lambda: ir.Conv(v(B, 3, 9), w(4, 3, 3), w(3)), "the bias f32[3] does not fit"),
    ("cumsum", lambda: ir.Cumsum(VALID, 2), "axis 2 is out of range for 2 dimensions"),
    ("div", lambda: ir.Div(X, v(7)), "do not broadcast"),
    ("embed", lambda: ir.Embed(X, w(100, 8)), "not integers"),
    ("embed", lambda: ir.Embed(IDS, w(100)), "needs a table [rows, width]"),
    ("expand", lambda: ir.Expand(X, (T, 8)), "does not broadcast to the shape"),
    (
        "ffn.experts",
        lambda: ir.FfnExperts(X, IDS, IDS, w(4, 6, 8), w(4, 8, 3)),
        "choice of experts",
    ),
    (
        "ffn.experts",
        lambda: ir.FfnExperts(X, v(B, T, 2), v(B, T, 2), w(4, 6, 8), w(4, 8, 4)),
        "f32[4, 6, 8] and f32[4, 8, 4] do not fit",
    ),
    ("ffn.gated", lambda: ir.FfnGated(X, w(16, 8), w(8, 8), w(8, 8)), "gate f32[16, 8] and up"),
    ("ffn.gated", lambda: ir.FfnGated(X, w(4, 8), w(4, 8), w(8, 5)), "does not fit the weight @w"),
    (
        "ffn.gated",
        lambda: ir.FfnGated(X, w(4, 8), w(4, 8), w(8, 4), act="sillu"),
        "unknown activation 'sillu'; did you mean 'silu'?",
    ),
    ("full", lambda: ir.Full((B, -1), 0, F32), "has a negative size"),
    ("heads.merge", lambda: ir.HeadsMerge(X), "needs [B, H, T, D], not f32[B, T, 8]"),
    ("heads.split", lambda: ir.HeadsSplit(X, 3), "cannot split f32[B, T, 8] into 3 heads"),
    ("heads.split", lambda: ir.HeadsSplit(X, 0), "into 0 heads"),
    ("heads.split", lambda: ir.HeadsSplit(v(8), 2), "needs [B, T, H*D]"),
    ("iota", lambda: ir.Iota(-1), "has a negative size"),
    ("kv.append", lambda: ir.KvAppend(X, K, K), "is not a KV cache"),
    ("kv.append", lambda: ir.KvAppend(KV, X, K), "needs keys [B, G, N, D]"),
    ("kv.append", lambda: ir.KvAppend(KV, v(B, 2, T, 8), v(B, 2, S, 8)), "do not fit kv<B"),
    ("kv.append", lambda: ir.KvAppend(KV, v(B, 2, 3, 8), v(B, 2, 3, 8), SET), "of its own"),
    ("kv.append", lambda: ir.KvAppend(OWN, v(B, 2, 5, 8), v(B, 2, 5, 8), SET), "not the tokens"),
    ("kv.evict", lambda: ir.KvEvict(KV), "it must be placed"),
    ("kv.evict", lambda: ir.KvEvict(OWN, SCORES, "scores"), "asks for f32[B, 2, S]"),
    ("kv.evict", lambda: ir.KvEvict(OWN, K_SCORES), "evicts by 'age'"),
    ("kv.evict", lambda: ir.KvEvict(OWN, by="norm"), "it must be scored"),
    ("kv.evict", lambda: ir.KvEvict(OWN, keep=1.5), "keep is from 0 to 1"),
    ("kv.evict", lambda: ir.KvEvict(OWN, recent=1.5), "recent is a number of tokens or a part"),
    ("kv.positions", lambda: ir.KvPositions(KV), "no positions of its own"),
    ("kv.read", lambda: ir.KvRead(K), "is not a KV cache"),
    ("layer", lambda: ir.Layer(BODY, (IDS,), "a"), "@b expects f32[B, T, 8] but got i64[B, T]"),
    ("layer", lambda: ir.Layer(BODY, (), "a"), "@b expects 1 inputs but got 0"),
    ("linear", lambda: ir.Linear(X, w(4, 7)), "f32[B, T, 8] does not fit the weight @w: f32[4, 7]"),
    ("linear", lambda: ir.Linear(v(), w(4, 7)), "f32[] does not fit"),
    ("linear", lambda: ir.Linear(X, w(4, 8), w(8)), "the bias f32[8] does not fit"),
    ("linear.int8", lambda: ir.LinearInt8(X, BYTES, w(4), ONE), "needs x of u8"),
    ("linear.int8", lambda: ir.LinearInt8(GRID, w(4, 8), w(4), ONE), "and a weight of i8"),
    (
        "linear.int8",
        lambda: ir.LinearInt8(GRID, w(4, 9, dtype=DType.I8), w(4), ONE),
        "u8[B, T, 8] does not fit the weight @w: i8[4, 9]",
    ),
    ("linear.int8", lambda: ir.LinearInt8(GRID, BYTES, w(3), ONE), "scales f32[3] do not fit"),
    ("linear.int8", lambda: ir.LinearInt8(GRID, BYTES, w(4), w(4)), "is f32[4], not one float"),
    (
        "linear.int8",
        lambda: ir.LinearInt8(GRID, BYTES, w(4), ONE, plus=X),
        "plus is f32[B, T, 8], but the product is f32[B, T, 4]",
    ),
    ("linear.split", lambda: ir.LinearSplit(X, w(5, 8), (2, 2)), "do not sum to the 5 outputs"),
    ("mask.and", lambda: ir.MaskAnd(MASK, VALID), "needs two masks over the same keys"),
    ("mask.and", lambda: ir.MaskAnd(MASK, Value(ir.Mask((B, 3, S)))), "T and 3 differ"),
    ("mask.causal", lambda: ir.MaskCausal(IDS, X), "positions must be [batch, tokens]"),
    ("mask.dense", lambda: ir.MaskDense(X), "needs bool[batch, queries, keys]"),
    ("mask.keep", lambda: ir.MaskKeep(Value(ir.Mask((B, S, S))), SET), "does not choose among"),
    ("mask.keep", lambda: ir.MaskKeep(X, SET), "is not a mask"),
    ("mask.state", lambda: ir.MaskState(STEP, KV), "it must be placed"),
    ("mask.valid", lambda: ir.MaskValid(IDS), "needs bool[batch, tokens]"),
    ("mask.window", lambda: ir.MaskWindow(IDS, v(2, S), 1, 0), "B and 2 differ"),
    ("matmul", lambda: ir.MatMul(X, X), "does not fit"),
    ("matmul", lambda: ir.MatMul(v(8), v(8)), "does not fit"),
    ("maximum", lambda: ir.Maximum(MASK, 1), "is not a tensor"),
    ("minimum", lambda: ir.Minimum(X, v(3)), "do not broadcast"),
    ("mul", lambda: ir.Mul(2, 2), "one operand must be a value"),
    ("norm.layer", lambda: ir.LayerNorm(X, w(8), w(7)), "does not fit the last axis"),
    ("norm.rms", lambda: ir.RmsNorm(X, w(7)), "does not fit the last axis"),
    ("norm.rms", lambda: ir.RmsNorm(v()), "has no last axis"),
    ("opaque", lambda: ir.Opaque((X,), (), "aten.x", "[", ()), "aten.x are no JSON"),
    ("opaque", lambda: ir.Opaque((), (), "aten.x", '[[{"%": 0}]]', ()), "refers to %0 of 0"),
    ("opaque", lambda: ir.Opaque((), (), "aten.x", '[{"a": {"@": 2}}]', ()), "refers to @2 of 0"),
    ("pad", lambda: ir.Pad(X, 2, -9, 0), "has not the 9 elements to crop"),
    ("pad", lambda: ir.Pad(X, 3, 1, 0), "axis 3 is out of range"),
    ("permute", lambda: ir.Permute(X, (0, 1, 1)), "is no permutation of the axes"),
    ("pow", lambda: ir.Pow(X, MASK), "is not a tensor"),
    ("quantize", lambda: ir.Quantize(GRID, ONE), "has no channels of floats"),
    ("quantize", lambda: ir.Quantize(X, w(8)), "the scale is f32[8], not one float"),
    ("quantize", lambda: ir.Quantize(X, ONE, w(3)), "the columns are f32[3], not integers"),
    ("quantize.add_norm", lambda: ir.QuantizeAddNorm(X, GRID, w(8), ONE), "differ"),
    ("quantize.gated", lambda: ir.QuantizeGated(X, GRID, ONE), "differ"),
    ("quantize.gated", lambda: ir.QuantizeGated(X, X, ONE, act="siluu"), "did you mean 'silu'?"),
    ("quantize.norm", lambda: ir.QuantizeNorm(X, w(7), ONE), "does not fit the last axis"),
    ("reduce", lambda: ir.Reduce(X, "summ", (0,)), "unknown reduction 'summ'; did you mean 'sum'?"),
    ("reduce", lambda: ir.Reduce(X, "sum", (3,)), "axis 3 is out of range"),
    ("reshape", lambda: ir.Reshape(X, (B, T, 7)), "cannot reshape f32[B, T, 8] of 8*B*T to 7*B*T"),
    ("rope", lambda: ir.Rope(X, IDS, IDS), "needs x[B, H, T, D] and tables"),
    ("rope", lambda: ir.Rope(Q, v(B, S, 4), v(B, S, 4)), "differ in batch or tokens"),
    ("rope", lambda: ir.Rope(Q, v(B, T, 5), v(B, T, 5)), "fewer channels than its table"),
    ("rope.table", lambda: ir.RopeTable(IDS, w(4, 4)), "needs frequencies [D/2]"),
    ("score.attention", lambda: ir.ScoreAttention(Q, v(B, 2, S, 4)), "do not fit"),
    ("score.attention", lambda: ir.ScoreAttention(Q, Q, MASK), "mask[B, T, S] does not fit"),
    ("score.attention", lambda: ir.ScoreAttention(Q, K, MASK, seed=1), "noise needs a seed"),
    ("score.attention", lambda: ir.ScoreAttention(Q, K, rows=v(2, 3)), "name queries of each row"),
    (
        "score.attention",
        lambda: ir.ScoreAttention(Q, K, MASK, state=KV, rows=ROWS, seed=1),
        "noise is drawn for all queries",
    ),
    (
        "score.attention",
        lambda: ir.ScoreAttention(Q, K, MASK, state=KV, seed=1),
        "does not know where the keys",
    ),
    ("score.attention", lambda: ir.ScoreAttention(Q, K, MASK, tau=0.0), "tau is above 0"),
    ("slice", lambda: ir.Slice(X, 2, 3, 9), "slice 3:9 does not lie in the 8 of"),
    ("slice", lambda: ir.Slice(X, 1, 3, 2), "slice 3:2 does not lie in the T of"),
    ("slice", lambda: ir.Slice(X, 2, -1, 2), "slice -1:2 does not lie"),
    ("slice", lambda: ir.Slice(X, 2, 0, 8, 0), "it must be at least 1"),
    ("softmax", lambda: ir.Softmax(X, -4), "axis -4 is out of range"),
    ("sub", lambda: ir.Sub(X, v(B, S, 8)), "dimensions T and S do not broadcast"),
    ("take", lambda: ir.Take(X, X, 0), "not integers"),
    ("take", lambda: ir.Take(X, IDS, 5), "axis 5 is out of range"),
    ("tokens.allot", lambda: ir.TokensAllot(SCORES), "needs scores [I, P, N]"),
    ("tokens.allot", lambda: ir.TokensAllot(X, v(B, 8)), "but shares are f32[B, 8]"),
    ("tokens.allot", lambda: ir.TokensAllot(v(B, 3, T)), "several must have them"),
    ("tokens.allot", lambda: ir.TokensAllot(v(B, 1, T), v(B, 0)), "one part has no shares"),
    ("tokens.allot", lambda: ir.TokensAllot(v(B, 1, T), keep=1.5), "cannot keep 1.5 of the tokens"),
    ("tokens.index", lambda: ir.TokensIndex(X), "is not a set of tokens"),
    ("tokens.find", lambda: ir.TokensFind(X, ROWS), "is not a set of tokens"),
    ("tokens.match", lambda: ir.TokensMatch(Q, IDS, 0.3), "needs a signal [B, T, D]"),
    ("tokens.match", lambda: ir.TokensMatch(X, VALID, 0.3), "but the sizes are bool[B, T]"),
    ("tokens.match", lambda: ir.TokensMatch(X, IDS, 0.6), "cannot merge 0.6 of the tokens"),
    ("tokens.merge", lambda: ir.TokensMerge(Q, IDS, IDS, IDS), "needs tokens [B, T, D]"),
    ("tokens.merge", lambda: ir.TokensMerge(X, IDS, IDS, X), "needs merged sizes [B, K]"),
    ("tokens.merge", lambda: ir.TokensMerge(X, IDS, ROWS, IDS), "not of the tokens of"),
    ("tokens.merge", lambda: ir.TokensMerge(X, SCORES, IDS, IDS), "not of the tokens of"),
    ("tokens.new", lambda: ir.TokensNew(X, S), "needs positions [B, N]"),
    ("tokens.revive", lambda: ir.TokensRevive(v(B, S), OWN, KV, SET, C), "it must be placed"),
    ("tokens.revive", lambda: ir.TokensRevive(v(B, T), KV, OWN, SET, C), "not one for each slot"),
    ("tokens.revive", lambda: ir.TokensRevive(v(B, S), KV, OWN, SET, 2), "give a symbol"),
    ("tokens.revive", lambda: ir.TokensRevive(v(B, S), KV, OWN, SET, C, 0), "bring nothing back"),
    ("tokens.select", lambda: ir.TokensSelect(X, VALID, ROWS), "needs scores [B, N]"),
    ("tokens.select", lambda: ir.TokensSelect(v(B, S), VALID, ROWS), "but valid is"),
    ("tokens.select", lambda: ir.TokensSelect(SCORES, VALID, v(1, 3)), "name tokens of each row"),
    ("tokens.select", lambda: ir.TokensSelect(SCORES, VALID, ROWS, 1.5), "cannot keep 1.5"),
    ("tokens.take", lambda: ir.TokensTake(X, X), "no integers for each batch row"),
    ("tokens.take", lambda: ir.TokensTake(v(1, T, 8), ROWS), "does not choose among the tokens"),
    ("tokens.take", lambda: ir.TokensTake(v(B, S, 8), SET), "does not choose among the tokens"),
    ("tokens.take", lambda: ir.TokensTake(X, SET, 3), "no tokens along axis 3"),
    ("tokens.valid", lambda: ir.TokensValid(X), "is not a set of tokens"),
    ("tokens.within", lambda: ir.TokensWithin(SET, SET), "does not choose among the 3 tokens"),
    ("topk", lambda: ir.TopK(X, 9), "cannot take the 9 largest of f32[B, T, 8]"),
    ("topk", lambda: ir.TopK(v(), 1), "out of range"),
    ("unary", lambda: ir.Unary(X, "geluu"), "unknown function 'geluu'; did you mean 'gelu'?"),
    ("where", lambda: ir.Where(X, X, 0), "the condition is f32[B, T, 8], not bool"),
]


def test_every_op_kind_has_a_good_and_a_bad_construction() -> None:
    assert set(GOOD) == set(OPS)
    assert {kind for kind, _, _ in BAD} == set(OPS)


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_good_operands_give_the_type(kind: str) -> None:
    make, types = GOOD[kind]
    op = make()
    op.verify()
    assert op.kind == kind
    assert ", ".join(str(r.type) for r in op.results) == types


@pytest.mark.parametrize(("kind", "make", "says"), BAD, ids=[f"{b[0]}: {b[2]}" for b in BAD])
def test_bad_operands_are_refused(kind: str, make: Callable[[], Op], says: str) -> None:
    with pytest.raises((IRTypeError, ir.VerifyError)) as caught:
        _check(make())
    assert says in caught.value.message
    assert kind in str(caught.value)


def _check(op: Op) -> None:
    """Verify an op within a module, where it names its kind: for rules that infer leaves alone."""
    params = tuple(dict.fromkeys(op.operands()))
    function = ir.Function("forward", ir.Region(params, (op,), op.results))
    symbols = {name: ir.Symbol(0, None) for name in "BST"}
    ir.verify(ir.Module("m", {"forward": function}, symbols))


# An opaque op takes operands of any type, and three kinds take none.
PICKY = sorted(set(GOOD) - {"const", "full", "iota", "opaque"})


@pytest.mark.parametrize("kind", PICKY)
def test_a_message_names_the_op_and_its_place(kind: str) -> None:
    odd = ir.Mask((1, 1, 1)) if kind.startswith("kv.") else ir.KV(1, 1, 1, 1, 1, F32)
    with pytest.raises(IRTypeError) as caught:
        GOOD[kind][0]().clone(lambda _: Value(odd), loc="model.here")
    assert caught.value.message.startswith(f"{kind}: ")
    assert caught.value.at == "model.here"


# ---- dtypes, as torch promotes them


PROMOTED: list[tuple[Any, Any, str]] = [
    (v(3, dtype=DType.U8), v(3, dtype=DType.I8), "i16[3]"),
    (v(3, dtype=DType.BOOL), v(3, dtype=DType.I8), "i8[3]"),
    (v(3, dtype=DType.I64), v(3, dtype=DType.F16), "f16[3]"),
    (v(3, dtype=DType.F16), v(3, dtype=DType.BF16), "f32[3]"),
    (v(3, dtype=DType.F16), v(dtype=DType.F64), "f16[3]"),
    (v(3, dtype=DType.I32), v(dtype=DType.I64), "i32[3]"),
    (v(3, dtype=DType.BOOL), v(dtype=DType.I64), "i64[3]"),
    (v(3, dtype=DType.I32), v(dtype=DType.F64), "f64[3]"),
    (v(dtype=DType.I32), v(dtype=DType.I64), "i64[]"),
    (v(3, dtype=DType.BOOL), True, "bool[3]"),
    (v(3, dtype=DType.BOOL), 2, "i64[3]"),
    (v(3, dtype=DType.BOOL), 2.0, "f32[3]"),
    (v(3, dtype=DType.I8), 300, "i8[3]"),
    (v(3, dtype=DType.BF16), 2.0, "bf16[3]"),
]


@pytest.mark.parametrize(("a", "b", "type_"), PROMOTED, ids=[p[2] for p in PROMOTED])
def test_elementwise_dtypes_in_both_orders(a: ir.Operand, b: ir.Operand, type_: str) -> None:
    assert str(ir.Add(a, b).result.type) == type_
    assert str(ir.Add(b, a).result.type) == type_


def test_a_kind_is_declared_once() -> None:
    with pytest.raises(ir.ElidirError, match="op kind 'add' is declared twice"):
        ir.op("add")(type("Again", (Op,), {}))


def test_clone_keeps_what_is_not_changed() -> None:
    op = ir.Linear(X, w(4, 8), w(4), loc="q", names=("y",))
    copy = op.clone(loc="p")
    assert (copy.loc, copy.result.name, copy.result.type) == ("p", "y", op.result.type)
    assert list(copy.operands()) == [X]
    assert list(copy.weights()) == [w(4, 8), w(4)]
    assert copy.result is not op.result
