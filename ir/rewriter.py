"""The one way to change a module: rebuild it, op by op, through a `Rewriter`.

A rule sees each op after its operands were mapped, and returns the values that replace its results,
or None to keep it. Types follow by inference. A shared body is rebuilt once for all its layers. The
rewriter counts what fired, stops when the fuel is out, and drops weights that nothing reads.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from elidir.ir.errors import ElidirError
from elidir.ir.module import Derived, Entry, Function, Module, resolve
from elidir.ir.op import Body, Field, Op, Region, Value, Weight, fields_of
from elidir.ir.ops.structure import Layer
from elidir.ir.types import Tensor

Rule: TypeAlias = Callable[[Op, "Builder"], Sequence[Value] | None]


@dataclass
class Fuel:
    """A budget of rewrites, counted over a whole pipeline, for bisecting; None is unlimited."""

    limit: int | None = None
    used: int = 0
    log: list[str] = field(default_factory=list)

    def take(self, what: str) -> bool:
        """Spend one unit, or return False when none is left."""
        if self.limit is not None and self.used >= self.limit:
            return False
        self.used += 1
        self.log.append(what)
        return True


class Builder:
    """Builds one region from an old one; what a rule uses to look around and to emit."""

    def __init__(self, old: Region, rewriter: "Rewriter", scope: "_Scope") -> None:
        self.old, self.rewriter, self.scope = old, rewriter, scope
        self.ops: list[Op] = []
        self.loc = ""
        self._at = 0
        self._undo: list[tuple[Value, Value | None, Value]] = []
        self._known = set(old.params)
        self._kept = {r for o in old.ops for r in o.results} | self._known
        self._map: dict[Value, Value] = {}
        self._defs: dict[Value, Op] = {}
        self._uses = count_uses(old)
        self._reads: Counter[Value] = Counter()

    # -- looking

    def op_of(self, value: object) -> Op | None:
        """Return the op, already rebuilt, that defines a value; None for parameters and numbers."""
        return self._defs.get(value) if isinstance(value, Value) else None

    def uses(self, value: Value) -> int:
        """Return how often the old program reads what this value stands for (at most too many)."""
        return self._reads[value]

    def siblings(self, op: Op, kind: type[Op]) -> list[Op]:
        """Return the old ops of a kind, from this one on, that have all of its operands."""
        operands = set(op.operands())
        later = [o for o in self.old.ops[self._at :] if isinstance(o, kind)]
        return [o for o in later if {self.mapped(v) for v in o.operands()} == operands]

    def mapped(self, value: Value) -> Value:
        """Return what stands for an old value by now (itself, if nothing does yet)."""
        return self._map.get(value, value)

    # -- building

    def emit(self, op: Op) -> Value:
        """Append an op and return its only result."""
        return self.append(op)[0]

    def append(self, op: Op) -> tuple[Value, ...]:
        """Append an op and return its results; an op without a location gets the matched op's.

        That makes it another op: use the results returned here, not those of the op passed in.
        """
        if not op.loc and self.loc:
            op = op.clone(loc=self.loc)
        self.ops.append(op)
        self._defs.update((r, op) for r in op.results)
        return op.results

    def replace(self, old: Sequence[Value], new: Sequence[Value]) -> None:
        """Let `new` stand for `old` values from here on; an op with all results replaced goes."""
        if len(old) != len(new):
            raise ElidirError(f"a rule gave {len(new)} values for {len(old)}; give one for each")
        for a, b in zip(old, new, strict=True):
            if b not in self._defs and b not in self._known:
                raise ElidirError(f"a rule gave {b!r}, which it did not append", at=self.loc)
            self._undo.append((a, self._map.get(a), b))
            self._map[a] = b
            self._reads[b] += self._uses[a]

    def derive(
        self, name: str, type: Tensor, fn: str, *args: Weight | float, axis: int = 0
    ) -> Weight:
        """Return a new weight made of others, in every scope that shares this region."""
        return self.define(name, type, lambda scope: _derived(scope, fn, args, axis))

    def define(self, name: str, type: Tensor, make: Callable[[str], Derived]) -> Weight:
        """Return a new weight that is `make(scope)` in each scope that shares this region."""
        return self.scope.define(name, type, make)

    @property
    def scopes(self) -> Sequence[str]:
        """The scopes of weights that share this region."""
        return self.scope.scopes

    # -- the walk

    def rebuild(self, rule: Rule) -> Region:
        """Return the region rebuilt by a rule."""
        self.replace(self.old.params, self.old.params)
        for at, op in enumerate(self.old.ops):
            self._at = at
            if not op.results or not all(r in self._map for r in op.results):
                self._visit(op, rule)
        results = tuple(self._map[r] for r in self.old.results)
        return Region(self.old.params, tuple(self.ops), results)

    def _visit(self, old: Op, rule: Rule) -> None:
        op = self.remap(old)
        mark = len(self.ops)
        self.loc = op.loc
        self._undo.clear()
        values = rule(op, self)
        if values is None or not self.rewriter.fuel.take(f"{self.rewriter.by} at {_at(op)}"):
            self._roll_back(mark)
            self.replace(old.results, self.append(op))
            return
        self.replace(old.results, values)
        self.rewriter.hits[op.kind] += 1
        self.scope.commit()
        self._name_new()

    def _roll_back(self, mark: int) -> None:
        """Take back all that the last rule did: ops, replacements and derived weights."""
        for op in self.ops[mark:]:
            for result in op.results:
                self._defs.pop(result, None)
        del self.ops[mark:]
        for a, before, b in reversed(self._undo):
            self._reads[b] -= self._uses[a]
            if before is None:
                del self._map[a]
            else:
                self._map[a] = before
        self.scope.roll_back()

    def _name_new(self) -> None:
        """Pass names on to new values that have none; values of the old module stay as they are."""
        for a, _, b in self._undo:
            if b not in self._kept:
                b.name = b.name or a.name

    def remap(self, old: Op) -> Op:
        """Return the old op over mapped operands, and over the rebuilt body if it is a layer."""
        changes: dict[str, Any] = {}
        if isinstance(old, Layer) and (body := self.rewriter.body(old.body)) is not old.body:
            changes["body"] = body
        if not changes and all(self._map[v] is v for v in old.operands()):
            return old
        return old.clone(self._map.__getitem__, **changes)


def _derived(scope: str, fn: str, args: Sequence[Weight | float], axis: int) -> Derived:
    full = [resolve(scope, a.name) if isinstance(a, Weight) else float(a) for a in args]
    return Derived(fn, tuple(full), axis)


def _at(op: Op) -> str:
    return f"{op.kind} {op.loc}".strip()


class _Scope:
    """The weight scopes that a region is rebuilt for: those of a body's layers, or the module's."""

    def __init__(self, rewriter: "Rewriter", scopes: Sequence[str]) -> None:
        self.rewriter, self.scopes = rewriter, scopes
        self._new: list[str] = []

    def commit(self) -> None:
        self._new.clear()

    def roll_back(self) -> None:
        for name in self._new:
            del self.rewriter.weights[name]
        self._new.clear()

    def define(self, name: str, type: Tensor, make: Callable[[str], Derived]) -> Weight:
        for scope in self.scopes:
            self._add(resolve(scope, name), Entry(type, expr=make(scope)))
        return Weight(name, type)

    def _add(self, name: str, entry: Entry) -> None:
        if name not in self.rewriter.weights:
            self._new.append(name)
            self.rewriter.weights[name] = entry
        elif self.rewriter.weights[name] != entry:
            raise ElidirError(f"weight @{name} is there already; derive it under another name")


class Rewriter:
    """Rebuilds the functions and bodies of a module by one rule; `by` names the pass."""

    def __init__(
        self, module: Module, rule: Rule, *, by: str = "", fuel: Fuel | None = None
    ) -> None:
        self.module, self.rule, self.by = module, rule, by
        self.fuel = fuel or Fuel()
        self.hits: Counter[str] = Counter()
        self.weights = dict(module.weights)
        self._bodies: dict[int, Body] = {}

    def run(self) -> Module:
        """Return the rebuilt module, or the very same one if nothing fired."""
        functions = {n: self._function(f) for n, f in self.module.functions.items()}
        if not self.hits:
            return self.module
        return prune_weights(replace(self.module, functions=functions, weights=self.weights))

    def _function(self, function: Function) -> Function:
        region = Builder(function.region, self, _Scope(self, [""])).rebuild(self.rule)
        return Function(function.name, region)

    def body(self, body: Body) -> Body:
        """Return the rebuilt form of a shared body, made once."""
        if id(body) not in self._bodies:
            scopes = [layer.scope for layer in self.module.layers() if layer.body is body]
            hits = self.hits.total()
            region = Builder(body.region, self, _Scope(self, scopes)).rebuild(self.rule)
            changed = self.hits.total() > hits
            self._bodies[id(body)] = make_body(body.name, region) if changed else body
        return self._bodies[id(body)]


def rewrite(module: Module, rule: Rule, *, by: str = "", fuel: Fuel | None = None) -> Module:
    """Rebuild a module by one rule; the same object comes back if the rule never fired."""
    return Rewriter(module, rule, by=by, fuel=fuel).run()


# ---- small tools over regions


def count_uses(region: Region) -> Counter[Value]:
    """Return how often each value is read in a region, its results counting as reads."""
    uses = Counter(v for op in region.ops for v in op.operands())
    uses.update(region.results)
    return uses


def emit(ops: list[Op], op: Op) -> Value:
    """Append an op to a list, and return its first result."""
    ops.append(op)
    return op.results[0]


def make_body(name: str, region: Region) -> Body:
    """Return a body that lists just the weights that its ops read."""
    weights = dict.fromkeys(w for op in region.ops for w in op.weights())
    return Body(name, region, tuple(weights))


def split_bodies(module: Module, key: Callable[[Layer], Hashable]) -> Module:
    """Give the layers of one body that differ in `key` a body each; the same object if none do."""
    made: dict[tuple[int, Hashable], Body] = {}
    first: dict[int, Hashable] = {}

    def own(layer: Layer) -> Layer:
        mark, found = id(layer.body), key(layer)
        if found == first.setdefault(mark, found):
            return layer
        if (mark, found) not in made:
            made[mark, found] = Body(layer.body.name, copied(layer.body.region), layer.body.weights)
        return replace(layer, body=made[mark, found])

    functions = {n: Function(n, _with_layers(f.region, own)) for n, f in module.functions.items()}
    return replace(module, functions=functions) if made else module


def _with_layers(region: Region, own: Callable[[Layer], Layer]) -> Region:
    mapped = {p: p for p in region.params}
    ops = []
    for op in region.ops:
        new = op.clone(mapped.__getitem__)
        new = own(new) if isinstance(new, Layer) else new
        mapped.update(zip(op.results, new.results, strict=True))
        ops.append(new)
    return Region(region.params, tuple(ops), tuple(mapped[r] for r in region.results))


def copied(region: Region) -> Region:
    """Return a region of its own values that computes the same."""
    mapped = {p: Value(p.type, p.name) for p in region.params}
    params, ops = tuple(mapped.values()), []
    for op in region.ops:
        ops.append(op.clone(mapped.__getitem__))
        mapped.update(zip(op.results, ops[-1].results, strict=True))
    return Region(params, tuple(ops), tuple(mapped[r] for r in region.results))


def prune_weights(module: Module) -> Module:
    """Drop the weights that no op and no kept weight reads."""
    used: set[str] = set()
    for function in module.functions.values():
        used.update(w.name for op in function.region.ops for w in op.weights())
    for layer in module.layers():
        used.update(resolve(layer.scope, w.name) for w in layer.body.weights)
    todo = list(used)
    while todo:
        entry = module.weights.get(todo.pop())
        new = set(entry.expr.sources if entry and entry.expr else ()) - used
        used |= new
        todo += new
    kept = {n: e for n, e in module.weights.items() if n in used}
    return module if len(kept) == len(module.weights) else replace(module, weights=kept)


def flatten(function: Function) -> Region:
    """Return the function with every layer inlined: one region, weights by their full names."""
    ops: list[Op] = []
    mapped: dict[Value, Value] = {p: p for p in function.region.params}

    def inline(region: Region, values: dict[Value, Value], scope: str) -> None:
        for op in region.ops:
            if isinstance(op, Layer):
                inputs = (values[v] for v in op.inputs)
                inner = dict(zip(op.body.region.params, inputs, strict=True))
                inline(op.body.region, inner, resolve(scope, op.scope))
                outer = (inner[r] for r in op.body.region.results)
                values.update(zip(op.results, outer, strict=True))
                continue
            new = op.clone(values.__getitem__, lambda w: Weight(resolve(scope, w.name), w.type))
            ops.append(new)
            values.update(zip(op.results, new.results, strict=True))

    inline(function.region, mapped, "")
    results = tuple(mapped[r] for r in function.region.results)
    return Region(function.region.params, tuple(ops), results)


def _plain(f: Field, item: object) -> object:
    """Return a field as its text reads back: an integer in a float attribute is a float."""
    return float(item) if f.annotation is float and isinstance(item, int) else item


def structure(region: Region, params: Sequence[Value] | None = None) -> tuple[object, ...]:
    """Return a hashable key, equal for regions that differ only in names, locations and weights.

    Weights count by type and by order of first use, so two layers of one architecture are equal.
    """
    order: dict[object, int] = {}

    def number(item: object) -> object:
        """Return what stands for a field: values and weights by order of first use."""
        if isinstance(item, tuple):
            return tuple(map(number, item))
        if isinstance(item, Weight):
            return "@", order.setdefault(item, len(order)), item.type
        if isinstance(item, Value):
            return "%", order.setdefault(item, len(order))
        return repr(item) if isinstance(item, int | float) else item

    inputs = tuple(params if params is not None else region.params)
    key: list[object] = [tuple(v.type for v in inputs), number(inputs)]
    for op in region.ops:
        fields = tuple(number(_plain(f, getattr(op, f.name))) for f in fields_of(type(op)))
        key.append((op.kind, fields, number(op.results)))
    return (*key, number(region.results))
