"""The roofline: phases add, the right path is taken, and every cost says what it rests on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elidir.cost_models import (
    Arithmetic,
    Bound,
    Confidence,
    Cost,
    Model,
    Store,
    TargetError,
    Work,
    load_target,
)

P40 = Model(load_target("p40"))
F16, F32, I8 = (Arithmetic("matrix", d) for d in ("f16", "f32", "i8"))
VECTOR = Arithmetic("vector", "f32")


def test_phases_add_on_a_path_that_does_not_overlap() -> None:
    work = Work({I8: 10**12}, {Store.WEIGHTS: 10**9}, {}, 10)
    cost = P40.cost(work)
    assert cost.memory == pytest.approx(1 / (346 * 0.866))
    assert cost.compute == pytest.approx(1 / (47 * 0.26))
    assert cost.launch == pytest.approx(97e-6)
    assert cost.seconds == pytest.approx(cost.memory + cost.compute + cost.launch)
    assert cost.bound is Bound.COMPUTE


def test_phases_overlap_partly_on_cublas() -> None:
    """Within the measured 0.190 to 0.612 ms for M = 64 to 512 by 12288 squared (LLMCompass)."""
    model = Model(load_target("a100"))
    measured = {64: 0.190e-3, 128: 0.200e-3, 256: 0.319e-3, 512: 0.612e-3}
    for rows, seconds in measured.items():
        flops, moved = 2 * rows * 12288**2, 2 * (12288**2 + 2 * rows * 12288)
        cost = model.cost(Work({F16: flops}, {Store.WEIGHTS: moved}))
        assert max(cost.memory, cost.compute) < cost.seconds < cost.memory + cost.compute
        assert cost.seconds == pytest.approx(seconds, rel=0.25)


def test_f16_products_take_the_f32_path_on_pascal() -> None:
    """44 times faster in llama.cpp PR 3370: 478.9 against 10.8 tokens/s."""
    assert P40.choose(F16).name == "fp32-sgemm"
    assert P40.choose(I8).name == "dp4a-int8"


def test_only_paths_of_the_agent_are_taken() -> None:
    on_gpu = Model(load_target("m2"))
    assert on_gpu.choose(F32).name == "gpu-f32"
    on_cpu = Model(load_target({"base": "m2", "runs_on": "cpu"}))
    assert on_cpu.choose(F32).name == "cpu-amx"
    with pytest.raises(TargetError, match=r"does not know its agents\.cpu\.dram_gb_per_s; give"):
        on_cpu.cost(Work({F32: 1}))


def test_a_dtype_without_a_path_is_costed_as_another_and_reported() -> None:
    npu = Model(load_target("npu"))
    assert npu.choose(F32).dtype == "f16"
    (said,) = npu.stand_ins({F32, F16})
    assert said == "matrix.f32 is costed as f16 on hexagon-fp16: the target has no path for it"
    assert npu.cost(Work({F32: 10**15})).confidence is Confidence.LOW
    assert npu.cost(Work({F16: 10**15})).confidence is Confidence.MEDIUM


def test_work_on_one_path_adds_up() -> None:
    """Matrix and vector arithmetic share a path here: neither may hide the other."""
    both = P40.cost(Work({F32: 10**12, VECTOR: 10**6}))
    assert both.compute > P40.cost(Work({F32: 10**12})).compute > both.compute / 1.01


def test_assumed_numbers_lower_the_confidence() -> None:
    streaming = Work({}, {Store.WEIGHTS: 10**9})
    assert P40.cost(streaming).confidence is Confidence.MEDIUM
    assert Model(load_target("cpu")).cost(streaming).confidence is Confidence.LOW
    assert P40.cost(Work(launches=5)).confidence is Confidence.LOW


def test_a_sum_is_as_sure_as_what_takes_its_time() -> None:
    sure = Cost(seconds=1.0).trusted(Confidence.MEDIUM)
    guess = Cost(seconds=0.05).trusted(Confidence.LOW)
    assert (sure + guess).confidence is Confidence.MEDIUM
    assert (sure + guess * 4).confidence is Confidence.LOW


def test_energy_is_power_times_time_where_power_is_known() -> None:
    compute = P40.cost(Work({I8: 10**12}))
    assert P40.phase([compute]).joules == pytest.approx(200 * compute.seconds)
    assert P40.phase([P40.cost(Work({}, {Store.KV: 10**9}))]).joules is None


# Of one op: its arithmetic is all on one path, whose p holds.
amounts = st.integers(0, 10**13)
works = st.builds(
    lambda a, b, n: Work({I8: a}, {Store.WEIGHTS: b}, {}, n),
    amounts,
    amounts,
    st.integers(0, 1000),
)


@given(works, works)
def test_more_work_never_costs_less(a: Work, b: Work) -> None:
    for model in (P40, Model(load_target("a100"))):
        alone, both = model.cost(a), model.cost(a + b)
        assert both.seconds >= alone.seconds * (1 - 1e-9)
        assert both.seconds <= (alone.seconds + model.cost(b).seconds) * (1 + 1e-9)
