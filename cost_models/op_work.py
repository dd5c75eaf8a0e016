"""The work of each op kind of the dialect, one function each, derived from its types.

Conventions: a multiply-add is two flops; an elementwise function is one flop an element, whatever
it is; attention is fused (scores never reach memory) and counts every query-key pair, masked too;
views move nothing. An op kind without a function here is reported as not modelled.
"""

from dataclasses import replace

import sympy

from elidir.cost_models.work import Arithmetic, Sizes, Store, Work, work
from elidir.ir import (
    KV,
    Add,
    AddNorm,
    AlibiBias,
    Attention,
    Cast,
    Compare,
    Concat,
    Const,
    Conv,
    Cumsum,
    Dim,
    Div,
    DType,
    Embed,
    Expand,
    FfnExperts,
    FfnGated,
    Full,
    HeadsMerge,
    HeadsSplit,
    Iota,
    KvAppend,
    KvEvict,
    KvPositions,
    KvRead,
    LayerNorm,
    Linear,
    LinearInt8,
    LinearSplit,
    MaskAnd,
    MaskCausal,
    MaskDense,
    MaskKeep,
    MaskState,
    MaskValid,
    MaskWindow,
    MatMul,
    Maximum,
    Minimum,
    Mul,
    Op,
    Pad,
    Permute,
    Pow,
    Quantize,
    QuantizeAddNorm,
    QuantizeGated,
    QuantizeNorm,
    Reduce,
    Reshape,
    RmsNorm,
    Rope,
    RopeTable,
    ScoreAttention,
    Slice,
    Softmax,
    Sub,
    Take,
    TokensAllot,
    TokensFind,
    TokensIndex,
    TokensMatch,
    TokensMerge,
    TokensNew,
    TokensRevive,
    TokensSelect,
    TokensTake,
    TokensValid,
    TokensWithin,
    TopK,
    Unary,
    Value,
    Where,
    as_dim,
    product,
)

VIEWS = (Const, Expand, HeadsSplit, KvRead, Permute, Reshape, Slice)
SORT_FLOPS = 16
NOISE_FLOPS = 16  # mix a word, two logarithms, add, divide by the temperature
SOFTMAX_FLOPS = 5  # subtract the maximum, exponentiate, add up, divide, compare for the maximum


def _count(value: Value) -> Dim:
    return product(value.type.dims)


def _rows(x: Value) -> Dim:
    """The elements of `x` but for its last axis: how many vectors it holds."""
    return product(x.tensor.dims[:-1])


# ---- what moves nothing, or only copies


@work(*VIEWS)
def view(op: Op, s: Sizes) -> Work:
    """Another way to look at memory that is there."""
    return Work()


@work(Concat, HeadsMerge, Pad)
def copy(op: Op, s: Sizes) -> Work:
    """Every element is read and written once."""
    return s.traffic(op)


@work(Full, Iota)
def fill(op: Op, s: Sizes) -> Work:
    """Every element is written once."""
    return s.traffic(op)


@work(Take)
def take(op: Take, s: Sizes) -> Work:
    """Only the chosen elements are read."""
    return _gather(op.x, op.index, op.result, s)


@work(TokensTake)
def tokens_take(op: TokensTake, s: Sizes) -> Work:
    """Only the chosen tokens are read."""
    return _gather(op.x, op.rows, op.result, s)


def _gather(x: Value, index: Value, out: Value, s: Sizes) -> Work:
    chosen = Work(read={s.store_of(x): s.bytes_of(out)}, launches=1)
    return chosen + s.reads(index) + s.writes(out)


@work(TokensSelect)
def tokens_select(op: TokensSelect, s: Sizes) -> Work:
    """A sort of each row: log2 of its length comparisons a token, taken as 16."""
    return s.traffic(op) + s.vector(SORT_FLOPS * _count(op.scores), op.scores)


