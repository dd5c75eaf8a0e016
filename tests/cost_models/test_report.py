"""Reports: goldens of the JSON and the text, and the sums and marks that hold in any of them."""

import json
from pathlib import Path

import pytest

from elidir.cost_models import (
    CostError,
    Description,
    Report,
    Snapshot,
    describe,
    load_target,
    report,
    snapshot,
    waterfall,
)
from elidir.ir import DType, Function, Module, Opaque, Region, Symbol, Tensor, Unary, Value, symbol

GOLDEN = Path(__file__).parent / "golden"


def compare(name: str, text: str, update: bool) -> None:
    file = GOLDEN / name
    if update:
        file.write_text(text)
    assert file.read_text() == text


def golden(tiny: Description) -> Report:
    module = describe(tiny)
    steps = [snapshot(name, module, "p40", prompt=64) for name in ("raised", "fuse")]
    return report(module, "p40", prompt=64, new=16, waterfall=steps)


def test_json_is_golden(tiny: Description, request: pytest.FixtureRequest) -> None:
    compare("tiny-p40.json", golden(tiny).to_json() + "\n", request.config.getoption("update"))


def test_text_is_golden(tiny: Description, request: pytest.FixtureRequest) -> None:
    text = golden(tiny).to_text()
    compare("tiny-p40.txt", text, request.config.getoption("update"))


def test_text_fits_a_hundred_columns() -> None:
    text = report("llama-3-70b", ["p40", "a100", "m2", "npu", "cpu"], dtype="i8").to_text()
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("target", ["p40", "a100", "m2", "npu", "cpu"])
def test_rows_and_layers_sum_to_their_phase(target: str) -> None:
    (found,) = report("smollm2-135m", target).targets
    assert [p.name for p in found.phases] == ["prefill", "decode"]
    for phase in found.phases:
        assert sum(r.seconds for r in phase.rows) == pytest.approx(phase.seconds)
        assert sum(r.share for r in phase.rows) == pytest.approx(1)
        outside = sum(r.seconds for r in phase.rows if r.path == "@step")
        layers = sum(layer.seconds for layer in phase.layers)
        assert layers + outside == pytest.approx(phase.seconds)
        assert len(phase.layers) == 30


def test_every_time_has_its_bound_and_confidence() -> None:
    data = report("smollm2-135m", ["p40", "npu"]).to_dict()

    def walk(item: object) -> int:
        if isinstance(item, list):
            return sum(map(walk, item))
        if not isinstance(item, dict):
            return 0
        if "seconds" in item:
            assert item["bound"] in ("compute", "memory", "launch", "transfer")
            assert item["confidence"] in ("low", "medium", "high")
        return ("seconds" in item) + sum(map(walk, item.values()))

    assert walk(data) > 100
    assert json.loads(json.dumps(data)) == data


def test_decode_reads_every_weight_and_the_cache_once() -> None:
    (found,) = report("llama-3-8b", "a100", context=1000).targets
    decode = found.phases[1]
    weights = decode.memory.weights - 128256 * 4096 * 2  # of the embedding, one row is read
    cache = 2 * 32 * 8 * 128 * 1001 * 2
    assert decode.bytes == pytest.approx(weights + cache, rel=0.01)
    assert decode.bytes > weights + cache


def test_total_is_the_prompt_and_every_token_after_the_first() -> None:
    whole = report("smollm2-135m", "p40", prompt=100, new=11).targets[0].total.seconds
    first = report("smollm2-135m", "p40", prompt=100, new=1).targets[0].total.seconds
    steps = [
        report("smollm2-135m", "p40", prompt=100, context=100 + i).targets[0].phases[1].seconds
        for i in range(10)
    ]
    assert whole == pytest.approx(first + sum(steps), rel=1e-3)


def test_energy_is_known_or_says_why() -> None:
    found = report("smollm2-135m", ["p40", "m2", "a100"]).targets
    p40, m2, a100 = (t.phases[0] for t in found)
    assert p40.joules == pytest.approx(200 * p40.seconds)
    assert m2.joules is None
    assert m2.joules_unknown == "no source gives power.compute_bound_w of m2"
    assert a100.joules_confidence is not None
    assert a100.joules_confidence.name == "LOW"  # taken over from another card


def test_a_model_that_does_not_fit_says_so() -> None:
    found = report("llama-3-70b", ["p40", "a100", "npu", "cpu"]).targets
    assert [t.total.fits for t in found] == [False, False, False, None]
    assert "DOES NOT FIT" in report("llama-3-70b", "p40").to_text()
    small = report("llama-3-70b", "a100", dtype="i8").targets[0]
    assert small.total.fits
    assert any("one graph addresses 4 GB" in n for n in found[2].notes)


def test_assumptions_come_with_their_sources() -> None:
    (found,) = report("smollm2-135m", "npu").targets
    by_field = {a.field: a for a in found.assumptions}
    assert by_field["agents.npu.launch_us"].value is None
    assert by_field["agents.npu.dram_efficiency"].kind == "measured"
    assert "HeteroInfer" in by_field["agents.npu.dram_efficiency"].source
    assert all(a.source for a in found.assumptions)


