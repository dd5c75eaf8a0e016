"""What becomes of each linear map: found in the module, looked up in what calibration saw, decided.

A group is the linear maps of one region that read one value; they share its grid. Each layer that
shares the region decides for itself, and may not be able to where another is: `Plan` answers by the
scope and the name of a weight. Nothing is rewritten here.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from elidir.ir import Layer, Linear, LinearSplit, Module, Op, Region, Value, resolve
from elidir.passes.base import Context
from elidir.passes.observed import LinearInput
from elidir.passes.outlier_extraction.allotment import Site, allot

Map: TypeAlias = Linear | LinearSplit
MAPS = (Linear, LinearSplit)


@dataclass(frozen=True)
class Choice:
    """The grid of one input: its step, the channels beside it, and the length of their list.

    `name` is the weight that the grid is named after; `room` is at least as long as `columns`.
    """

    name: str
    scale: float
    columns: tuple[int, ...]
    room: int


@dataclass
class Plan:
    """The choice for each weight, by its full name; the linear maps that stay are not in it."""

    choices: dict[str, Choice] = field(default_factory=dict)
    channels: int = 0
    extracted: int = 0

    def of(self, scope: str, op: Map) -> Choice | None:
        """Return the choice for a linear map in a scope."""
        return self.choices.get(resolve(scope, op.weight.name))

    def summary(self) -> str:
        """Return what is done in a few words."""
        share = 100 * self.extracted / max(self.channels, 1)
        return (
            f"{len(self.choices)} products in int8; {self.extracted} of {self.channels} channels "
            f"apart, {share:.2f} %"
        )

    def signature(self, layer: Layer) -> tuple[int | None, ...]:
        """Return what the layers that share a body must have in common: the rooms."""
        found = (self.of(layer.scope, op) for op in layer.body.region.ops if isinstance(op, MAPS))
        return tuple(None if choice is None else choice.room for choice in found)


@dataclass(frozen=True)
class Wish:
    """What is asked for: the share of channels apart, where grids end, and which maps."""

    fraction: float
    clip: float | None
    wanted: Callable[[Op], bool]


def make_plan(module: Module, observed: Mapping[str, LinearInput], wish: Wish, cx: Context) -> Plan:
    """Return the plan for all linear maps that were calibrated; remarks say which were not."""
    found = list(groups(module, wish.wanted))
    weighed = _weights(found, module, observed)
    sites: dict[tuple[str, ...], Site] = {}
    names: dict[tuple[str, ...], str] = {}
    for scope, group in found:
        key = tuple(resolve(scope, op.weight.name) for op in group)
        parts = [inputs_of(name, module, observed) for name in key]
        if reason := _obstacle(parts):
            cx.missed(group[0], reason, remedy=CALIBRATE)
            continue
        sites[key] = Site.of([m for maps in parts for m in maps], weighed[key[0]])
        names[key] = group[0].weight.name
    taken = allot(sites, wish.fraction)
    plan = Plan(channels=sum(s.width for s in sites.values()), extracted=sum(taken.values()))
    for key, k in taken.items():
        site = sites[key]
        clip = wish.clip or usual_clip(site.tokens)
        room = room_for(k, site.width)
        choice = Choice(names[key], site.scale(k, clip), site.columns(k), room)
        plan.choices.update(dict.fromkeys(key, choice))
    return plan


def _weights(
    found: list[tuple[str, list[Map]]], module: Module, observed: Mapping[str, LinearInput]
) -> dict[str, float]:
    """Return what an error of each group weighs: the share of its branch in the residual stream.

    The last map of a branch is added into the stream and knows that share; those before it take
    the same. What stands behind the last layer is added into nothing.
    """
    shares: dict[str, float] = {}
    weighed: dict[str, float] = {}
    for scope, group in reversed(found):
        name = resolve(scope, group[0].weight.name)
        maps = inputs_of(name, module, observed)
        share = maps[0].share if maps else None
        shares[scope] = share or shares.get(scope, 1.0 if scope else OUTPUT)
        weighed[name] = shares[scope]
    return weighed


# An error in the output is diluted by nothing that follows: on SmolLM2 an error of the same size
# cost so much more divergence there than in the residual stream.
OUTPUT = 16.0


def usual_clip(tokens: float) -> float:
    """Return where grids end, of the greatest value that was seen in so many tokens.

    Little text has not seen the values that still come, and much text has seen some that are too
    rare to be worth a coarser grid. On SmolLM2 1.2 was the best of three at 2,560 tokens, 1.0 at
    14,000 and 0.8 at 31,000.
    """
    return min(1.5, max(0.75, 1.3 - 0.13 * math.log2(max(tokens, 1.0) / 2560)))


CALIBRATE = "calibrate with text that reaches it"
TILE = 32


def room_for(k: int, width: int) -> int:
    """Return the length of the list of k channels: lists of few lengths let layers share a body.

    Products of 32 channels cost as much as those of fewer where the processor multiplies tiles.
    """
    step = max(1, min(TILE, width // 16))
    return -(-k // step) * step


def _obstacle(found: list[list[LinearInput]]) -> str:
    if not all(found):
        return "what goes into it was not calibrated"
    if not float(found[0][0].reach.max(initial=0.0)):
        return "what goes into it was zero in all of the calibration data"
    return ""


def inputs_of(name: str, module: Module, observed: Mapping[str, LinearInput]) -> list[LinearInput]:
    """Return what was seen of a weight, or of those that it is an alias or a stack of."""
    if name in observed:
        return [observed[name]]
    entry = module.weights.get(name)
    expr = entry.expr if entry else None
    if expr is None or expr.fn not in ("alias", "concat") or expr.axis != 0:
        return []
    parts = [inputs_of(source, module, observed) for source in expr.sources]
    return [m for maps in parts for m in maps] if all(parts) else []


def groups(module: Module, wanted: Callable[[Op], bool]) -> Iterator[tuple[str, list[Map]]]:
    """Yield the groups of wanted linear maps, each once for every scope that it runs in."""
    scopes: dict[Region, dict[str, None]] = {}
    for layer in module.layers():
        scopes.setdefault(layer.body.region, {})[layer.scope] = None
    for function in module.functions.values():
        scopes[function.region] = {"": None}
    for region, names in scopes.items():
        for group in _by_input(region, wanted).values():
            yield from ((scope, group) for scope in names)


def _by_input(region: Region, wanted: Callable[[Op], bool]) -> dict[Value, list[Map]]:
    found: dict[Value, list[Map]] = {}
    for op in region.ops:
        if isinstance(op, MAPS) and wanted(op):
            found.setdefault(op.x, []).append(op)
    return found
