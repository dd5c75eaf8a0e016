"""extract-outliers: its allotment, where it is refused, any limit of fuel, and what it says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elidir.cost_models import dump_target, load_target
from elidir.ir import Fuel, LinearInt8, Module, parse_module, verify
from elidir.passes import LinearInput, Pipeline, PipelineError, PipelineResult
from elidir.passes.outlier_extraction.allotment import Site, allot
from elidir.passes.outlier_extraction.plan import room_for, usual_clip
from tests.passes.observing import observed

GOLDEN = (Path(__file__).parent / "extract_outliers" / "layers.ir").read_text()
PASS = "extract-outliers{fraction=0.15}"


@pytest.fixture
def module() -> Module:
    return parse_module(GOLDEN.partition("// ----\n")[0])


def seen(*reach: float, weight: float = 1.0) -> LinearInput:
    """What went into a map of these channels."""
    values = np.array(reach, dtype=np.float32)
    return LinearInput(values, values**2 / 9, np.full_like(values, weight), 1.0, 0.0, 60.0)


def test_the_channels_of_the_widest_reach_leave_first() -> None:
    site = Site.of([seen(1, 9, 3, 7)])
    assert site.columns(0) == ()
    assert site.columns(2) == (1, 3)
    assert site.scale(2) == pytest.approx(3 / 127)
    assert site.scale(2, 0.5) == pytest.approx(1.5 / 127)
    assert site.scale(4) == 1.0
    assert site.error[1] == pytest.approx((7 / 127) ** 2 / 12 * 3)
    assert site.error[4] == 0


def test_maps_of_one_input_add_up_by_what_they_give() -> None:
    both = Site.of([seen(2, 1), replace(seen(2, 1, weight=3), output_power=2.0)], weight=0.5)
    np.testing.assert_allclose(both.error[0], 0.5 * (2 / 127) ** 2 / 12 * (2 + 6 / 2))


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.floats(0.01, 100), min_size=2, max_size=12), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_an_allotment_keeps_its_budget_and_greed_pays(
    reaches: list[list[float]], fraction: float
) -> None:
    sites = {i: Site.of([seen(*reach)]) for i, reach in enumerate(reaches)}
    taken = allot(sites, fraction)
    assert sum(taken.values()) <= fraction * sum(s.width for s in sites.values())
    before = sum(s.error[0] for s in sites.values())
    assert sum(s.error[taken[i]] for i, s in sites.items()) <= before
    assert allot(sites, fraction) == taken


def test_a_site_that_gains_more_gets_more() -> None:
    flat, spiked = Site.of([seen(*[5] * 20)]), Site.of([seen(90, 80, *[1] * 18)])
    assert allot({"flat": flat, "spiked": spiked}, 0.05) == {"flat": 0, "spiked": 2}


@pytest.mark.parametrize(
    ("k", "width", "room"), [(0, 576, 0), (1, 576, 32), (33, 576, 64), (3, 40, 4)]
)
def test_lists_have_few_lengths(k: int, width: int, room: int) -> None:
    assert room_for(k, width) == room


def test_grids_end_earlier_the_more_text_was_seen() -> None:
    found = [usual_clip(tokens) for tokens in (0, 60, 2560, 14_000, 31_000, 1e9)]
    assert found == sorted(found, reverse=True)
    assert found[0] == 1.5
    assert found[-1] == 0.75


def test_layers_that_differ_get_bodies_of_their_own(module: Module) -> None:
    found = observed(module)
    wide = found["linear-inputs"]["layers.1.mlp.down"]
    found["linear-inputs"]["layers.1.mlp.down"] = replace(wide, reach=wide.reach * 0 + 1)
    new = Pipeline.parse(PASS).run(module, observations=found).module
    assert len(new.bodies) == 2
    verify(new)
    assert str(parse_module(str(new))) == str(new)


@given(limit=st.integers(0, 16))
@settings(max_examples=17)
def test_any_limit_of_fuel_gives_a_valid_module(limit: int) -> None:
    module = parse_module(GOLDEN.partition("// ----\n")[0])
    result = Pipeline.parse(PASS).run(module, observations=observed(module), fuel=Fuel(limit))
    verify(result.module)


# ---- targets


def a_target(folder: Path, int8: float) -> str:
    """Write a target whose calls cost nothing and whose int8 products run at so many TFLOP/s."""
    target = load_target({"base": "cpu", "agents.cpu.launch_us": 1e-9})
    (name,) = (n for n, p in target.paths.items() if "i8" in p.takes)
    rate = replace(target.paths[name].peak_tflop_per_s, value=int8)
    paths = target.paths | {name: replace(target.paths[name], peak_tflop_per_s=rate)}
    path = folder / "mine.yaml"
    path.write_text(dump_target(replace(target, name="mine", aliases=(), paths=paths)))
    return str(path)


LARGE = """module @large stage=raised {
  sym T in [1, 4096]
  weight @w: f32[2048, 2048] sha=01
  func @forward(%x: f32[T, 2048]) {
    %y = linear %x, @w : f32[T, 2048]
    return %y
  }
}
"""


@pytest.fixture
def large() -> Module:
    return parse_module(LARGE)


def on(module: Module, target: str, options: str = "") -> PipelineResult:
    pipeline = Pipeline.parse(f"extract-outliers{{fraction=0.15 {options}}}")
    return pipeline.run(module, observations=observed(module), target=target)


def test_a_target_that_gains_nothing_refuses_it_with_the_break_even(
    large: Module, tmp_path: Path
) -> None:
    result = on(large, a_target(tmp_path, 0.01))
    assert result.module is large
    (missed,) = result.missed
    assert "the cost model of mine sees no gain: prefill of 512 tokens goes from" in missed.reason
    assert "times as fast" in missed.reason
    assert missed.remedy == "force=true runs it all the same"


def test_force_runs_it_all_the_same(large: Module, tmp_path: Path) -> None:
    result = on(large, a_target(tmp_path, 0.01), "force=true")
    assert any(isinstance(op, LinearInt8) for op in result.module.ops())


def test_without_data_it_says_what_it_needs(module: Module) -> None:
    with pytest.raises(PipelineError, match="needs linear-inputs; calibrate the model first"):
        Pipeline.parse(PASS).run(module)


def test_a_target_that_gains_takes_it(large: Module, tmp_path: Path) -> None:
    assert not on(large, a_target(tmp_path, 1.0)).missed