def test_waterfall_is_of_its_own_target(tiny: Description) -> None:
    module = describe(tiny)
    steps = [snapshot("raised", module, t, prompt=64) for t in ("p40", "m2")]
    found = report(module, ["p40", "m2", "npu"], prompt=64, waterfall=steps).targets
    assert [[s.target for s in t.waterfall] for t in found] == [["p40"], ["m2"], []]
    phases = found[0].phases
    assert found[0].waterfall[0] == Snapshot(
        "raised",
        "p40",
        phases[0].seconds,
        phases[0].bound,
        phases[1].seconds,
        phases[1].bound,
        found[0].waterfall[0].confidence,
    )


def test_waterfall_follows_a_pipeline(tiny: Description) -> None:
    module, opaque = describe(tiny), opaque_module()
    rows = [("input", opaque), ("incrementalize", module)]
    found = waterfall(rows, ["p40", "m2"], prompt=64)
    assert [(s.name, s.target) for s in found] == [
        ("input", "p40"),
        ("input", "m2"),
        ("incrementalize", "p40"),
        ("incrementalize", "m2"),
    ]
    assert found[2] == snapshot("incrementalize", module, "p40", prompt=64)


def test_symbols_that_nobody_names_are_as_long_as_the_prompt() -> None:
    kind = Tensor((symbol("Rows"), symbol("Len"), symbol("Extra")), DType.F32)
    x = Value(kind, "x")
    op = Unary(x, "exp")
    symbols = {"Rows": Symbol(1, 8), "Len": Symbol(1, None), "Extra": Symbol(1, 20)}
    module = Module("m", {"forward": Function("forward", Region((x,), (op,), op.results))}, symbols)
    whole = report(module, "p40", batch=2, prompt=30, new=0)
    assert whole.targets[0].phases[0].flops == 2 * 30 * 20
    guessed = [note for note in whole.notes if "bindings" in note]
    assert guessed == ["Extra = 20, as long as the prompt: else give bindings"]
    (given,) = report(module, "p40", batch=2, prompt=30, new=0, bindings={"Extra": 7}).targets
    assert given.phases[0].flops == 2 * 30 * 7


def opaque_module() -> Module:
    kind = Tensor((symbol("B"), symbol("T")), DType.F32)
    x = Value(kind, "x")
    op = Opaque((x,), (), "aten.erfinv.default", "[]", (kind,))
    region = Region((x,), (op,), op.results)
    symbols = {"B": Symbol(1, 8), "T": Symbol(1, 1000)}
    return Module("odd", {"forward": Function("forward", region)}, symbols)


def test_without_a_cache_each_token_runs_the_forward() -> None:
    found = report(opaque_module(), "p40", prompt=99, context=99)
    assert [p.name for p in found.targets[0].phases] == ["forward", "decode without a cache"]
    assert found.targets[0].phases[1].bytes == 2 * 100 * 4
    assert any("there is no @step" in n for n in found.notes)


def test_the_longest_prompt_may_be_asked_without_a_cache() -> None:
    module = opaque_module()
    found = report(module, "p40", prompt=1000, new=0)
    assert [p.name for p in found.targets[0].phases] == ["forward"]
    (only,) = waterfall([("", module)], "p40", prompt=1000)
    assert only.decode_seconds == only.prefill_seconds


def test_what_is_not_modelled_is_named_and_trusted_little() -> None:
    found = report(opaque_module(), "p40", new=0)
    (unknown,) = found.not_modelled
    assert (unknown.op, unknown.path, unknown.count) == ("opaque", "@forward", 1)
    (row,) = found.targets[0].phases[0].rows
    assert row.confidence.name == "LOW"
    rows = [line.split() for line in found.to_text().splitlines()]
    assert ["opaque", "@forward", "1"] in rows


def test_sizes_that_the_model_does_not_take() -> None:
    with pytest.raises(CostError, match=r"T = 2000 is outside of what the model takes, \[1, 1000]"):
        report(opaque_module(), "p40", prompt=2000)
    with pytest.raises(CostError, match="batch is 0; it must be at least 1"):
        report("smollm2-135m", "p40", batch=0)
    with pytest.raises(CostError, match="new and context must not be negative"):
        report("smollm2-135m", "p40", new=-1)
    with pytest.raises(CostError, match="unknown dtype 'int8'; did you mean 'i8'"):
        report("smollm2-135m", "p40", dtype="int8")


def test_targets_may_be_given_in_every_form(tmp_path: Path) -> None:
    found = report("smollm2-135m", ["m2", {"base": "m2", "dram_gb_per_s": 200}, load_target("m2")])
    slow, fast, same = (t.phases[1].memory_seconds for t in found.targets)
    assert slow == same == pytest.approx(2 * fast)


def test_faster_memory_never_slows_a_phase() -> None:
    found = report("smollm2-135m", [{"base": "p40", "dram_gb_per_s": n} for n in (100, 200, 400)])
    times = [[p.seconds for p in t.phases] for t in found.targets]
    assert times == sorted(times, reverse=True)
