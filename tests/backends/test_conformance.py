"""Every op, through every backend that takes it, against what its docstring says.

The cases and their expectations are in `cases.py`; here they are run at several sizes and in
several dtypes, and results must have the type that the op inferred.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from elidir.backends import No, Yes, backend, torch_dtype
from elidir.backends.cpu import KERNELS as CPU
from elidir.backends.cpu import attention, linear
from elidir.backends.cpu.native import tape
from elidir.backends.reference import KERNELS as REFERENCE
from elidir.backends.reference import FunctionalKV
from elidir.backends.tokens import Tokens
from elidir.ir import KV, OPS, DType, Op, Tensor, Type, evaluate
from tests.backends.bench import STEPS, TOLERANCE, Bench
from tests.backends.cases import CASES

SIZES = ({"B": 1, "T": 1}, {"B": 2, "T": 5}, {"B": 3, "T": 8})
INLINED = {"layer"}


def matrix(kinds: Any, dtypes: tuple[DType, ...]) -> list[Any]:
    """Return every case of these op kinds in these dtypes."""
    return [
        pytest.param(kind, name, dtype, id=f"{kind}-{name}-{dtype.value}")
        for kind in sorted(kinds)
        for name in CASES.get(kind, {})
        for dtype in dtypes
    ]


def check(op: Op, found: tuple[Any, ...], expected: Any, bench: Bench) -> None:
    """Compare results with what is expected, and with the types of the op."""
    wanted = expected if isinstance(expected, tuple) else (expected,)
    assert len(found) == len(wanted) == len(op.results)
    floats = {t.dtype for t in (*bench.types, *(r.type for r in op.results)) if is_float(t)}
    tolerance = max([TOLERANCE[d] for d in floats], default=0.0)
    for result, got, want in zip(op.results, found, wanted, strict=True):
        compare(got, want, STEPS[bench.dtype] if is_grid(result.type) else tolerance)
        if isinstance(result.type, Tensor):
            assert got.dtype is torch_dtype(result.type.dtype)
            assert list(got.shape) == [evaluate(d, bench.sizes) for d in result.type.dims]


def is_float(kind: Type) -> bool:
    """Whether this is a tensor or state of floats."""
    return isinstance(kind, Tensor | KV) and kind.dtype.is_float


def is_grid(kind: Type) -> bool:
    """Whether this is a tensor of bytes, whose expectation is where they lie before rounding."""
    return isinstance(kind, Tensor) and kind.dtype is DType.U8


def compare(got: Any, want: Any, tolerance: float) -> None:
    """Compare tensors, or states and sets by what they hold."""
    if isinstance(got, Tokens):
        assert got.index.masked_fill(~got.is_valid(), -1).tolist() == want
        return
    if isinstance(want, FunctionalKV):
        for mine, theirs in zip(got.read(), want.read(), strict=True):
            compare(mine, theirs, tolerance)
        return
    torch.testing.assert_close(
        got.double(), want.double(), atol=tolerance, rtol=tolerance, check_stride=False
    )


def test_every_op_has_a_reference_kernel_and_a_case() -> None:
    assert set(REFERENCE) == set(OPS) - INLINED
    assert set(CASES) == set(OPS) - INLINED
    assert set(CPU) <= set(OPS)


@pytest.mark.parametrize(("kind", "name", "dtype"), matrix(OPS, (DType.F64, DType.F32, DType.BF16)))
def test_reference(kind: str, name: str, dtype: DType) -> None:
    for sizes in SIZES:
        bench = Bench(dtype, **sizes)
        op, expected = CASES[kind][name](bench)
        check(op, bench.run(op, backends=["reference"]), expected, bench)


@pytest.mark.parametrize(("kind", "name", "dtype"), matrix(CPU, (DType.F32, DType.BF16)))
def test_cpu(kind: str, name: str, dtype: DType) -> None:
    for sizes in SIZES:
        bench = Bench(dtype, **sizes)
        op, expected = CASES[kind][name](bench)
        program = bench.lower(op, backends=["cpu"])
        takes = backend("cpu").supports(op)
        assert program.taken()["cpu"] == isinstance(takes, Yes)
        check(op, program(*bench.inputs), expected, bench)


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=lambda d: d.value)
def test_cpu_takes_the_ops_of_a_decoder(dtype: DType) -> None:
    """What carries a Llama's time is claimed, not left to the reference."""
    plain = {
        "linear-plain": "linear",
        "ffn_gated-silu": "ffn.gated",
        "norm_rms": "norm.rms",
        "attention_mask-triangle": "attention",
        "rope-half": "rope",
        "embed": "embed",
    }
    for name, kind in plain.items():
        op, _ = CASES[kind][name](Bench(dtype))
        assert backend("cpu").supports(op), kind


