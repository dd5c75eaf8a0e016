"""Running pipelines: order, fixpoints, remarks, what is skipped, and what a crash leaves behind.

The passes here are samples; what the real ones do is in the golden files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elidir.ir import Fuel, Module, Stage
from elidir.passes import (
    Applied,
    Context,
    Fixpoint,
    Invariant,
    Missed,
    Pass,
    PassError,
    PassResult,
    Pipeline,
    PipelineError,
    Skip,
    framed,
    read_reproducer,
)
from tests.passes.samples import Crash, Prune, Stepify, adds, registered


@pytest.fixture(autouse=True, scope="module")
def samples() -> Iterator[None]:
    with registered():
        yield


def test_nothing_to_do_gives_the_same_object() -> None:
    module = adds()
    result = Pipeline.of("canonicalize, fold-constants, cse, dce, fuse-add-norm").run(module)
    assert result.module is module
    assert result.remarks == ()
    assert [r.name for r in result.records][:2] == ["canonicalize", "fold-constants"]


def test_a_change_is_counted_and_remarked() -> None:
    result = Pipeline.of("twice").run(adds())
    assert result.remarks == (Applied("twice", "first, second, third", "3 add"),)
    assert result.records[0].stats == {"add": 3}
    assert result.records[0].changed


def test_a_fixpoint_stops_when_nothing_changes() -> None:
    result = Pipeline.of("fixpoint[9](twice, cse)").run(adds())
    assert [(r.name, r.changed) for r in result.records] == [
        ("twice", True),
        ("cse", False),
        ("twice", False),
        ("cse", False),
    ]


class Flip(Pass):
    """Changes the module's name each time."""

    name = "flip"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        return cx.result(
            Module(module.name + "x", module.functions, module.symbols, module.weights)
        )


def test_a_fixpoint_that_does_not_settle_says_so() -> None:
    result = Pipeline((Fixpoint(3, (Flip(),)),)).run(adds())
    assert result.module.name == "addsxxx"
    assert result.missed == (
        Missed("fixpoint", "still changing after 3 rounds", remedy="raise its limit"),
    )


def test_fuel_limits_rewrites_over_the_whole_pipeline() -> None:
    for limit, muls in ((0, 0), (1, 1), (2, 2), (9, 3)):
        fuel = Fuel(limit)
        result = Pipeline.of("twice, cse, dce").run(adds(), fuel=fuel)
        assert str(result.module).count("= mul") == muls
        assert fuel.used == muls


def test_a_pipeline_out_of_order_gives_the_nearest_legal_one() -> None:
    pipeline = Pipeline.of("prune{keep=0.5}, cse, stepify, dce")
    with pytest.raises(PipelineError) as error:
        pipeline.run(adds())
    assert "pass 'prune' needs a module of stage graph, but gets raised there" in str(error.value)
    assert str(error.value).endswith("write: cse, stepify, prune{keep=0.5}, dce")


def test_a_missing_producer_is_named() -> None:
    with pytest.raises(PipelineError) as error:
        Pipeline.of("cse, prune").check(Stage.RAISED)
    assert "incrementalize, prune" in str(error.value) or "stepify, prune" in str(error.value)


def test_what_no_order_can_run_is_refused() -> None:
    with pytest.raises(PipelineError, match="leave it out"):
        Pipeline.of("stepify").check(Stage.GRAPH)


def test_observations_are_asked_for_before_any_work() -> None:
    with pytest.raises(PipelineError, match="needs importance; calibrate"):
        Pipeline.of("crash, picky{layer=1}").run(adds())
    pipeline = Pipeline.of("picky{layer=1}")
    assert not pipeline.run(adds(), observations={"importance": 2}).records[0].changed


def test_a_pass_that_refuses_its_options_is_no_crash() -> None:
    with pytest.raises(PipelineError, match="has no layer 5"):
        Pipeline.of("picky{layer=5}").run(adds(), observations={"importance": 2})


class Reluctant(Stepify):
    """Could lead to the graph stage, but finds that it may not."""

    name = "reluctant"

    def run(self, module: Module, cx: Context) -> PassResult:
        cx.missed("@forward", "it is not causal")
        return cx.unchanged()


def test_a_stage_that_was_not_reached_is_a_remark() -> None:
    result = Pipeline((Reluctant(), Prune())).run(adds())
    assert [str(r) for r in result.remarks] == [
        "missed reluctant at @forward: it is not causal",
        "missed prune: the module is still of stage raised; "
        "see why the passes before it did not apply",
    ]


def test_skipped_passes_are_remarked() -> None:
    module = adds()
    result = Pipeline.of("twice, cse").run(module, instruments=(Skip(("twice",)),))
    assert result.module is module
    assert result.remarks == (Missed("twice", "skipped"),)
    with pytest.raises(PipelineError, match="did you mean 'twice'"):
        Pipeline.of("twice").run(module, instruments=(Skip(("twce",)),))


@pytest.mark.parametrize(("name", "what"), [("crash", "KeyError: 'gone'"), ("spoil", "@forward")])
def test_a_crash_leaves_a_reproducer(name: str, what: str, tmp_path: Path) -> None:
    pipeline = Pipeline.of(f"twice, fixpoint[3](cse, {name}, dce), canonicalize")
    with pytest.raises(PassError) as error:
        pipeline.run(adds(), crash_dir=tmp_path)
    (file,) = tmp_path.glob("*.ir")
    assert f"pass '{name}'" in str(error.value)
    assert what in str(error.value)
    assert f"elidir opt {file}" in str(error.value)
    rest, module = read_reproducer(file.read_text())
    assert str(rest) == f"{name}, dce, fixpoint[2](cse, {name}, dce), canonicalize"
    assert str(module) == str(Pipeline.of("twice").run(adds()).module)
    with pytest.raises(PassError, match=f"pass '{name}'"):
        rest.run(module, crash_dir=tmp_path)


def test_a_crash_is_reported_even_where_no_file_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="no reproducer was written"):
        Pipeline((Crash(),)).run(adds(), crash_dir=tmp_path / "none")


def test_a_reproducer_needs_its_first_line() -> None:
    with pytest.raises(PipelineError, match="// run:"):
        read_reproducer(str(adds()))


def test_analyses_are_made_once_and_dropped_on_a_change() -> None:
    made: list[Module] = []

    def count_ops(module: Module) -> int:
        made.append(module)
        return sum(1 for _ in module.ops())

    class Asks(Pass):
        name = "asks"
        invariant = Invariant.EXACT

        def run(self, module: Module, cx: Context) -> PassResult:
            assert cx.get(count_ops) == cx.get(count_ops) == 5
            return cx.unchanged()

    steps: list[Any] = [Asks(), "cse", Asks(), "twice", Asks()]
    Pipeline.of(steps).run(adds())
    assert len(made) == 2
    assert made[0] is not made[1]


def test_the_frame_adds_what_a_pipeline_does_not_name() -> None:
    names = [step.name for step in framed("twice").passes()]
    assert names.count("incrementalize") == 1
    assert names[0] == "canonicalize"
    assert names[-1] == "twice"
    own = Pipeline.of("cse, incrementalize, twice")
    assert framed(own) == own
