"""Passes and modules that the tests of this folder share: small, and registered by nobody.

`registered` enters the sample passes for the time of a test module; nothing here is a test.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal

import pytest

from elidir.ir import Add, Builder, Module, Mul, Op, Stage, Value, parse_module
from elidir.passes import (
    Context,
    Invariant,
    Pass,
    PassResult,
    PipelineError,
    Range,
    Ratio,
    registry,
)


class Scorer(Enum):
    LAST_ROW = "last-row"
    KEY_NORM = "key norm"


@dataclass(frozen=True)
class Prune(Pass):
    """A pass with an option of every type, for a module with `@step`."""

    name = "prune"
    invariant = Invariant.QUALITY
    requires = (Stage.GRAPH,)

    keep: Ratio = 1.0
    at: tuple[int, ...] | Literal["calibrated"] = "calibrated"
    scorer: Scorer = Scorer.LAST_ROW
    title: str = ""
    revive: bool = True
    limit: Annotated[int, Range(ge=1)] | None = None

    def run(self, module: Module, cx: Context) -> PassResult:
        return cx.unchanged()


@dataclass(frozen=True)
class Stepify(Pass):
    """Leads to the graph stage, by calling @forward @step."""

    name = "stepify"
    invariant = Invariant.EXACT
    requires = (Stage.RAISED,)
    produces = Stage.GRAPH

    def run(self, module: Module, cx: Context) -> PassResult:
        step = module["forward"]
        functions = module.functions | {"step": type(step)("step", step.region)}
        return cx.result(
            Module(module.name, functions, module.symbols, module.weights, Stage.GRAPH)
        )


@dataclass(frozen=True)
class Twice(Pass):
    """Writes each `add` of a value to itself as a product with two: correct."""

    name = "twice"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
            doubles = isinstance(op, Add) and op.a is op.b
            return (b.emit(Mul(op.a, 2)),) if doubles else None

        return cx.result(cx.rewrite(module, rule))


@dataclass(frozen=True)
class Crash(Pass):
    """Fails, as a defect would."""

    name = "crash"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        raise KeyError("gone")


@dataclass(frozen=True)
class Spoil(Pass):
    """Returns a module whose function is gone, which the verifier sees."""

    name = "spoil"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        return cx.result(Module(module.name, {}, module.symbols, module.weights))


@dataclass(frozen=True)
class Picky(Pass):
    """Needs an observation, and an option that has no default."""

    name = "picky"
    invariant = Invariant.BOUNDED
    needs = ("importance",)

    layer: int

    def run(self, module: Module, cx: Context) -> PassResult:
        if self.layer >= cx.observation("importance"):
            raise PipelineError(f"pass 'picky' has no layer {self.layer}; give a lower one")
        return cx.unchanged()


@contextmanager
def registered() -> Iterator[None]:
    """Enter the sample passes into the registry until the block ends."""
    registry.passes()
    with pytest.MonkeyPatch.context() as patch:
        for cls in (Prune, Stepify, Twice, Crash, Spoil, Picky):
            patch.setitem(registry._PASSES, cls.name, cls)
        yield


ADDS = """module @adds stage=raised {
  sym T in [1, 512]
  weight @w: f32[8, 8] sha=01
  func @forward(%x: f32[T, 8]) {
    %a = add %x, %x : f32[T, 8]  # first
    %b = linear %a, @w : f32[T, 8]
    %c = add %b, %b : f32[T, 8]  # second
    %d = add %c, %c : f32[T, 8]  # third
    %e = add %d, %x : f32[T, 8]
    return %e
  }
}
"""


def adds() -> Module:
    """Return a module with three adds of a value to itself."""
    return parse_module(ADDS)
