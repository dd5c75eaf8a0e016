"""What every exact pass owes, on random modules: valid results, a fixed point, any limit of fuel.

The passes are those of `elidir.passes.exact`. That the outputs really are the same is tested where
programs run.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elidir.ir import (
    Fuel,
    Layer,
    Module,
    Op,
    Opaque,
    Stage,
    decompose,
    format_module,
    parse_module,
    rewrite,
    verify,
)
from elidir.passes import Pass, Pipeline
from elidir.passes.exact import (
    Canonicalize,
    Cse,
    Dce,
    FoldConstants,
    FuseAddNorm,
    FuseGatedFfn,
    FuseProjections,
)
from tests.strategies import modules

EXACT = (
    Canonicalize(),
    FoldConstants(),
    Cse(),
    Dce(),
    FuseProjections(),
    FuseGatedFfn(),
    FuseAddNorm(),
)
few = settings(max_examples=30)


@pytest.mark.parametrize("step", EXACT, ids=str)
@few
@given(modules())
def test_the_result_is_valid_and_a_fixed_point(step: Pass, module: Module) -> None:
    once = Pipeline.of(step).run(module).module
    text = format_module(once)
    assert format_module(parse_module(text)) == text
    assert Pipeline.of(step).run(once).module is once
    assert signature(once) == signature(module)


@few
@given(modules(), st.integers(0, 12))
def test_any_limit_of_fuel_gives_a_valid_module(module: Module, limit: int) -> None:
    fuel = Fuel(limit)
    Pipeline.of("lossless").run(module, fuel=fuel)
    assert fuel.used <= limit


@few
@given(modules())
def test_no_fuel_changes_nothing(module: Module) -> None:
    assert Pipeline.of("lossless").run(module, fuel=Fuel(0)).module is module


@few
@given(modules())
def test_the_preset_settles(module: Module) -> None:
    result = Pipeline.of("lossless").run(module)
    assert not [m for m in result.missed if m.by == "fixpoint"]
    assert Pipeline.of("lossless").run(result.module).module is result.module


@few
@given(modules())
def test_after_dce_everything_is_read(module: Module) -> None:
    module = Pipeline.of("dce").run(module).module
    for _, region in module.regions():
        reads = {v for op in region.ops for v in op.operands()} | set(region.results)
        assert not [op for op in region.ops if reads.isdisjoint(op.results)]
    for body in module.bodies:
        assert set(body.region.params) <= {
            v for op in body.region.ops for v in op.operands()
        } | set(body.region.results)


@few
@given(modules())
def test_after_cse_no_two_ops_are_equal(module: Module) -> None:
    module = Pipeline.of("cse").run(module).module
    for _, region in module.regions():
        plain = [op for op in region.ops if not isinstance(op, Layer | Opaque)]
        keys = [(op.kind, *op.operands(), *op.weights(), plain_fields(op)) for op in plain]
        assert len(set(keys)) == len(keys)


def plain_fields(op: Op) -> str:
    """The attributes and the numbers of an op, as text: 0, 0.0 and -0.0 differ."""
    return str([v for v in vars(op).values() if isinstance(v, int | float)]) + str(op.attributes())


@few
@given(modules())
def test_fused_ops_come_apart(module: Module) -> None:
    fused = {"linear.split", "ffn.gated", "add_norm"}
    fused |= {"quantize.norm", "quantize.add_norm", "quantize.gated"}
    plain = rewrite(module, decompose)
    verify(plain)
    assert fused.isdisjoint(op.kind for op in plain.ops())
    assert signature(plain) == signature(module)


def signature(module: Module) -> tuple[Stage, list[object]]:
    """What callers see: the stage, and the types of what each function takes and returns."""
    regions = {n: f.region for n, f in module.functions.items()}
    return module.stage, [
        (n, [p.type for p in r.params], [v.type for v in r.results]) for n, r in regions.items()
    ]
