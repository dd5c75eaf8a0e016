"""Products in int8: exact however many rows come, over grids made the same way everywhere."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elidir.backends import BackendError, backend
from elidir.backends.cpu import grids
from elidir.backends.cpu.alone import Alone
from elidir.backends.cpu.grids import Packed
from elidir.backends.cpu.native import tape
from elidir.backends.cpu.native.records import FUNCTIONS, Code
from elidir.backends.reference import UNARY, ZERO_POINT
from elidir.ir import DType, LinearInt8, Quantize, QuantizeGated
from tests.backends.bench import Bench
from tests.backends.cases import CASES

few = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 70)
PLAIN, GATED = 0, 3


def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the sums of a grid's values times a weight, in float64."""
    return (x.double() - ZERO_POINT) @ weight.double().T


def product(
    x: torch.Tensor,
    weight: Packed,
    outs: int,
    scale: float,
    plus: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the native product of a few rows, all scales one number."""
    scales, out = torch.full((outs,), scale), torch.empty(1, len(x), outs)
    fields: dict[str, Any] = {
        "weight": weight.address,
        "format": weight.block,
        "inner": x.shape[1],
        "fn": int(plus is not None),
        "extra": (scales.data_ptr(), weight.offsets.data_ptr(), 0, 0),
    }
    ins = [x[None]] if plus is None else [x[None], plus[None]]
    Alone(Code.LINEAR_INT8, (weight, scales), **fields)(ins, [out])
    return out[0]


def rounded(kind: int, inverse: float, *ins: torch.Tensor) -> torch.Tensor:
    """Return the native grid of some rows."""
    grid = torch.empty(ins[0].shape, dtype=torch.uint8)
    fields: dict[str, Any] = {"extra": (kind, 0, 0, 0), "limit": inverse, "fn": FUNCTIONS["silu"]}
    Alone(Code.QUANTIZE, **fields)(ins, [grid, None, None])
    return grid


# ---- products


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
    wanted = exact(bench[x], bench[w]) + (bench[plus] if plus else 0)
    assert torch.equal(found.double(), wanted)


@few
@given(
    st.integers(1, 9), st.integers(1, 200), st.integers(1, 200), st.integers(0, 40), st.booleans()
)
def test_the_native_product_of_few_rows_is_exact(
    rows: int, inner: int, outs: int, seed: int, added: bool
) -> None:
    torch.manual_seed(seed)
    x = torch.randint(0, 256, (rows, inner), dtype=torch.uint8)
    weight = torch.randint(-127, 128, (outs, inner), dtype=torch.int8)
    plus = torch.randint(-99, 99, (rows, outs)).float() if added else None
    found = product(x, grids._pack(weight), outs, 1.0, plus)
    assert torch.equal(found.double(), exact(x, weight) + (0 if plus is None else plus))


def test_the_greatest_sums_are_exact() -> None:
    x = torch.tensor([0, 255]).to(torch.uint8)[:, None].repeat(1, 8192)
    weight = torch.tensor([127, -127]).to(torch.int8)[:, None].repeat(1, 8192)
    found = product(x, grids._pack(weight), 2, 2.0**-7)
    assert torch.equal(found.double(), exact(x, weight) * 2.0**-7)


@pytest.mark.parametrize(("outs", "inner"), [(64, 128), (100, 130), (960, 576), (5, 7)])
def test_a_weight_is_kept_once_where_onednn_packs_it_as_expected(
    monkeypatch: pytest.MonkeyPatch, outs: int, inner: int
) -> None:
    """What oneDNN packed is read as it is, or there is a copy: either gives the same."""
    weight = torch.randint(-127, 128, (outs, inner), dtype=torch.int8)
    x = torch.randint(0, 256, (3, inner), dtype=torch.uint8)
    shared = grids._pack(weight)
    monkeypatch.setattr(grids, "_block", lambda *_: 0)
    apart = grids._pack(weight)
    assert apart.own is not None
    if torch.cpu._is_avx512_supported():
        assert shared.own is None
    assert torch.equal(product(x, shared, outs, 1.0), product(x, apart, outs, 1.0))


# ---- grids


@few
@given(sizes, st.integers(1, 90), st.booleans(), st.integers(0, 40))
def test_rows_may_be_slices_of_a_product(rows: int, width: int, half: bool, seed: int) -> None:
    torch.manual_seed(seed)
    both = torch.randn(1, rows, 2 * width).to(torch.bfloat16 if half else torch.float32)
    gate, up = both.chunk(2, -1)
    grid = rounded(GATED, 20.0, gate, up)
    wanted = UNARY["silu"](gate.double()) * up.double()
    assert float((grid.double() - (wanted * 20 + 128).clamp(0, 255)).abs().max()) < 0.51


def test_an_empty_batch_has_an_empty_grid() -> None:
    assert rounded(PLAIN, 1.0, torch.empty(0, 3, 8)).shape == (0, 3, 8)


def test_values_beyond_the_grid_are_clamped_and_no_number_is_its_middle() -> None:
    x = torch.tensor([[1e9, -1e9, float("inf"), -float("inf"), float("nan"), 0.5, 1.5, -0.0]])
    assert rounded(PLAIN, 1.0, x).tolist() == [[255, 0, 255, 0, 128, 128, 130, 128]]


def test_a_plain_grid_is_the_references_to_the_bit() -> None:
    x = torch.randn(7, 1001) * 3
    for inverse in (17.3, 1 / 0.0371, 2.0):
        wanted = ((x * inverse).round() + ZERO_POINT).clamp(0, 255).to(torch.uint8)
        assert torch.equal(rounded(PLAIN, inverse, x), wanted)


@pytest.mark.parametrize("column", [8, -9])
def test_a_column_that_is_no_channel_is_refused_before_anything_runs(column: int) -> None:
    bench = Bench(DType.F32)
    scale = bench.fixed(torch.tensor(0.5), DType.F32)
    op = Quantize(bench.x("B", "T", 8), scale, bench.fixed(torch.tensor([column]), DType.I64))
    with pytest.raises(BackendError, match="names a channel"):
        bench.lower(op, backends=["cpu"])


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


def test_the_library_can_be_built_here() -> None:
    assert tape.available()