def test_a_large_bfloat16_weight_is_multiplied_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "multiplies_bf16", lambda: False)
    monkeypatch.setattr(linear, "BLOCK_ELEMENTS", 100)
    for name in ("linear-plain", "linear-bias"):
        bench = Bench(DType.BF16, B=3, T=4)
        op, expected = CASES["linear"][name](bench)
        check(op, bench.run(op, backends=["cpu"]), expected, bench)


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("attention", "attention_softcap", "softcap"),
        ("attention", "attention_sinks", "sinks"),
        ("softmax", "softmax", "no faster"),
    ],
)
def test_cpu_says_why_it_leaves_an_op(kind: str, name: str, reason: str) -> None:
    bench = Bench()
    op, _ = CASES[kind][name](bench)
    (assignment,) = bench.lower(op, backends=["cpu"]).assignment
    assert assignment.backend == "reference"
    assert reason in dict(assignment.refused)["cpu"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("rope-interleaved", "neighbouring"), ("rope-partial", "some of the channels")],
)
def test_without_a_compiler_cpu_leaves_some_ropes(
    monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr(tape, "available", lambda: No("there is no compiler"))
    op, _ = CASES["rope"][name](Bench())
    answer = backend("cpu").supports(op)
    assert not answer
    assert reason in answer.reason


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=lambda d: d.value)
@pytest.mark.parametrize("kind", sorted(CPU))
def test_cpu_without_a_compiler(monkeypatch: pytest.MonkeyPatch, kind: str, dtype: DType) -> None:
    monkeypatch.setattr(tape, "available", lambda: No("there is no compiler"))
    for case in CASES.get(kind, {}).values():
        bench = Bench(dtype)
        op, expected = case(bench)
        check(op, bench.run(op, backends=["cpu"]), expected, bench)


def test_cpu_leaves_dtypes_that_it_has_no_kernels_for() -> None:
    op, _ = CASES["linear"]["linear-plain"](Bench(DType.F64))
    answer = backend("cpu").supports(op)
    assert not answer
    assert "f64" in answer.reason


@pytest.mark.parametrize("has_instructions", [True, False])
@pytest.mark.parametrize("name", ["linear-plain", "linear-bias"])
def test_many_bfloat16_rows_with_and_without_instructions(
    monkeypatch: pytest.MonkeyPatch, name: str, has_instructions: bool
) -> None:
    monkeypatch.setattr(linear, "multiplies_bf16", lambda: has_instructions)
    bench = Bench(DType.BF16, B=3, T=4)
    op, expected = CASES["linear"][name](bench)
    check(op, bench.run(op, backends=["cpu"]), expected, bench)


@pytest.mark.parametrize("is_slow", [True, False])
def test_many_bfloat16_rows_are_attended_to_in_the_faster_type(
    monkeypatch: pytest.MonkeyPatch, is_slow: bool
) -> None:
    seen: list[torch.dtype] = []
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(attention, "is_slow_in_bf16", lambda: is_slow)
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, *rest, **names: seen.append(q.dtype) or attend(q, *rest, **names),
    )
    for case in CASES["attention"].values():
        for rows in (attention.WIDENED_ROWS - 1, attention.WIDENED_ROWS + 3):
            bench = Bench(DType.BF16, B=2, T=rows)
            op, expected = case(bench)
            check(op, bench.run(op, backends=["cpu"]), expected, bench)
    assert (torch.float32 in seen) == is_slow
    assert torch.bfloat16 in seen