@work(TokensAllot)
def tokens_allot(op: TokensAllot, s: Sizes) -> Work:
    """Two sorts: within each part, and over all of them."""
    return s.traffic(op) + s.vector(2 * SORT_FLOPS * _count(op.scores), op.scores)


@work(TokensFind, TokensIndex, TokensNew, TokensValid, TokensWithin)
def tokens_of(op: Op, s: Sizes) -> Work:
    """A lookup for each token of the set."""
    return s.traffic(op)


@work(TokensRevive)
def tokens_revive(op: TokensRevive, s: Sizes) -> Work:
    """A look at each token of the session, and the search for the best of them."""
    moved = s.reads(op.scores, op.fresh) + s.writes(*op.results)
    return moved + s.vector(SORT_FLOPS * _count(op.scores), op.scores) + Work(launches=1)


@work(TokensMatch)
def tokens_match(op: TokensMatch, s: Sizes) -> Work:
    """Half the tokens by the other half, a length for each token, and a sort of a half."""
    batch, tokens, width = op.signal.tensor.dims
    half = as_dim(sympy.ceiling(sympy.sympify(tokens) / 2))
    pairs = batch * half * (tokens - half)
    flops = s.matrix(2 * pairs * width, op.signal) + s.vector(pairs, op.signal)
    own = s.vector(3 * _count(op.signal) + SORT_FLOPS * batch * half, op.signal)
    return s.traffic(op) + flops + own


@work(TokensMerge)
def tokens_merge(op: TokensMerge, s: Sizes) -> Work:
    """A product and a sum for each element, and a division for each that is left."""
    return s.traffic(op) + s.vector(2 * _count(op.x) + _count(op.result), op.x)


@work(Embed)
def embed(op: Embed, s: Sizes) -> Work:
    """One row of the table for each id."""
    ids = _count(op.ids)
    rows = op.table.type.dims[0]
    chosen = as_dim(sympy.ceiling(ids * sympy.Rational(s.weight_bytes(op.table), rows)))
    moved = Work(read={Store.WEIGHTS: chosen}, launches=1)
    return moved + s.reads(op.ids) + s.writes(op.result)


# ---- products


@work(Linear, LinearSplit)
def linear(op: Linear | LinearSplit, s: Sizes) -> Work:
    """2 * rows * in * out flops, and the bias."""
    rows, weight = _rows(op.x), op.weight
    flops = s.product(2 * rows * product(weight.type.dims), op.x)
    bias = s.vector(rows * weight.type.dims[0], op.x) if op.bias else Work()
    return s.traffic(op) + flops + bias


@work(LinearInt8)
def linear_int8(op: LinearInt8, s: Sizes) -> Work:
    """2 * rows * in * out integer flops; a scale for each output, bias and what is added."""
    rows, outs = _rows(op.x), op.weight.type.dims[0]
    integers = Arithmetic("matrix", DType.I8.value)
    flops = Work({integers: 2 * rows * product(op.weight.type.dims)})
    added = 1 + (op.bias is not None) + (op.plus is not None)
    return s.traffic(op) + flops + s.vector(added * rows * outs, op.result)


@work(FfnGated)
def ffn_gated(op: FfnGated, s: Sizes) -> Work:
    """Gate and up, their product, and down: three launches, as if written out."""
    rows, hidden = _rows(op.x), op.gate.type.dims[0]
    sizes = (product(w.type.dims) for w in (op.gate, op.up, op.down))
    flops = s.product(2 * rows * sum(sizes), op.x) + s.vector(2 * rows * hidden, op.x)
    inner = _through_memory(3 * rows * hidden, op.x, s)
    return s.traffic(op) + flops + inner + Work(launches=2)


