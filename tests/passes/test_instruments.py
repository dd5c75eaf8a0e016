"""Instruments: each sees what it should, in order, and none changes what comes out.

Verify and Skip are tested where they matter, in the tests of pipelines.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from elidir.ir import Module, VerifyError, parse_module
from elidir.passes import (
    CostDelta,
    Dump,
    History,
    Instrument,
    Pass,
    PassResult,
    Pipeline,
    PipelineError,
    Print,
    Time,
)
from tests.passes.samples import adds, registered


@pytest.fixture(autouse=True, scope="module")
def samples() -> Iterator[None]:
    with registered():
        yield


PIPELINE = "canonicalize, twice, cse, dce"


class Spy(Instrument):
    """Writes down each call."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def enter(self, pipeline: Pipeline, module: Module) -> None:
        self.calls.append(f"enter {pipeline}")

    def exit(self, module: Module) -> None:
        self.calls.append("exit")

    def should_run(self, step: Pass, module: Module) -> bool:
        self.calls.append(f"should_run {step}")
        return step.name != "cse"

    def before(self, step: Pass, module: Module) -> None:
        self.calls.append(f"before {step}")

    def after(self, step: Pass, module: Module, result: PassResult) -> None:
        self.calls.append(f"after {step} {result.module is not module}")


def test_the_hooks_come_in_order() -> None:
    spy = Spy()
    Pipeline.of("cse, twice").run(adds(), instruments=(spy,))
    assert spy.calls == [
        "enter cse, twice",
        "should_run cse",
        "should_run twice",
        "before twice",
        "after twice True",
        "exit",
    ]


def test_instruments_change_nothing(tmp_path: Path) -> None:
    watched = (Time(), Print([].append), Dump(tmp_path), History(), CostDelta(lambda m: {}))
    plain = Pipeline.of(PIPELINE).run(adds()).module
    assert str(Pipeline.of(PIPELINE).run(adds(), instruments=watched).module) == str(plain)


def test_the_input_is_verified() -> None:
    broken = parse_module(str(adds()).replace("sym T", "sym U").replace("f32[T, 8]", "f32[V, 8]"))
    with pytest.raises(VerifyError, match="undeclared symbol V"):
        Pipeline.of("cse").run(broken)


def test_time_has_a_row_for_each_pass() -> None:
    clock = Time()
    Pipeline.of(PIPELINE).run(adds(), instruments=(clock,))
    assert [name for name, _ in clock.rows] == ["canonicalize", "twice", "cse", "dce"]
    assert all(0 <= seconds < 10 for _, seconds in clock.rows)


def test_print_writes_what_changed() -> None:
    written: list[str] = []
    result = Pipeline.of(PIPELINE).run(adds(), instruments=(Print(written.append),))
    assert written == [f"// after twice\n{result.module}"]


def test_dump_numbers_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    for _ in range(2):
        result = Pipeline.of(PIPELINE).run(adds(), instruments=(Dump(folder),))
    assert sorted(p.name for p in folder.iterdir()) == ["000_input.ir", "002_twice.ir"]
    assert (folder / "002_twice.ir").read_text() == str(result.module)


def test_dump_refuses_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    mine = tmp_path / "thesis.tex"
    mine.write_text("do not lose me")
    with pytest.raises(PipelineError, match=r"holds thesis\.tex; name an empty folder"):
        Dump(tmp_path)
    with pytest.raises(PipelineError, match="name a folder"):
        Dump(mine)
    assert mine.read_text() == "do not lose me"


def test_history_keeps_each_changed_module() -> None:
    history = History()
    module = adds()
    result = Pipeline.of(PIPELINE).run(module, instruments=(history,))
    assert [name for name, _ in history.rows] == ["input", "twice"]
    assert history.rows[0][1] is module
    assert history.rows[1][1] is result.module


def test_cost_delta_is_a_waterfall() -> None:
    def cost(module: Module) -> dict[str, float]:
        return {"adds": sum(op.kind == "add" for op in module.ops())}

    delta = CostDelta(cost)
    Pipeline.of(PIPELINE).run(adds(), instruments=(delta,))
    assert [(r.name, r.before, r.after) for r in delta.rows] == [
        ("twice", {"adds": 4}, {"adds": 1})
    ]
    assert delta.rows[0].delta("adds") == -3
