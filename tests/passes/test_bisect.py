"""Bisecting finds the very rewrite that was made wrong, wherever it comes in the pipeline.

The culprit is a pass that is right but for one location.
"""

from dataclasses import dataclass

import pytest

from elidir.ir import Add, Builder, Module, Mul, Op, Value
from elidir.passes import (
    BisectError,
    Context,
    Fixpoint,
    Invariant,
    Pass,
    PassResult,
    Pipeline,
    bisect,
)
from elidir.passes.exact import Canonicalize, Cse, Dce
from tests.passes.samples import Twice, adds


@dataclass(frozen=True)
class Buggy(Pass):
    """Writes x + x as x * 2, but at one location as x * 3."""

    name = "buggy"
    invariant = Invariant.EXACT

    wrong: str = ""

    def run(self, module: Module, cx: Context) -> PassResult:
        def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
            if not isinstance(op, Add) or op.a is not op.b:
                return None
            return (b.emit(Mul(op.a, 3 if op.loc == self.wrong else 2)),)

        return cx.result(cx.rewrite(module, rule))


def is_good(module: Module) -> bool:
    return ", 3 :" not in str(module)


@pytest.mark.parametrize(("wrong", "nth"), [("first", 1), ("second", 2), ("third", 3)])
def test_the_culprit_is_found(wrong: str, nth: int) -> None:
    pipeline = Pipeline((Canonicalize(), Fixpoint(3, (Buggy(wrong), Cse(), Dce()))))
    culprit = bisect(adds(), pipeline, is_good)
    assert (culprit.by, culprit.nth, culprit.at) == ("buggy", nth, f"add {wrong}")
    assert str(culprit) == f"rewrite {nth} of buggy, at add {wrong} (fuel {nth})"


def test_the_count_is_per_pass() -> None:
    pipeline = Pipeline((Twice(), Undo(), Buggy("second")))
    culprit = bisect(adds(), pipeline, is_good)
    assert (culprit.by, culprit.nth, culprit.fuel) == ("buggy", 2, 8)


@dataclass(frozen=True)
class Undo(Pass):
    """Writes x * 2 as x + x."""

    name = "undo"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
            return (b.emit(Add(op.a, op.a)),) if isinstance(op, Mul) else None

        return cx.result(cx.rewrite(module, rule))


def test_there_must_be_something_to_find() -> None:
    with pytest.raises(BisectError, match="nothing to bisect"):
        bisect(adds(), "cse, dce", is_good)
    with pytest.raises(BisectError, match="bad without any rewrite"):
        bisect(adds(), Twice(), lambda module: False)