@work(FfnExperts)
def ffn_experts(op: FfnExperts, s: Sizes) -> Work:
    """Each token through its experts; as many experts are read as the tokens can choose at most."""
    chosen = _count(op.choice)
    experts, twice, width = op.gate_up.type.dims
    hidden = as_dim(sympy.Rational(1, 2) * twice)
    flops = s.product(6 * chosen * width * hidden, op.x)
    mixed = s.vector(chosen * (2 * hidden + 2 * width), op.x)
    share = sympy.Rational(s.weight_bytes(op.gate_up) + s.weight_bytes(op.down), experts)
    loaded = as_dim(sympy.ceiling(sympy.Min(experts, chosen) * share))
    moved = s.reads(op.x, op.choice, op.gates) + s.writes(op.result)
    inner = _through_memory(3 * chosen * hidden, op.x, s)
    return moved + flops + mixed + inner + Work(read={Store.WEIGHTS: loaded}, launches=3)


def _through_memory(count: Dim, like: Value, s: Sizes) -> Work:
    """Inner values, written once and read once."""
    size = count * s.precision.held(like.tensor.dtype).bytes
    return Work(read={Store.ACTIVATIONS: size}, written={Store.ACTIVATIONS: size})


@work(Conv)
def conv(op: Conv, s: Sizes) -> Work:
    """2 * outputs * taps flops, and the bias."""
    taps = product(op.weight.type.dims[1:])
    flops = s.product(2 * _count(op.result) * taps, op.x)
    bias = s.vector(_count(op.result), op.x) if op.bias else Work()
    return s.traffic(op) + flops + bias


@work(MatMul)
def matmul(op: MatMul, s: Sizes) -> Work:
    """2 * outputs * inner flops."""
    return s.traffic(op) + s.matrix(2 * _count(op.result) * op.a.tensor.dims[-1], op.a)


@work(Attention)
def attention(op: Attention, s: Sizes) -> Work:
    """Q k^T and its product with v: 2 * B * H * N * S * (D + Dv) flops, and the softmax."""
    batch, heads, new, width = op.q.tensor.dims
    pairs = batch * heads * new * op.k.tensor.dims[2]
    extra = (op.bias is not None) + 3 * (op.softcap is not None)
    flops = s.matrix(2 * pairs * (width + op.v.tensor.dims[3]), op.q)
    return s.traffic(op) + flops + s.vector(pairs * (SOFTMAX_FLOPS + 1 + extra), op.q)


@work(ScoreAttention)
def score_attention(op: ScoreAttention, s: Sizes) -> Work:
    """Q k^T for the queries that decide, the softmax, and the sum: nothing is mixed."""
    batch, heads, new, width = op.q.tensor.dims
    rows = new if op.rows is None else op.rows.tensor.dims[1]
    pairs = batch * heads * rows * op.k.tensor.dims[2]
    noise = 0 if op.seed is None else NOISE_FLOPS
    extra = 1 + noise + (op.bias is not None) + 3 * (op.softcap is not None)
    flops = s.matrix(2 * pairs * width, op.q)
    share = as_dim(sympy.sympify(rows) / new)
    read = s.reads(op.k, op.rows) + s.reads(op.q, op.mask, op.bias) * share
    moved = read + s.loads(op.sinks) + s.writes(op.result) + Work(launches=1)
    return moved + flops + s.vector(pairs * (SOFTMAX_FLOPS + 1 + extra), op.q)


# ---- state


@work(KvAppend)
def kv_append(op: KvAppend, s: Sizes) -> Work:
    """The new keys and values are read and written; those in the cache stay where they are."""
    size = s.bytes_of(op.k) + s.bytes_of(op.v)
    return s.reads(op.k, op.v) + Work(written={Store.KV: size}, launches=1)


@work(KvEvict)
def kv_evict(op: KvEvict, s: Sizes) -> Work:
    """Scores are compared, and what stays fills the places of what goes, which is no more."""
    held, left = op.kv.type, op.result.type
    assert isinstance(held, KV)
    assert isinstance(left, KV)
    gone = as_dim(sympy.Min(held.length - left.length, left.length))
    moved = {Store.KV: s.kv_bytes(replace(held, length=gone))}
    compared = {Arithmetic("vector", DType.F32.value): product(held.dims[:3])}
    scores = s.reads(op.scores) if op.scores is not None else Work()
    return scores + Work(compared, moved, moved, launches=1)


