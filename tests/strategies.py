"""Hypothesis strategies for the IR: dimensions, types, and random valid modules.

`modules()` draws programs of the shape that compiled models have: an embedding, masks, layers that
share bodies, weights that are plain, stored in a format or derived, and in stage graph a `@step`
that threads KV state. `MAKERS` holds one way of making each op kind. Nothing here imports torch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import sympy
from hypothesis import strategies as st

from elidir import ir
from elidir.ir import DType, Op, Tensor, Value, Weight

B, C, N, R, S, T = (ir.symbol(name) for name in "BCNRST")
SYMBOLS = {
    "B": ir.Symbol(1, 64, "batch"),
    "C": ir.Symbol(0, 3, "that come back", usual=1),
    "N": ir.Symbol(1, None, 'the "new" tokens'),
    "R": ir.Symbol(1, None),
    "S": ir.Symbol(0, 8192),
    "T": ir.Symbol(1, 8192),
}
WIDTH, HEADS, VOCABULARY = 8, 2, 16
HINTS = ("", "", "x", "x", "x_1", "7", "kv.0", "a-b", "x_1_1")
PLACES = ("", "", "model.layers.0.attn", "Root.h[0] # odd")
FORMATS = ("", "", "q4_1", "int8")

# ---- dimensions and types


def dims(*, leaves: int = 5) -> st.SearchStrategy[ir.Dim]:
    """Expressions over + - * // % min, max and ceildiv; their values may be negative."""
    leaf = st.one_of(st.integers(0, 64).map(sympy.Integer), st.sampled_from([B, N, S, T]))
    return st.recursive(leaf, _compound, max_leaves=leaves).map(ir.as_dim)


def _compound(inner: st.SearchStrategy[sympy.Expr]) -> st.SearchStrategy[sympy.Expr]:
    pairs = st.tuples(inner, inner)
    number = st.integers(1, 16).map(sympy.Integer)
    quotients = st.tuples(inner, number | st.sampled_from([B, N + 1, T + 2]))
    return st.one_of(
        pairs.map(lambda p: p[0] + p[1]),
        pairs.map(lambda p: p[0] - p[1]),
        pairs.map(lambda p: p[0] * p[1]),
        pairs.map(lambda p: sympy.Max(*p)),
        pairs.map(lambda p: sympy.Min(*p)),
        quotients.map(lambda p: sympy.floor(p[0] / p[1])),
        quotients.map(lambda p: sympy.ceiling(p[0] / p[1])),
        st.tuples(inner, number).map(lambda p: sympy.Mod(*p)),
    )


def types() -> st.SearchStrategy[ir.Type]:
    """Tensors of any rank, masks, KV caches and sets of tokens."""
    dim, dtype = dims(leaves=3), st.sampled_from(DType)
    tensors = st.builds(Tensor, st.lists(dim, max_size=4).map(tuple), dtype)
    masks = st.builds(ir.Mask, st.tuples(dim, dim, dim))
    flag = st.booleans()
    caches = st.builds(ir.KV, dim, dim, dim, dim, dim, dtype, flag, flag, flag)
    return tensors | masks | caches | st.builds(ir.TokenSet, dim, dim, dim)


# ---- modules


def modules(*, max_ops: int = 8) -> st.SearchStrategy[ir.Module]:
    """Valid modules of stage raised or graph, with at most `max_ops` random ops in a region."""
    randoms = st.randoms(use_true_random=False, note_method_calls=False)
    return st.builds(random_module, randoms, st.sampled_from(ir.Stage), st.just(max_ops))


def random_module(rng: Random, stage: ir.Stage, max_ops: int = 8) -> ir.Module:
    """Draw one valid module."""
    maker = ModuleMaker(rng, max_ops)
    functions = [maker.forward()] + [maker.step()] * (stage is ir.Stage.GRAPH)
    table = {f.name: f for f in functions}
    return ir.Module("m", table, dict(SYMBOLS), maker.weights | maker.derived(), stage)


