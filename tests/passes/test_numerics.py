"""Exact passes keep the numbers: a golden module gives the same before, after, and taken apart.

Programs run on the reference backend with random weights and inputs, derived weights included; the
families of real models are compared where they are captured. This is the only file here with torch.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from elidir.ir import (
    Builder,
    DType,
    Mask,
    Module,
    Op,
    Tensor,
    TokensRevive,
    Value,
    decompose,
    evaluate,
    rewrite,
)
from elidir.passes import Invariant, Pipeline, find_pass, read_reproducer

FOLDER = Path(__file__).parent
GOLDEN = sorted(
    path
    for path in FOLDER.glob("*/*.ir")
    if find_pass(path.parent.name.replace("_", "-")).invariant is Invariant.EXACT
)
SIZES = {"B": 2, "T": 5, "R": 3}

pytestmark = pytest.mark.slow  # it imports torch, which `make fast` does without


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_outputs_stay_the_same(path: Path) -> None:
    import torch

    pipeline, module = read_reproducer(path.read_text().partition("// ----\n")[0])
    after = pipeline.run(module).module
    inputs = [example(p) for p in module["forward"].region.params]
    wanted = outputs(module, module, inputs)
    for changed in (after, rewrite(after, decompose)):
        for a, b in zip(wanted, outputs(changed, module, inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_numerics_see_what_comes_back() -> None:
    """A pass that lets fewer come back, and says that it is exact, is found out."""
    from elidir.frontends import Oracle

    text = (FOLDER / "prune_tokens" / "layers.ir").read_text().partition("// ----\n")[0]
    _, module = read_reproducer(text)
    prune = Pipeline.parse("prune-tokens{at=(1,) at_least=3 above=0 force=true}")
    module = prune.run(module).module

    def fewer(op: Op, b: Builder) -> tuple[Value, ...] | None:
        many = isinstance(op, TokensRevive) and op.most > 1
        return b.append(replace(op, most=1)) if many else None

    oracle = Oracle.of(module)
    assert oracle.difference(module) is None
    assert oracle.difference(rewrite(module, fewer)) is not None


def outputs(module: Module, source: Module, inputs: list[Any]) -> list[Any]:
    """Run `@forward` with weights drawn for the table of `source`."""
    import torch

    from elidir.backends import WeightStore, lower

    torch.manual_seed(1)
    stored = {n: e for n, e in source.weights.items() if e.expr is None}
    store = WeightStore({n: torch.randn(*e.type.dims) for n, e in stored.items()})
    return list(lower(module["forward"], module, store, backends=())(*inputs))


def example(param: Value) -> Any:
    """Draw an input of a type: floats at random, positions in order, all valid, a causal mask."""
    import torch

    shape = [evaluate(d, SIZES) for d in param.type.dims]
    if isinstance(param.type, Mask):
        return torch.ones(shape, dtype=torch.bool).tril()
    tensor: Tensor = param.tensor
    if tensor.dtype is DType.BOOL:
        return torch.ones(shape, dtype=torch.bool)
    if not tensor.dtype.is_float:
        return torch.arange(shape[-1]).expand(shape)
    return torch.randn(shape).to(torch.float16 if tensor.dtype is DType.F16 else torch.float32)
