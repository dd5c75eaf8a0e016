"""Memory of a phase: weights as stored, the cache, and the values alive at the worst moment.

A value lives from the op that makes it to its last reader; views live in what they look at. It is
what a backend needs at least: allocators, workspaces and copies of weights come on top.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from elidir.cost_models.formats import stored_bytes
from elidir.cost_models.op_work import VIEWS
from elidir.cost_models.phases import Phase
from elidir.cost_models.work import Precision, Sizes
from elidir.ir import (
    KV,
    Dim,
    DType,
    Entry,
    FfnExperts,
    FfnGated,
    Function,
    KvRead,
    Layer,
    Module,
    Op,
    Region,
    Tensor,
    Value,
    Weight,
    evaluate,
    product,
    resolve,
)

_ONE_BYTE = Fraction(8)
_NOWHERE = Value(Tensor((), DType.BOOL), "elsewhere")


@dataclass(frozen=True)
class Footprint:
    """Bytes held in a phase, by what they are."""

    weights: int
    kv: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.kv + self.activations


def footprint(module: Module, phase: Phase, precision: Precision) -> Footprint:
    """Return what a phase holds in memory."""
    live = _Live(Sizes(module.weights, "", precision), phase.bindings)
    region = phase.function.region
    caches = [v.type for v in region.results if isinstance(v.type, KV)]
    kv = sum(live.number(live.sizes.kv_bytes(c)) for c in caches)
    params = sum(live.bytes_of(p) for p in region.params)
    return Footprint(
        weight_bytes(module, phase.function, precision), kv, params + live.peak(region)
    )


def weight_bytes(module: Module, function: Function, precision: Precision) -> int:
    """Return the bytes of every weight that a function reads, shared ones once."""
    sizes = Sizes(module.weights, "", precision)
    names = _weight_names(module, function)
    return sum(sizes.weight_bytes(Weight(n, module.weights[n].type)) for n in names)


def parameters(module: Module, function: Function) -> int:
    """Return how many stored parameters a function reads, itself or through what is made of them.

    Shared ones count once, and so do those that several derived weights are made of.
    """
    read = _weight_names(module, function)
    roots = dict.fromkeys(root for name in read for root in _stored(name, module.weights))
    return sum(stored_bytes(Entry(module.weights[n].type), _ONE_BYTE) for n in roots)


def _stored(name: str, weights: Mapping[str, Entry]) -> Iterator[str]:
    """Yield the stored weights that a weight is, or is made of."""
    expr = weights[name].expr
    if expr is None:
        yield name
        return
    for source in expr.sources:
        yield from _stored(source, weights)


def _weight_names(module: Module, function: Function) -> list[str]:
    names: dict[str, None] = {}
    for op in function.region.ops:
        inner = op.body.weights if isinstance(op, Layer) else op.weights()
        scope = op.scope if isinstance(op, Layer) else ""
        names.update((_owner(resolve(scope, w.name), module.weights), None) for w in inner)
    return list(names)


def _owner(name: str, weights: Mapping[str, Entry]) -> str:
    """Return the weight whose memory this one is: an alias has none of its own."""
    expr = weights[name].expr
    if expr is not None and expr.fn in ("alias", "transpose"):
        return _owner(expr.sources[0], weights)
    return name


class _Live:
    """Counts the bytes that are alive op by op, once for each body."""

    def __init__(self, sizes: Sizes, bindings: Mapping[str, int]) -> None:
        self.sizes, self.bindings = sizes, dict(bindings)
        self.bodies: dict[int, int] = {}

    def number(self, dim: Dim) -> int:
        return evaluate(dim, self.bindings)

    def bytes_of(self, value: Value) -> int:
        return 0 if isinstance(value.type, KV) else self.number(self.sizes.bytes_of(value))

    def peak(self, region: Region) -> int:
        """Return the most that the values made in a region take at once; its parameters apart."""
        roots = _roots(region)
        last = {roots[v]: i for i, op in enumerate(region.ops) for v in op.operands()}
        last |= {roots[r]: len(region.ops) for r in region.results}
        alive: dict[Value, int] = {}
        most = 0
        for i, op in enumerate(region.ops):
            made = {r: self.bytes_of(r) for r in op.results if roots[r] is r}
            most = max(most, sum(alive.values()) + max(sum(made.values()), self.inside(op)))
            alive |= made
            alive = {v: n for v, n in alive.items() if last.get(v, -1) > i}
        return most

    def inside(self, op: Op) -> int:
        """Return what an op holds while it runs, its results included."""
        if isinstance(op, Layer):
            if id(op.body) not in self.bodies:
                self.bodies[id(op.body)] = self.peak(op.body.region)
            return self.bodies[id(op.body)]
        results = sum(self.bytes_of(r) for r in op.results)
        return results + self.number(_scratch(op, self.sizes))


def _roots(region: Region) -> dict[Value, Value]:
    """Map each value to the one whose memory it is; caches and weights are counted elsewhere."""
    roots: dict[Value, Value] = {p: p for p in region.params}
    for op in region.ops:
        if isinstance(op, VIEWS):
            source = None if isinstance(op, KvRead) else next(op.operands(), None)
            root = roots[source] if source is not None else _NOWHERE
            roots.update((r, root) for r in op.results)
        else:
            roots.update((r, r) for r in op.results)
    return roots


def _scratch(op: Op, sizes: Sizes) -> Dim:
    """Return the bytes of hidden values inside an op: gate and up of a feed-forward block."""
    if isinstance(op, FfnGated):
        rows, hidden = product(op.x.tensor.dims[:-1]), op.gate.type.dims[0]
        return 2 * rows * hidden * sizes.precision.held(op.x.tensor.dtype).bytes
    if isinstance(op, FfnExperts):
        rows, twice = product(op.choice.tensor.dims), op.gate_up.type.dims[1]
        return rows * twice * sizes.precision.held(op.x.tensor.dtype).bytes
    return 0