@work(KvPositions)
def kv_positions(op: KvPositions, s: Sizes) -> Work:
    """A position for each cached token."""
    return s.writes(op.result)


# ---- elementwise and along an axis


@work(Add, Compare, Div, Maximum, Minimum, Mul, Pow, Sub, Unary, Where)
def elementwise(op: Op, s: Sizes) -> Work:
    """One flop an element of the result."""
    return s.traffic(op) + s.vector(_count(op.result), op.result)


@work(Cast)
def cast(op: Cast, s: Sizes) -> Work:
    """A copy in another dtype."""
    return s.traffic(op)


@work(RmsNorm)
def rms_norm(op: RmsNorm, s: Sizes) -> Work:
    """Square, add up, scale, weigh: 4 flops an element."""
    return s.traffic(op) + s.vector(4 * _count(op.x), op.x)


@work(LayerNorm)
def layer_norm(op: LayerNorm, s: Sizes) -> Work:
    """Add up, subtract the mean, square, add up, scale, weigh, add the bias: 7 flops an element."""
    return s.traffic(op) + s.vector(7 * _count(op.x), op.x)


@work(AddNorm)
def add_norm(op: AddNorm, s: Sizes) -> Work:
    """An addition and an RMS norm in one pass over memory: 5 flops an element."""
    return s.traffic(op) + s.vector(5 * _count(op.a), op.a)


QUANTIZE_FLOPS = 3  # scale, round, clamp


@work(Quantize, QuantizeNorm, QuantizeAddNorm, QuantizeGated)
def quantize(op: Op, s: Sizes) -> Work:
    """Three flops an element, after those of the norm (4), of the sum (1) or of the gate (2)."""
    before = {QuantizeNorm: 4, QuantizeAddNorm: 5, QuantizeGated: 2}.get(type(op), 0)
    x = next(op.operands())
    return s.traffic(op) + s.vector((QUANTIZE_FLOPS + before) * _count(x), x)


@work(Softmax)
def softmax(op: Softmax, s: Sizes) -> Work:
    """Five flops an element, one pass over memory."""
    return s.traffic(op) + s.vector(SOFTMAX_FLOPS * _count(op.x), op.x)


@work(Cumsum, Reduce, TopK)
def along_axis(op: Cumsum | Reduce | TopK, s: Sizes) -> Work:
    """One flop an element of the input."""
    return s.traffic(op) + s.vector(_count(op.x), op.x)


# ---- positions and masks


@work(RopeTable)
def rope_table(op: RopeTable, s: Sizes) -> Work:
    """An angle, its cosine and its sine for each frequency."""
    return s.traffic(op) + s.vector(3 * _count(op.results[0]), op.results[0])


@work(Rope)
def rope(op: Rope, s: Sizes) -> Work:
    """Two products and a sum for each rotated element."""
    rotated = _rows(op.x) * 2 * op.cos.tensor.dims[-1]
    return s.traffic(op) + s.vector(3 * rotated, op.x)


@work(AlibiBias)
def bias(op: AlibiBias, s: Sizes) -> Work:
    """Two flops an element: the key's position times the slope, and its cast."""
    return s.traffic(op) + s.vector(2 * _count(op.result), op.result)


@work(MaskAnd, MaskCausal, MaskDense, MaskKeep, MaskState, MaskValid, MaskWindow)
def mask(op: Op, s: Sizes) -> Work:
    """One comparison an entry, two for a window; the predicate is written out, a byte an entry."""
    each = 2 if isinstance(op, MaskWindow) else 1
    return s.traffic(op) + s.vector(each * _count(op.result), op.result)
