"""Liveness across the borders of layers, and a module rebuilt with just what a plan keeps.

A result of a shared body is live if any of its layers has a live use of it: found optimistically,
so that a value which layers only hand on to each other is dead.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from elidir.ir import (
    Body,
    Function,
    Layer,
    Module,
    Op,
    Region,
    Value,
    make_body,
    prune_weights,
)
from elidir.passes.exact.common import mutates


@dataclass(frozen=True)
class Plan:
    """The ops that each region keeps, and the parameters and results that each body keeps."""

    ops: dict[Region, tuple[Op, ...]]
    params: dict[Body, tuple[int, ...]]
    results: dict[Body, tuple[int, ...]]

    def cuts(self, module: Module) -> bool:
        """Whether the plan leaves anything out."""
        sizes = [len(r.ops) for _, r in module.regions()]
        sizes += [len(b.region.params) + len(b.region.results) for b in module.bodies]
        kept = [*self.ops.values(), *self.params.values(), *self.results.values()]
        return sum(map(len, kept)) < sum(sizes)


def plan_ops(module: Module, keep: Callable[[Region], tuple[Op, ...]]) -> Plan:
    """Return a plan that takes ops out of each region and leaves the borders of bodies alone."""
    return Plan(
        {region: keep(region) for _, region in module.regions()},
        {b: tuple(range(len(b.region.params))) for b in module.bodies},
        {b: tuple(range(len(b.region.results))) for b in module.bodies},
    )


def plan_interfaces(module: Module) -> Plan:
    """Return the plan that keeps what the results of the functions need, and nothing else."""
    live = _Live(module)
    live.solve()
    return Plan(
        {region: live.ops(region) for _, region in module.regions()},
        {b: live.params(b) for b in module.bodies},
        {b: tuple(sorted(live.used[b])) for b in module.bodies},
    )


@dataclass
class _Live:
    """Live values by region and live results by body, growing until nothing is added."""

    module: Module
    values: dict[Region, set[Value]] = field(default_factory=dict)
    used: dict[Body, set[int]] = field(default_factory=dict)

    def solve(self) -> None:
        self.used = {body: set() for body in self.module.bodies}
        self.values = {body.region: set() for body in self.used}
        self.values |= {f.region: set(f.region.results) for f in self.module.functions.values()}
        size = -1
        while size < (now := sum(map(len, self.values.values()))):
            size = now
            for function in self.module.functions.values():
                self._propagate(function.region)
            for body, used in self.used.items():
                self.values[body.region].update(body.region.results[i] for i in used)
                self._propagate(body.region)

    def _propagate(self, region: Region) -> None:
        live = self.values[region]
        for op in reversed(region.ops):
            if mutates(op) or not live.isdisjoint(op.results):
                live.update(self._reads(op, live))

    def _reads(self, op: Op, live: set[Value]) -> Iterable[Value]:
        if not isinstance(op, Layer):
            return op.operands()
        self.used[op.body].update(i for i, r in enumerate(op.results) if r in live)
        return [op.inputs[i] for i in self.params(op.body)]

    def params(self, body: Body) -> tuple[int, ...]:
        live = self.values[body.region]
        return tuple(i for i, p in enumerate(body.region.params) if p in live)

    def ops(self, region: Region) -> tuple[Op, ...]:
        live = self.values[region]
        return tuple(o for o in region.ops if mutates(o) or not live.isdisjoint(o.results))


# ---- rebuilding


def rebuild(module: Module, plan: Plan) -> Module:
    """Return the module with what the plan keeps."""
    bodies = {body: _body(body, plan) for body in module.bodies}
    functions = {
        name: Function(name, _rebuilt(f.region, plan, bodies))
        for name, f in module.functions.items()
    }
    return prune_weights(replace(module, functions=functions))


def _body(body: Body, plan: Plan) -> Body:
    old = body.region
    params = tuple(old.params[i] for i in plan.params[body])
    results = tuple(old.results[i] for i in plan.results[body])
    if (params, plan.ops[old], results) == (old.params, old.ops, old.results):
        return body
    return make_body(body.name, Region(params, plan.ops[old], results))


def _rebuilt(region: Region, plan: Plan, bodies: dict[Body, Body]) -> Region:
    values: dict[Value, Value] = {}
    ops: list[Op] = []
    for op in plan.ops[region]:
        new = _remapped(op, plan, bodies, values)
        kept = plan.results[op.body] if isinstance(op, Layer) else range(len(op.results))
        values.update(zip((op.results[i] for i in kept), new.results, strict=True))
        ops.append(new)
    return Region(region.params, tuple(ops), tuple(values.get(r, r) for r in region.results))


def _remapped(op: Op, plan: Plan, bodies: dict[Body, Body], values: dict[Value, Value]) -> Op:
    if not isinstance(op, Layer):
        moved = any(values.get(v, v) is not v for v in op.operands())
        return op.clone(lambda v: values.get(v, v)) if moved else op
    inputs = tuple(values.get(op.inputs[i], op.inputs[i]) for i in plan.params[op.body])
    names = tuple(op.results[i].name for i in plan.results[op.body])
    return op.clone(body=bodies[op.body], inputs=inputs, names=names)
