"""Modules from descriptions: a decoder's sizes in YAML, no weights, the same IR as a captured one.

So a model that does not fit on this machine is costed by the functions that cost every other one.
What is built is `@step` alone, over new and cached tokens. Descriptions ship in `descriptions/`.
"""

from dataclasses import dataclass
from pathlib import Path

from elidir.cost_models.errors import DescriptionError
from elidir.cost_models.formats import FORMATS
from elidir.cost_models.schema import Place, build, read_yaml
from elidir.ir import (
    KV,
    Add,
    Attention,
    Body,
    Derived,
    Dim,
    DType,
    Embed,
    Entry,
    FfnGated,
    Function,
    HeadsSplit,
    KvAppend,
    KvRead,
    Layer,
    LayerNorm,
    Linear,
    Mask,
    Module,
    Op,
    Region,
    RmsNorm,
    Rope,
    RopeTable,
    Stage,
    Symbol,
    Tensor,
    TokensTake,
    Type,
    Unary,
    Value,
    Weight,
    make_body,
    nearest,
    resolve,
    symbol,
    verify,
)

SHIPPED = Path(__file__).parent / "descriptions"
B, N, S, R = (symbol(name) for name in "BNSR")
COUNTS = "layers hidden heads ffn vocab max_positions kv_heads head_dim".split()
NORMS = ("rms", "layer")
POSITIONS = ("rope", "learned", "none")


@dataclass(frozen=True)
class Description:
    """The sizes of a decoder; `format` is how its matrices are stored, "" for `dtype`."""

    name: str
    source: str
    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab: int
    max_positions: int
    kv_heads: int = 0
    head_dim: int = 0
    activation: str = "silu"
    gated: bool = True
    norm: str = "rms"
    positions: str = "rope"
    bias: bool = False
    tied_head: bool = False
    dtype: str = "bf16"
    format: str = ""

    def __post_init__(self) -> None:
        """Fill in what follows from the rest."""
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.hidden // max(self.heads, 1))


def descriptions() -> list[str]:
    """Return the names of the descriptions that ship with elidir."""
    return sorted(f.stem for f in SHIPPED.glob("*.yaml"))


