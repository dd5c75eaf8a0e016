"""Finds the layers of a flat program and makes each a `layer` op, isomorphic ones sharing a body.

Structure comes from the residual stream alone. Names of modules serve only to name weights: those
of a layer get its scope and a local name, which isomorphic layers share.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from elidir.ir import (
    Body,
    Conv,
    Derived,
    Embed,
    Entry,
    Function,
    Layer,
    Module,
    Op,
    Region,
    Value,
    Weight,
    make_body,
    prune_weights,
    structure,
)
from elidir.passes.analyses import Segment, group_layers, stream_segments


def outline_layers(module: Module) -> tuple[Module, dict[str, str]]:
    """Return the module with the layers of each of its streams outlined, and its weights renamed.

    The second result gives each old name of a stored weight its new one.
    """
    region = module["forward"].region
    layers: list[Segment] = []
    taken: set[Op] = set()
    for source in _sources(region):
        found = group_layers(stream_segments(region, source))
        if found and not taken & {o for s in found for o in s.ops if any(o.operands())}:
            layers += found
            taken |= {o for s in found for o in s.ops}
    if not layers:
        return module, {n: n for n in module.weights}
    outliner = _Outliner(module, layers)
    module = outliner.run()
    direct = {w.name for o in module["forward"].region.ops for w in o.weights()}
    table, moved = bind_weights(module.weights, outliner.bindings, direct)
    return prune_weights(_rename_direct(replace(module, weights=table), moved)), moved


def _rename_direct(module: Module, moved: dict[str, str]) -> Module:
    """Rename the weights that `@forward` itself reads."""
    region = module["forward"].region
    rename = lambda w: Weight(moved[w.name], w.type)  # noqa: E731
    mapped: dict[Value, Value] = {p: p for p in region.params}
    ops = []
    for op in region.ops:
        ops.append(op.clone(mapped.__getitem__, rename))
        mapped.update(zip(op.results, ops[-1].results, strict=True))
    results = tuple(mapped[r] for r in region.results)
    return module.with_function(Function("forward", Region(region.params, tuple(ops), results)))


def _sources(region: Region) -> list[Value]:
    """Return where activations begin: embeddings of ids, convolutions of pixels, float inputs."""
    sources: list[Value] = []
    reached: set[Value] = set()
    params = set(region.params)
    for op in region.ops:
        reads = [v for v in op.operands() if v in params or v in reached]
        if isinstance(op, Embed | Conv) and reads:
            sources.append(op.results[0])
        elif reads:
            reached.update(op.results)
    floats = [p for p in region.params if p.tensor.dtype.is_float]
    return [*floats, *sources]


@dataclass
class _Outliner:
    """Rebuilds one flat region with layers."""

    module: Module
    layers: Sequence[Segment]
    bindings: dict[str, str] = field(default_factory=dict)
    bodies: dict[object, tuple[Body, tuple[str, ...]]] = field(default_factory=dict)

    def run(self) -> Module:
        region = self.module["forward"].region
        home = {o: i for i, s in enumerate(self.layers) for o in s.ops if any(o.operands())}
        escaping = self._escaping(region, home)
        last = {
            i: max(k for k, o in enumerate(region.ops) if home.get(o) == i)
            for i in set(home.values())
        }
        ops: list[Op] = []
        mapped: dict[Value, Value] = {p: p for p in region.params}
        waiting = dict(enumerate(self.layers))
        for k, op in enumerate(region.ops):
            i = home.get(op)
            if i is None:
                new = op.clone(mapped.__getitem__)
                ops.append(new)
                mapped.update(zip(op.results, new.results, strict=True))
            elif k == last[i]:
                ops.append(self._layer(i, waiting.pop(i), escaping[i], mapped))
        results = tuple(mapped[r] for r in region.results)
        function = Function("forward", Region(region.params, tuple(ops), results))
        return self.module.with_function(function)

    def _escaping(self, region: Region, home: dict[Op, int]) -> list[list[Value]]:
        """Return, for each layer, what is read outside it: first the stream."""
        made = {r: home[o] for o in region.ops if o in home for r in o.results}
        reads = [(v, home.get(o)) for o in region.ops for v in o.operands()]
        reads += [(v, None) for v in region.results]
        out = [[s.end] for s in self.layers]
        for value, reader in reads:
            i = made.get(value)
            if i is not None and i != reader and value not in out[i]:
                out[i].append(value)
        return out

    def _layer(
        self, index: int, segment: Segment, results: list[Value], mapped: dict[Value, Value]
    ) -> Layer:
        params = segment.params()
        scope = f"layers.{index}"
        region = Region((), segment.ops, tuple(results))
        key = structure(region, params)
        if key not in self.bodies:
            self.bodies[key] = self._body(params, region)
        body, local = self.bodies[key]
        for name, weight in zip(local, _weights_of(segment.ops), strict=True):
            self.bindings[f"{scope}.{name}"] = weight.name
        loc = _common_path([o.loc for o in segment.ops])
        inputs = tuple(mapped[v] for v in params)
        layer = Layer(body, inputs, scope=scope, loc=loc, names=("h",))
        mapped.update(zip(results, layer.results, strict=True))
        return layer

    def _body(self, params: Sequence[Value], region: Region) -> tuple[Body, tuple[str, ...]]:
        weights = _weights_of(region.ops)
        local = _local_names([w.name for w in weights])
        renamed = {w: Weight(n, w.type) for w, n in zip(weights, local, strict=True)}
        prefix = _common_path([o.loc for o in region.ops])
        mapped: dict[Value, Value] = {v: Value(v.type, v.name) for v in params}
        mapped[params[0]] = Value(params[0].type, "h")
        new_params = tuple(mapped[v] for v in params)
        ops = []
        for op in region.ops:
            loc = op.loc.removeprefix(prefix).lstrip(".")
            new = op.clone(mapped.__getitem__, renamed.__getitem__, loc=loc)
            ops.append(new)
            mapped.update(zip(op.results, new.results, strict=True))
        results = tuple(mapped[r] for r in region.results)
        return make_body("layer", Region(new_params, tuple(ops), results)), tuple(local)


def _weights_of(ops: Sequence[Op]) -> list[Weight]:
    return list(dict.fromkeys(w for o in ops for w in o.weights()))


def _local_names(names: Sequence[str]) -> list[str]:
    """Return names without what most of them begin with and without `.weight`, kept distinct."""
    prefix = _majority_prefix(names)
    local = [n.removeprefix(prefix).removesuffix(".weight") for n in names]
    counts = Counter(local)
    return [n if counts[n] == 1 else f"{n}.{i}" for i, n in enumerate(local)]


def _majority_prefix(names: Sequence[str]) -> str:
    """Return the longest dotted prefix of more than three quarters of the names."""
    prefixes = Counter(n[: i + 1] for n in names for i, c in enumerate(n) if c == ".")
    common = [p for p, n in prefixes.items() if 4 * n > 3 * len(names)]
    return max(common, key=len, default="")


def _common_path(paths: Sequence[str]) -> str:
    """Return the dotted path that all of the paths that are not empty begin with."""
    parts = [p.split(".") for p in paths if p]
    shared = takewhile(lambda at: len(set(at)) == 1, zip(*parts, strict=False))
    return ".".join(at[0] for at in shared)


def bind_weights(
    weights: dict[str, Entry], bindings: dict[str, str], direct: set[str]
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the weight table under the layers' names, and each stored weight's new name.

    A weight that one layer alone reads moves to the layer's name. One that is read in several
    places stays where it is, and the layers' names are aliases of it.
    """
    readers = Counter(bindings.values())
    shared = direct | {s for e in weights.values() if e.expr for s in e.expr.sources}
    moved = {old: new for new, old in bindings.items() if readers[old] == 1 and old not in shared}
    for old in weights:
        if old not in moved:
            moved[old] = f"shared.{old}" if old in bindings else old
    table = {moved[n]: _renamed(e, moved) for n, e in weights.items()}
    for new, old in bindings.items():
        if moved[old] != new:
            table[new] = Entry(weights[old].type, expr=Derived("alias", (moved[old],)))
    return table, moved


def _renamed(entry: Entry, moved: dict[str, str]) -> Entry:
    if entry.expr is None:
        return entry
    args = tuple(moved[a] if isinstance(a, str) else a for a in entry.expr.args)
    return replace(entry, expr=replace(entry.expr, args=args))
