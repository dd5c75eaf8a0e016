"""The int8 kernels at odd shapes: strided rows, empty batches, one row, beyond the grid."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elidir.backends import backend
from elidir.backends.cpu.native.rows import Rows
from elidir.backends.reference import UNARY, ZERO_POINT
from elidir.ir import DType, LinearInt8, QuantizeGated
from tests.backends.bench import Bench
from tests.backends.cases import CASES

few = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 70)


@few
@given(sizes, sizes, sizes, st.integers(0, 40), st.booleans())
def test_a_product_is_exact_before_it_is_scaled(
    rows: int, inner: int, outs: int, seed: int, added: bool
) -> None:
    """Powers of two as scales: every output is the integer sum, to the bit."""
    torch.manual_seed(seed)
    bench = Bench(DType.F32, B=1, T=rows)
    x = bench.ints(256, "B", "T", inner, dtype=DType.U8)
    w = bench.fixed(torch.randint(-127, 128, (outs, inner)), DType.I8)
    one = bench.fixed(torch.tensor(0.5), DType.F32)
    scales = bench.fixed(torch.full((outs,), 2.0), DType.F32)
    plus = bench.ints(100, "B", "T", outs, dtype=DType.F32) if added else None
    (found,) = bench.run(LinearInt8(x, w, scales, one, plus=plus), backends=["cpu"])
    wanted = (bench[x].double() - ZERO_POINT) @ bench[w].T + (bench[plus] if plus else 0)
    assert torch.equal(found.double(), wanted)


@few
@given(sizes, st.integers(1, 90), st.booleans(), st.integers(0, 40))
def test_rows_may_be_slices_of_a_product(rows: int, width: int, half: bool, seed: int) -> None:
    torch.manual_seed(seed)
    both = torch.randn(1, rows, 2 * width).to(torch.bfloat16 if half else torch.float32)
    gate, up = both.chunk(2, -1)
    columns = torch.randint(0, width, (5,))
    grid, apart = Rows("gated", 20.0, columns)(gate, up)
    wanted = UNARY["silu"](gate.double()) * up.double()
    assert float((grid.double() - (wanted * 20 + 128).clamp(0, 255)).abs().max()) < 0.51
    torch.testing.assert_close(apart.double(), wanted[..., columns], atol=0.02, rtol=0.01)


def test_an_empty_batch_has_an_empty_grid() -> None:
    grid, apart = Rows("plain", 1.0, torch.tensor([1]))(torch.empty(0, 3, 8))
    assert grid.shape == (0, 3, 8)
    assert apart.shape == (0, 3, 1)


def test_values_beyond_the_grid_are_clamped_and_no_number_is_its_middle() -> None:
    x = torch.tensor([[1e9, -1e9, float("inf"), -float("inf"), float("nan"), 0.5, 1.5, -0.0]])
    assert Rows("plain", 1.0)(x).tolist() == [[255, 0, 255, 0, 128, 128, 130, 128]]


def test_a_gate_without_a_kernel_falls_apart_and_gives_the_same() -> None:
    bench = Bench(DType.F32)
    op, _ = CASES["quantize.gated"]["quantize_gated-columns"](bench)
    assert isinstance(op, QuantizeGated)
    other = op.clone(act="elu")
    assert "elu" in backend("cpu").supports(other).reason
    program = bench.lower(other, backends=["cpu"], results=other.results)
    assert program.taken() == {"decomposed": 1, "reference": 2, "cpu": 1}
    found = program(*bench.inputs)
    wanted = bench.run(other, backends=["reference"], results=other.results)
    torch.testing.assert_close(found[1], wanted[1])
    assert int((found[0].int() - wanted[0].int()).abs().max()) <= 1