@dataclass
class ModuleMaker:
    """Makes functions that share one weight table."""

    rng: Random
    max_ops: int
    weights: dict[str, ir.Entry] = field(default_factory=dict)

    def forward(self) -> ir.Function:
        """A stateless function: embed, masks, layers of one or two bodies, a head."""
        grower = Grower(self.rng, T)
        params = grower.given
        grower.add(ir.Embed(grower.ids, grower.weight(VOCABULARY, WIDTH)))
        mask = grower.add(ir.MaskCausal(grower.pos, grower.pos))
        grower.grow(self.rng.randint(0, self.max_ops))
        bodies = [self.body() for _ in range(self.rng.randint(1, 2))]
        for i in range(self.rng.randint(0, 4)):
            body = self.rng.choice(bodies)
            inputs = (grower.hidden(), *grower.given, mask)
            grower.add(ir.Layer(body, inputs, f"layers.{i}"))
            self.enter(body.weights, f"layers.{i}.")
        return self.finish("forward", grower, params, ())

    def body(self) -> ir.Body:
        """A body of random ops over hidden states, tokens, positions, validity and a mask."""
        grower = Grower(self.rng, T)
        start = Value(Tensor((B, T, WIDTH), DType.F32), "h")
        mask = Value(ir.Mask((B, T, T)), "mask")
        grower.offer(start)
        grower.offer(mask)
        grower.grow(self.rng.randint(1, self.max_ops))
        params = (start, *grower.given, mask)
        region = ir.Region(params, tuple(grower.ops), (grower.hidden(),))
        return ir.make_body(self.rng.choice(["layer", "layer", "block"]), region)

    def step(self) -> ir.Function:
        """N new tokens over S cached ones: each layer appends to its own cache."""
        grower = Grower(self.rng, N)
        layers = self.rng.randint(1, 3)
        kpos = Value(Tensor((B, S + N), DType.I64), "kpos")
        given_mask = mask = Value(ir.Mask((B, N, S + N)), "mask")
        rows = Value(Tensor((B, R), DType.I64), "rows")
        caches = [Value(cache_type(S), f"kv.{i}") for i in range(layers)]
        scored = self.rng.random() < 0.5
        own = Value(replace(cache_type(S), placed=True, scored=scored), "kv.own")
        grower.add(ir.Embed(grower.ids, grower.weight(VOCABULARY, WIDTH)))
        valid = grower.add(ir.Full((B, N), True, DType.BOOL))
        if self.rng.random() < 0.5:
            grower.add(ir.KvPositions(own))
            mask = grower.add(ir.MaskState(mask, own))
        if self.rng.random() < 0.5:
            revive(grower, caches[0], own, given_mask)
        body, states = cached_body(self.rng), []
        for i, cache in enumerate(caches):
            scope = f"layers.{self.rng.randint(0, 1)}.step{i}"
            given = (grower.ids, grower.pos, valid)
            layer = ir.Layer(body, (grower.hidden(), *given, mask, cache), scope)
            grower.add(layer)
            states.append(layer.results[1])
            self.enter(body.weights, f"{scope}.")
        if self.rng.random() < 0.5:
            grower.add(evict(self.rng, own))
        grower.add(ir.TokensTake(grower.hidden(), rows))
        params = (grower.ids, grower.pos, kpos, given_mask, own, *caches, rows)
        return self.finish("step", grower, params, tuple(states))

    def finish(
        self, name: str, grower: "Grower", params: tuple[Value, ...], states: tuple[Value, ...]
    ) -> ir.Function:
        """A function that yields the newest values, and what state became."""
        self.enter(grower.used, "")
        region = ir.Region(params, tuple(grower.ops), (grower.values[-1], *states))
        return ir.Function(name, region)

    def enter(self, weights: "tuple[Weight, ...] | list[Weight]", prefix: str) -> None:
        """Enter weights into the table, stored in some format."""
        for weight in weights:
            sha = self.rng.choice(["", "9c1f"])
            entry = ir.Entry(weight.type, self.rng.choice(FORMATS), sha)
            self.weights.setdefault(prefix + weight.name, entry)

    def derived(self) -> dict[str, ir.Entry]:
        """Weights made of others."""
        if not any(e.type.dims for e in self.weights.values()):
            return {}
        name = self.rng.choice(sorted(n for n, e in self.weights.items() if e.type.dims))
        tensor = self.weights[name].type
        doubled = Tensor((2 * tensor.dims[0], *tensor.dims[1:]), tensor.dtype)
        return {
            "made.twice": ir.Entry(doubled, expr=ir.Derived("concat", (name, name), 0)),
            "made.scaled": ir.Entry(tensor, expr=ir.Derived("mul", (name, 0.5))),
            "made.alias": ir.Entry(tensor, expr=ir.Derived("alias", ("made.scaled",))),
        }