def load_description(name: str | Path) -> Description:
    """Return a description from its name or the path of a YAML file.

    Raises:
        DescriptionError: the name is unknown, or the file has a field that is missing or wrong.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if str(name) not in descriptions():
            hint = nearest(str(name), descriptions())
            raise DescriptionError(f"unknown description '{name}'{hint}; a YAML file will do too")
        path = SHIPPED / f"{name}.yaml"
    place = Place(str(path), DescriptionError)
    return _check(build(Description, read_yaml(path, place), place), place)


def _check(d: Description, place: Place) -> Description:
    for name in COUNTS:
        if getattr(d, name) < 1:
            raise place.at(name).wrong(f"is {getattr(d, name)}; it must be at least 1")
    if d.heads % d.kv_heads:
        raise place.at("kv_heads").wrong(f"is {d.kv_heads}, which does not divide {d.heads} heads")
    floats = [t.value for t in DType if t.is_float]
    choices = {"norm": NORMS, "positions": POSITIONS, "dtype": floats, "format": ("", *FORMATS)}
    for name, known in choices.items():
        if getattr(d, name) not in known:
            wrong = getattr(d, name)
            raise place.at(name).wrong(f"is '{wrong}'{nearest(wrong, known)}")
    return d


def describe(description: Description | str | Path) -> Module:
    """Return the module of a description (or of its name or path): one `@step`, no data."""
    if isinstance(description, Description):
        checked = _check(description, Place(description.name, DescriptionError))
    else:
        checked = load_description(description)
    module = _Decoder(checked).module()
    verify(module)
    return module


class _Decoder:
    """Builds the step function of a description, one shared body for all layers."""

    def __init__(self, d: Description) -> None:
        self.d, self.dtype = d, DType(d.dtype)
        self.ops: list[Op] = []

    def emit(self, op: Op) -> Value:
        self.ops.append(op)
        return op.results[0]

    def module(self) -> Module:
        d, body = self.d, self.body()
        params = self.params()
        ids, pos, kpos, mask, rows = (params[n] for n in ("ids", "pos", "kpos", "mask", "rows"))
        caches = [Value(self.cache(S), f"kv.{i}") for i in range(d.layers)]
        self.ops = []
        h = self.emit(Embed(ids, self.weight("embed", d.vocab, d.hidden)))
        if d.positions == "learned":
            places = Embed(pos, self.weight("pos", d.max_positions, d.hidden))
            h = self.emit(Add(h, self.emit(places)))
        tables = self.tables(pos)
        grown = []
        for i, kv in enumerate(caches):
            layer = Layer(body, (h, mask, *tables, kv), f"layers.{i}")
            self.ops.append(layer)
            h = layer.results[0]
            grown.append(layer.results[1])
        last = self.norm(self.emit(TokensTake(h, rows)), "norm")
        logits = self.emit(Linear(last, self.weight("head", d.vocab, d.hidden)))
        region = Region((ids, pos, kpos, mask, *caches, rows), tuple(self.ops), (logits, *grown))
        step = Function("step", region)
        weights = self.entries(region)
        return Module(d.name, {"step": step}, self.symbols(), weights, Stage.GRAPH)

    def symbols(self) -> dict[str, Symbol]:
        longest, origin = self.d.max_positions, "description"
        bounds = {"B": (1, None), "N": (1, longest), "S": (0, longest), "R": (1, None)}
        return {name: Symbol(lo, hi, origin) for name, (lo, hi) in bounds.items()}

    def params(self) -> dict[str, Value]:
        kinds: dict[str, Type] = {
            "ids": Tensor((B, N), DType.I64),
            "pos": Tensor((B, N), DType.I64),
            "kpos": Tensor((B, S + N), DType.I64),
            "mask": Mask((B, N, S + N)),
            "rows": Tensor((B, R), DType.I64),
        }
        return {name: Value(kind, name) for name, kind in kinds.items()}

    def tables(self, pos: Value) -> tuple[Value, ...]:
        if self.d.positions != "rope":
            return ()
        freqs = Weight("freqs", Tensor((self.d.head_dim // 2,), DType.F32))
        op = RopeTable(pos, freqs, dtype=self.dtype, names=("cos", "sin"))
        self.ops.append(op)
        return op.results

    def cache(self, length: Dim) -> KV:
        d = self.d
        return KV(B, d.kv_heads, length, d.head_dim, d.head_dim, self.dtype, rotated=True)

    # -- one layer

    def body(self) -> Body:
        d, half = self.d, self.d.head_dim // 2
        h = Value(Tensor((B, N, d.hidden), self.dtype), "h")
        mask, kv = Value(Mask((B, N, S + N)), "mask"), Value(self.cache(S), "kv")
        rope = d.positions == "rope"
        table = Tensor((B, N, half), self.dtype)
        tables = (Value(table, "cos"), Value(table, "sin")) if rope else ()
        self.ops = []
        mixed, grown = self.attention(h, mask, tables, kv)
        out = self.emit(Add(mixed, self.ffn(self.norm(mixed, "ffn_norm"))))
        return make_body("layer", Region((h, mask, *tables, kv), tuple(self.ops), (out, grown)))

    def attention(
        self, h: Value, mask: Value, tables: tuple[Value, ...], kv: Value
    ) -> tuple[Value, Value]:
        d, n = self.d, self.norm(h, "attn_norm")
        q, k, v = (
            self.emit(HeadsSplit(self.linear(n, f"attn.{x}", heads * d.head_dim), heads))
            for x, heads in (("q", d.heads), ("k", d.kv_heads), ("v", d.kv_heads))
        )
        if tables:
            cos, sin = tables
            q, k = self.emit(Rope(q, cos, sin)), self.emit(Rope(k, cos, sin))
        grown = self.emit(KvAppend(kv, k, v))
        read = KvRead(grown)
        self.ops.append(read)
        keys, values = read.results
        mixed = self.emit(Attention(q, keys, values, mask=mask, scale=d.head_dim**-0.5))
        return self.emit(Add(h, self.linear(mixed, "attn.o", d.hidden))), grown

    def ffn(self, x: Value) -> Value:
        d = self.d
        if d.gated:
            gate, up = (self.weight(f"ffn.{n}", d.ffn, d.hidden) for n in ("gate", "up"))
            down = self.weight("ffn.down", d.hidden, d.ffn)
            return self.emit(FfnGated(x, gate, up, down, act=d.activation))
        inner = self.emit(Unary(self.linear(x, "ffn.up", d.ffn), d.activation))
        return self.linear(inner, "ffn.down", d.hidden)

    def linear(self, x: Value, name: str, out: int) -> Value:
        bias = self.vector(f"{name}.bias", out) if self.d.bias else None
        return self.emit(Linear(x, self.weight(name, out, x.tensor.dims[-1]), bias))

    def norm(self, x: Value, name: str) -> Value:
        weight = self.vector(name, self.d.hidden)
        if self.d.norm == "rms":
            return self.emit(RmsNorm(x, weight))
        return self.emit(LayerNorm(x, weight, self.vector(f"{name}.bias", self.d.hidden)))

    # -- weights

    def weight(self, name: str, rows: int, columns: Dim) -> Weight:
        return Weight(name, Tensor((rows, columns), self.dtype))

    def vector(self, name: str, size: int) -> Weight:
        return Weight(name, Tensor((size,), self.dtype))

    def entries(self, region: Region) -> dict[str, Entry]:
        table: dict[str, Entry] = {}
        for op in region.ops:
            scope = op.scope if isinstance(op, Layer) else ""
            found = op.body.weights if isinstance(op, Layer) else op.weights()
            table.update((resolve(scope, w.name), self.entry(w)) for w in found)
        if self.d.tied_head:
            table["head"] = Entry(table["head"].type, expr=Derived("alias", ("embed",)))
        return table

    def entry(self, weight: Weight) -> Entry:
        matrix = len(weight.type.dims) == 2
        return Entry(weight.type, format=self.d.format if matrix else "")
