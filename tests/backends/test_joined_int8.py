"""Runs of ops with grids of int8 as one native call: they give what the reference gives."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elidir.backends import Executable, WeightStore, lower
from elidir.ir import (
    Add,
    DType,
    Linear,
    LinearInt8,
    Op,
    Quantize,
    QuantizeAddNorm,
    QuantizeGated,
    QuantizeNorm,
    Slice,
    Value,
    Weight,
    parse_module,
)
from elidir.passes import Pipeline
from tests.backends.bench import Bench
from tests.backends.test_executor import text
from tests.backends.test_joined import fed
from tests.passes.observing import observed

# Of the root mean square: a value on the edge of two steps may go either way, and the reference
# rounds to bfloat16 between ops.
NEAR = {DType.F32: 1e-3, DType.BF16: 0.03}


def scale_of(b: Bench, number: float = 0.03) -> Weight:
    return b.fixed(torch.tensor(number), DType.F32)


def columns_of(b: Bench, *numbers: int) -> Weight:
    return b.fixed(torch.tensor(numbers), DType.I64)


def product(b: Bench, grid: Value, outs: int, *, bias: bool = False, plus: Any = None) -> Op:
    """Return a product over a grid with a weight of its width."""
    inner = int(grid.tensor.dims[-1])
    weight = b.fixed(torch.randint(-127, 128, (outs, inner)), DType.I8)
    scales = b.fixed((torch.rand(outs) + 0.5) / 127 / inner**0.5, DType.F32)
    added = b.w(outs, dtype=b.dtype) if bias else None
    return LinearInt8(grid, weight, scales, scale_of(b), added, plus, b.dtype)


def chain(b: Bench) -> tuple[list[Op], tuple[Value, ...]]:
    """Return a block in int8 of widths that are no multiples of anything, and what it makes."""
    x, ones = b.x("B", "T", 37), b.w(37, dtype=DType.F32)
    first = QuantizeNorm(x, ones, scale_of(b), columns_of(b, 3, -1, 0, 36), 1e-5)
    grid, apart = first.results
    beside = Linear(apart, b.w(58, 4))
    both = product(b, grid, 58, bias=True, plus=beside.result)
    gate, up = (Slice(both.result, -1, i, i + 29) for i in (0, 29))
    gated = QuantizeGated(gate.result, up.result, scale_of(b), columns_of(b, *range(19)), "silu")
    more = Linear(gated.results[1], b.w(37, 19))
    down = product(b, gated.results[0], 37, plus=more.result)
    summed = QuantizeAddNorm(x, down.result, ones, scale_of(b), None, 1e-5)
    last = product(b, summed.results[1], 70)
    rest = Quantize(summed.results[0], scale_of(b), None)
    head = product(b, rest.result, 70, bias=True)
    out = Add(last.result, head.result)
    ops = [first, beside, both, gate, up, gated, more, down, summed, last, rest, head, out]
    return ops, (out.result, summed.results[0], gated.results[1])


def near(found: Any, wanted: Any, dtype: DType, factor: float = 1) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype is theirs.dtype
        assert float((mine - theirs).norm() / theirs.norm()) < factor * NEAR[dtype]


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=lambda d: d.value)
@pytest.mark.parametrize("sizes", [(1, 1), (1, 3), (2, 2), (1, 8), (3, 1)], ids=str)
def test_a_block_is_one_run(dtype: DType, sizes: tuple[int, int]) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        bench = Bench(dtype, B=sizes[0], T=sizes[1])
        ops, results = chain(bench)
        fast = bench.lower(*ops, backends=["cpu"], results=results)
        assert [(s.start, s.stop) for s in fast.stretches] == [(0, len(ops))]
        plain = bench.lower(*ops, backends=["reference"], results=results)
        near(fast(*bench.inputs), plain(*bench.inputs), dtype)


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=lambda d: d.value)
def test_a_grid_may_leave_a_run_and_may_enter_one(dtype: DType) -> None:
    """Out of a run it comes as a whole tensor."""
    bench = Bench(dtype, B=2, T=3)
    ops, _ = chain(bench)
    grids = [v for op in ops for v in op.results if v.tensor.dtype is DType.U8]
    fast = bench.lower(*ops, backends=["cpu"], results=grids)
    assert fast.stretches
    plain = bench.lower(*ops, backends=["reference"], results=grids)
    for mine, theirs in zip(fast(*bench.inputs), plain(*bench.inputs), strict=True):
        assert mine.dtype is torch.uint8
        off = (mine.int() - theirs.int()).abs()
        assert int(off.max()) <= 1 if dtype is DType.F32 else float(off.float().mean()) < 1
    given_one = Bench(dtype, B=2, T=3)
    grid = given_one.ints(256, "B", "T", 37, dtype=DType.U8)
    products = [product(given_one, grid, 21, bias=True) for _ in range(3)]
    total = Add(products[0].result, products[1].result)
    ops, results = [*products, total], (total.result, products[2].result)
    fast = given_one.lower(*ops, backends=["cpu"], results=results)
    assert [(s.start, s.stop) for s in fast.stretches] == [(0, 4)]
    wanted = given_one.run(*ops, backends=["reference"], results=results)
    near(fast(*given_one.inputs), wanted, dtype)


def test_grids_of_the_same_floats_are_the_references() -> None:
    """In a run, by itself, and by the reference: at most a step apart, and that at ties only."""
    for op_kind in ("plain", "norm"):
        bench = Bench(DType.F32, B=1, T=4)
        x, ones = bench.x("B", "T", 1001), bench.w(1001, dtype=DType.F32)
        scale = scale_of(bench)
        first = Quantize(x, scale) if op_kind == "plain" else QuantizeNorm(x, ones, scale)
        ops = [first, *(product(bench, first.results[0], 8) for _ in range(3))]
        results = (first.results[0], ops[-1].result)
        fast = bench.lower(*ops, backends=["cpu"], results=results)
        assert fast.stretches
        wanted = bench.run(*ops, backends=["reference"], results=results)[0].int()
        alone = bench.run(first, backends=["cpu"])[0]
        found = fast(*bench.inputs)[0]
        assert torch.equal(found, alone)
        off = (found.int() - wanted).abs()
        assert int(off.max()) <= (0 if op_kind == "plain" else 1)
        assert int(off.sum()) <= (0 if op_kind == "plain" else 4)


# ---- a whole decoder


def decoder(dtype: DType) -> tuple[Executable, Executable]:
    """Return the step of the small decoder in int8, by the cpu backend and by the reference."""
    normed = "%m = norm.rms %r, weight=@norm : f32[B, N, 16]\n    %f = ffn.gated %m"
    dense = parse_module(text().replace("%f = ffn.gated %r", normed))
    pipeline = Pipeline.parse("fuse-add-norm, extract-outliers{fraction=0.15 clip=4 force=true}")
    module = pipeline.run(dense, observations=observed(dense)).module
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: torch.randn(entry.type.dims, generator=generator) / entry.type.dims[-1] ** 0.5
        for name, entry in module.weights.items()
        if entry.expr is None
    }
    store = WeightStore(weights)
    fast = lower(module["step"], module, store, dtype=dtype)
    return fast, lower(module["step"], module, store, ("reference",), dtype)


def test_a_step_in_int8_is_one_run() -> None:
    fast, _ = decoder(DType.F32)
    kinds = {i.op.kind for i in fast.instructions}
    assert {"linear.int8", "quantize.norm", "quantize.add_norm", "quantize.gated"} <= kinds
    assert [(s.start, s.stop) for s in fast.stretches] == [(0, len(fast.instructions))]


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=lambda d: d.value)
@settings(deadline=None, max_examples=15)
@given(
    batch=st.integers(1, 4),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    seed=st.integers(0, 9),
)
def test_a_decoder_in_int8_gives_what_the_reference_gives(
    dtype: DType, batch: int, lengths: list[int], seed: int
) -> None:
    """Fed in any pieces, the first rows padded: runs of few rows and ops over many take turns."""
    fast, reference = decoder(dtype)
    found, wanted = fed(fast, batch, lengths, seed), fed(reference, batch, lengths, seed)
    # The reference rounds to bfloat16 before the grid, so some values lie a step apart there.
    near(found, wanted, dtype, 3 if dtype is DType.F32 else 6)