def revive(grower: "Grower", parked: Value, own: Value, mask: Value) -> None:
    """Cached tokens come back into a state that does not hold all of them."""
    scores = grower.add(ir.Full((B, S), 0.0, DType.F32))
    fresh = grower.add(ir.TokensNew(grower.pos, S))
    above = grower.rng.choice([0.0, 0.25])
    op = ir.TokensRevive(scores, parked, own, fresh, C, grower.rng.randint(1, 3), above)
    grower.add(op)
    grower.add(ir.MaskState(mask, own, op.results[1]))


def evict(rng: Random, own: Value) -> ir.KvEvict:
    """Some of a placed state's tokens stay."""
    by = "norm" if isinstance(own.type, ir.KV) and own.type.scored else "age"
    recent, most = rng.choice([0, 3, 0.0, 0.25]), rng.choice([None, 7])
    return ir.KvEvict(
        own, None, by, N, rng.choice([0.0, 0.35, 1.0]), 2, most, recent, 1, most is None
    )


def cache_type(length: ir.Dim) -> ir.KV:
    """The cache of one layer of `length` tokens."""
    return ir.KV(B, HEADS, length, WIDTH // HEADS, WIDTH // HEADS, DType.F32, rotated=True)


def cached_body(rng: Random) -> ir.Body:
    """A body that appends its keys to a cache and attends to all of it."""
    grower = Grower(rng, N)
    start = Value(Tensor((B, N, WIDTH), DType.F32), "h")
    mask, cache = Value(ir.Mask((B, N, S + N)), "mask"), Value(cache_type(S), "kv")
    grower.offer(start)
    q, k, v = (grower.heads() for _ in range(3))
    append = ir.KvAppend(cache, k, v)
    grower.add(append)
    read = ir.KvRead(append.result)
    grower.add(read)
    grower.add(ir.Attention(q, *read.results, mask=rng.choice([mask, None])))
    grower.grow(rng.randint(0, 3))
    params = (start, *grower.given, mask, cache)
    region = ir.Region(params, tuple(grower.ops), (grower.hidden(), append.result))
    return ir.make_body("cached", region)


# ---- regions


@dataclass
class Grower:
    """A region under way: ops so far, the values they may read, and the weights they use."""

    rng: Random
    tokens: ir.Dim
    ops: list[Op] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    used: list[Weight] = field(default_factory=list)

    def __post_init__(self) -> None:
        lead = (B, self.tokens)
        self.ids = Value(Tensor(lead, DType.I64), "ids")
        self.pos = Value(Tensor(lead, DType.I64), "pos")
        self.valid = Value(Tensor(lead, DType.BOOL), "valid")
        self.given = (self.ids, self.pos, self.valid)

    def chosen(self, tokens: ir.Dim) -> Value:
        """A set of the tokens."""
        scores = self.add(ir.Reduce(self.hidden(), "mean", (-1,)))
        scores = self.add(ir.Cast(scores, DType.F32))
        keep, at_least = self.rng.choice([0.5, 0.35, 1.0]), self.rng.choice([1, 4])
        return self.add(ir.TokensSelect(scores, self.valid, self.pos, keep, at_least))

    def matched(self) -> ir.TokensMatch:
        """Which tokens go together, of tokens that stand for one each."""
        sizes = self.add(ir.Cast(self.valid, DType.I64))
        share, protect = self.rng.choice([0.0, 0.05, 0.3, 0.5]), self.rng.choice([0, 1, 2])
        op = ir.TokensMatch(self.hidden(), sizes, share, protect)
        self.add(op)
        return op

    def grow(self, count: int) -> None:
        """Add ops made by `count` random makers."""
        for _ in range(count):
            MAKERS[self.rng.choice(sorted(MAKERS))](self)

    def add(self, op: Op) -> Value:
        """Append an op under random hints and return its first result."""
        hints = tuple(self.rng.choice(HINTS) for _ in op.results)
        for result, hint in zip(op.results, hints, strict=True):
            result.name = hint
            self.offer(result)
        object.__setattr__(op, "loc", self.rng.choice(PLACES))
        self.ops.append(op)
        return op.results[0]

    def offer(self, value: Value) -> None:
        """Let later ops read a value."""
        self.values.append(value)

    def hidden(self) -> Value:
        """A hidden state, f32[B, tokens, WIDTH], preferably a late one."""
        wanted = Tensor((B, self.tokens, WIDTH), DType.F32)
        found = [v for v in self.values if v.type == wanted]
        return self.rng.choice(found[-3:])

    def heads(self) -> Value:
        """A hidden state in heads."""
        return self.add(ir.HeadsSplit(self.hidden(), HEADS))

    def weight(self, *shape: int, dtype: DType = DType.F32) -> Weight:
        """A new weight."""
        name = f"{self.rng.choice(['w', 'attn.q', 'mlp.0.weight'])}.{len(self.used)}"
        self.used.append(Weight(name, Tensor(shape, dtype)))
        return self.used[-1]

    def columns(self) -> Weight | None:
        """A list of channels, or none."""
        return self.weight(3, dtype=DType.I64) if self.rng.random() < 0.5 else None

    def maybe(self, *shape: int) -> Weight | None:
        """A new weight, or none."""
        return self.rng.choice([None, self.weight(*shape)])

    def number(self) -> int | float:
        """A number that is an operand."""
        return self.rng.choice([0, -1, 2, 0.5, -0.0, 1e-6, 1e30, math.inf, -math.inf, math.nan])

    def pair(self) -> tuple[ir.Operand, ir.Operand]:
        """Two operands, at least one of them a value."""
        value, other = self.hidden(), self.rng.choice([self.hidden(), self.number()])
        return self.rng.choice([(value, other), (other, value)])


Maker = Callable[[Grower], object]
MAKERS: dict[str, Maker] = {}


def maker(kind: str) -> Callable[[Maker], Maker]:
    """Register a way of making an op kind."""

    def register(make: Maker) -> Maker:
        MAKERS[kind] = make
        return make

    return register


def _binary(cls: type[Op]) -> Maker:
    return lambda g: g.add(cls(*g.pair()))


for _cls in (ir.Add, ir.Sub, ir.Mul, ir.Div, ir.Pow, ir.Maximum, ir.Minimum):
    MAKERS[_cls.kind] = _binary(_cls)

MAKERS |= {
    "const": lambda g: g.add(ir.Const(g.weight(WIDTH))),
    "embed": lambda g: g.add(ir.Embed(g.ids, g.weight(VOCABULARY, WIDTH))),
    "linear": lambda g: g.add(ir.Linear(g.hidden(), g.weight(WIDTH, WIDTH), g.maybe(WIDTH))),
    "linear.split": lambda g: g.add(ir.LinearSplit(g.hidden(), g.weight(9, WIDTH), (8, 1))),
    "norm.rms": lambda g: g.add(ir.RmsNorm(g.hidden(), g.maybe(WIDTH), g.rng.random())),
    "norm.layer": lambda g: g.add(ir.LayerNorm(g.hidden(), g.maybe(WIDTH), g.maybe(WIDTH))),
    "add_norm": lambda g: g.add(ir.AddNorm(g.hidden(), g.hidden(), g.weight(WIDTH))),
    "quantize": lambda g: g.add(ir.Quantize(g.hidden(), g.weight(), g.columns())),
    "quantize.norm": lambda g: g.add(
        ir.QuantizeNorm(g.hidden(), g.weight(WIDTH), g.weight(), g.columns())
    ),
    "quantize.add_norm": lambda g: g.add(
        ir.QuantizeAddNorm(g.hidden(), g.hidden(), g.weight(WIDTH), g.weight(), g.columns())
    ),
    "quantize.gated": lambda g: g.add(
        ir.QuantizeGated(g.hidden(), g.hidden(), g.weight(), g.columns(), "relu")
    ),
    "linear.int8": lambda g: g.add(
        ir.LinearInt8(
            g.add(ir.Quantize(g.hidden(), scale := g.weight())),
            g.weight(WIDTH, WIDTH, dtype=DType.I8),
            g.weight(WIDTH),
            scale,
            g.maybe(WIDTH),
            g.rng.choice([None, g.hidden()]),
        )
    ),
    "heads.split": Grower.heads,
    "heads.merge": lambda g: g.add(ir.HeadsMerge(g.heads())),
    "rope.table": lambda g: g.add(ir.RopeTable(g.pos, g.weight(2), dtype=DType.BF16)),
    "bias.alibi": lambda g: g.add(ir.AlibiBias(g.pos, g.weight(HEADS))),
    "compare": lambda g: g.add(ir.Compare(*g.pair(), fn=g.rng.choice(["lt", "xor"]))),
    "unary": lambda g: g.add(ir.Unary(g.hidden(), g.rng.choice(["gelu", "not", "exp"]))),
    "cast": lambda g: g.add(ir.Cast(g.hidden(), g.rng.choice(list(DType)))),
    "mask.causal": lambda g: g.add(ir.MaskCausal(g.pos, g.pos)),
    "mask.window": lambda g: g.add(ir.MaskWindow(g.pos, g.pos, 3, g.rng.randint(0, 2))),
    "mask.valid": lambda g: g.add(ir.MaskValid(g.valid)),
    "reduce": lambda g: g.add(ir.Reduce(g.hidden(), "max", (-1,), keep=g.rng.random() < 0.5)),
    "cumsum": lambda g: g.add(ir.Cumsum(g.valid, 1)),
    "softmax": lambda g: g.add(ir.Softmax(g.hidden(), -1)),
    "concat": lambda g: g.add(ir.Concat((g.hidden(),) * g.rng.randint(1, 3), 1)),
    "pad": lambda g: g.add(ir.Pad(g.hidden(), 1, g.rng.randint(-1, 2), 1, g.number())),
    "take": lambda g: g.add(ir.Take(g.hidden(), g.pos, 1)),
    "topk": lambda g: g.add(ir.TopK(g.hidden(), 2)),
    "tokens.take": lambda g: g.add(
        ir.TokensTake(g.hidden(), g.rng.choice([g.pos, g.chosen(g.tokens)]))
    ),
    "tokens.select": lambda g: g.chosen(g.tokens),
    "tokens.index": lambda g: g.add(ir.TokensIndex(g.chosen(g.tokens))),
    "tokens.valid": lambda g: g.add(ir.TokensValid(g.chosen(g.tokens))),
    "tokens.find": lambda g: g.add(ir.TokensFind(g.chosen(g.tokens), g.pos)),
    "tokens.match": lambda g: g.matched(),
    "tokens.new": lambda g: g.add(ir.TokensNew(g.pos, g.rng.choice([0, 3]))),
    "mask.keep": lambda g: g.add(
        ir.MaskKeep(g.add(ir.MaskCausal(g.pos, g.pos)), g.chosen(g.tokens))
    ),
    "iota": lambda g: g.add(ir.Iota(g.rng.choice([g.tokens, 2 * g.tokens - 1, 3]))),
}


@maker("attention")
def _attention(g: Grower) -> None:
    q, k, v = (g.heads() for _ in range(3))
    mask = g.rng.choice([None, g.add(ir.MaskCausal(g.pos, g.pos))])
    bias = g.rng.choice([None, g.add(ir.AlibiBias(g.pos, g.weight(HEADS)))])
    softcap = g.rng.choice([None, 30.0])
    g.add(ir.Attention(q, k, v, mask, bias, g.maybe(HEADS), g.rng.random(), softcap))


@maker("tokens.allot")
def _allot(g: Grower) -> None:
    batch, tokens = g.ids.type.dims
    scores = g.add(ir.Cast(g.pos, DType.F32))
    parts = g.add(ir.Expand(g.add(ir.Reshape(scores, (batch, 1, tokens))), (batch, 3, tokens)))
    shares = g.add(ir.Reduce(g.add(ir.Slice(parts, 1, 0, 2)), "sum", (2,)))
    g.add(ir.TokensAllot(parts, shares, g.rng.choice([0.35, 1.0]), g.rng.choice([0.0, 0.5])))


@maker("tokens.within")
def _within(g: Grower) -> None:
    outer = g.chosen(g.tokens)
    valid, rows = g.add(ir.TokensValid(outer)), g.add(ir.TokensFind(outer, g.pos))
    scores = g.add(ir.Cast(valid, DType.F32))
    inner = g.add(ir.TokensSelect(scores, valid, rows, g.rng.choice([0.3, 1.0]), 2))
    g.add(ir.TokensWithin(inner, outer))


@maker("tokens.merge")
def _merge(g: Grower) -> None:
    found = g.matched()
    g.add(ir.TokensMerge(g.hidden(), found.sizes, *found.results))


@maker("score.attention")
def _score(g: Grower) -> None:
    mask = g.rng.choice([None, g.add(ir.MaskCausal(g.pos, g.pos))])
    how = {"rows": g.rng.choice([None, g.ids]), "shared": g.rng.random() < 0.5}
    g.add(ir.ScoreAttention(g.heads(), g.heads(), mask, sinks=g.maybe(HEADS), scale=0.5, **how))


@maker("rope")
def _rope(g: Grower) -> None:
    table = ir.RopeTable(g.pos, g.weight(2), scale=g.rng.random())
    g.add(table)
    g.add(ir.Rope(g.heads(), *table.results, layout=g.rng.choice(list(ir.RopeLayout))))


@maker("mask.and")
def _mask_and(g: Grower) -> None:
    g.add(ir.MaskAnd(g.add(ir.MaskCausal(g.pos, g.pos)), g.add(ir.MaskValid(g.valid))))


@maker("mask.dense")
def _mask_dense(g: Grower) -> None:
    g.add(ir.MaskDense(g.add(ir.Full((B, g.tokens, g.tokens), True, DType.BOOL))))


@maker("ffn.gated")
def _gated(g: Grower) -> None:
    gate, up, down = g.weight(12, WIDTH), g.weight(12, WIDTH), g.weight(WIDTH, 12)
    g.add(ir.FfnGated(g.hidden(), gate, up, down, g.rng.choice(["silu", "gelu_tanh"])))


@maker("ffn.experts")
def _experts(g: Grower) -> None:
    shape = (B, g.tokens, 2)
    choice = g.add(ir.Full(shape, 1, DType.I64))
    gates = g.add(ir.Full(shape, 0.5, DType.F32))
    g.add(ir.FfnExperts(g.hidden(), choice, gates, g.weight(4, 6, WIDTH), g.weight(4, WIDTH, 3)))


@maker("conv")
def _conv(g: Grower) -> None:
    x = g.add(ir.Permute(g.hidden(), (0, 2, 1)))
    g.add(ir.Conv(x, g.weight(4, WIDTH, 3), g.maybe(4), stride=(2,), padding=(1,)))


@maker("matmul")
def _matmul(g: Grower) -> None:
    g.add(ir.MatMul(g.hidden(), g.add(ir.Permute(g.hidden(), (0, 2, 1)))))


@maker("where")
def _where(g: Grower) -> None:
    cond = g.add(ir.Compare(g.hidden(), g.number(), "ge"))
    a, b = g.rng.choice([g.pair(), (g.number(), g.number())])
    g.add(ir.Where(cond, a, b))


@maker("reshape")
def _reshape(g: Grower) -> None:
    shape = g.rng.choice([(B * g.tokens, WIDTH), (B, 1, g.tokens, 2, 4), (WIDTH, g.tokens, B)])
    g.add(ir.Reshape(g.hidden(), shape))


@maker("permute")
def _permute(g: Grower) -> None:
    g.add(ir.Permute(g.hidden(), tuple(g.rng.sample(range(3), 3))))


@maker("slice")
def _slice(g: Grower) -> None:
    start, stop, step = g.rng.choice([(0, g.tokens, 2), (g.tokens - 1, g.tokens, 1), (1, 1, 1)])
    g.add(ir.Slice(g.hidden(), 1, start, stop, step))


@maker("expand")
def _expand(g: Grower) -> None:
    g.add(ir.Expand(g.hidden(), (g.rng.choice([1, 3]), B, g.tokens, WIDTH)))


@maker("full")
def _full(g: Grower) -> None:
    shape = g.rng.choice([(), (3,), (B, g.tokens // 2 + 1), (0, 4)])
    g.add(ir.Full(shape, g.rng.choice([True, False, g.number()]), g.rng.choice(list(DType))))


@maker("opaque")
def _opaque(g: Grower) -> None:
    args = '[{"%": 0}, "a  # \\"b\\" : {c} \\\\", [1, null], {"k": {"dim": "2*T"}}]'
    out = g.rng.choice([(g.hidden().type,), (Tensor((), DType.I64), ir.Mask((B, 1, g.tokens)))])
    g.add(ir.Opaque((g.hidden(),), (g.weight(WIDTH),), "aten.odd // x", args, out))
