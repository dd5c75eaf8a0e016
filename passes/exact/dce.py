"""dce: dead code goes, down to the inputs and results of layers and the weights that nothing reads.

Ops go one by one, each for one unit of fuel; what then is dead across the borders of layers goes at
once (`liveness.py`). What a function takes and returns stays: that is the caller's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from elidir.ir import Module, Op, Region, prune_weights
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.exact.common import mutates
from elidir.passes.exact.liveness import Plan, plan_interfaces, plan_ops, rebuild
from elidir.passes.registry import register

Take: TypeAlias = Callable[[str, str], bool]


@register
@dataclass(frozen=True)
class Dce(Pass):
    """Remove ops that no result needs, unused inputs and results of layer bodies, unused weights.

    Before::

        %a = linear %x, @w : f32[B, T, 8]
        %b = linear %x, @v : f32[B, T, 8]
        return %a

    After::

        %a = linear %x, @w : f32[B, T, 8]
        return %a
    """

    name = "dce"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        """Remove what is dead, as far as the fuel goes."""

        def take(kind: str, at: str) -> bool:
            taken = cx.fuel.take(f"{self.name} at {kind} {at}".rstrip())
            cx.hits.update([kind] if taken else [])
            return taken

        return cx.result(eliminate(module, take))


def sweep(module: Module) -> Module:
    """Return a module without its dead code: for passes that leave some behind."""
    return eliminate(module, lambda kind, at: True)


def eliminate(module: Module, take: Take) -> Module:
    """Remove what is dead and `take` allows; the same object comes back if nothing went."""
    module = _apply(module, plan_ops(module, lambda region: live_ops(region, take)))
    plan = plan_interfaces(module)
    if plan.cuts(module) and take("layer interface", ""):
        module = _apply(module, plan)
    unused = sorted(set(module.weights) - set(prune_weights(module).weights))
    return prune_weights(module) if unused and take("weight", f"@{unused[0]}") else module


def _apply(module: Module, plan: Plan) -> Module:
    return rebuild(module, plan) if plan.cuts(module) else module


def live_ops(region: Region, take: Take) -> tuple[Op, ...]:
    """Return the ops that a region's results need; users go first, so that any limit is sound."""
    live, kept = set(region.results), []
    for op in reversed(region.ops):
        needed = mutates(op) or not live.isdisjoint(op.results)
        if needed or not take(op.kind, op.loc):
            kept.append(op)
            live.update(op.operands())
    return tuple(reversed(kept))
