"""Passes that cannot pay on a target leave the module, and say from where on they would.

Targets are the host's with calls that cost nothing or much; nothing runs.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from elidir.cost_models import dump_target, load_target
from elidir.ir import Module
from elidir.passes import Pipeline
from elidir.passes.gain import Answered
from tests.frontends.families import family
from tests.laws.towers import tower

PASSES = {
    "evict-kv{at_least=3 scorer=knorm": ("llama", "@step", "a token behind"),
    "merge-tokens{share=0.3": ("bert", "@forward", "prefill of"),
}


@pytest.fixture(autouse=True)
def unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache directory, so that a measurement of this machine changes no test."""
    monkeypatch.setenv("ELIDIR_CACHE", str(tmp_path / "cache"))


def a_target(folder: Path, launch_us: float) -> str:
    """Write the host's target with calls that cost so much."""
    target = load_target({"base": "cpu", "agents.cpu.launch_us": launch_us})
    path = folder / "mine.yaml"
    path.write_text(dump_target(target))
    return str(path)


@pytest.mark.parametrize("text", PASSES)
def test_no_gain_is_refused_and_force_overrides(text: str, tmp_path: Path) -> None:
    name, at, what = PASSES[text]
    known, target = family(name), a_target(tmp_path, 1000.0)
    module = known.stepped.module if at == "@step" else known.module
    refused = Pipeline.parse(text + "}").run(module, target=target)
    assert refused.module is module
    (missed,) = refused.missed
    assert missed.at == at
    assert "sees no gain: " + what in missed.reason
    assert missed.remedy == "force=true runs it all the same"
    forced = Pipeline.parse(text + " force=true}").run(module, target=target)
    assert forced.module is not module


@pytest.mark.parametrize("text", PASSES)
def test_where_calls_cost_nothing_it_is_taken(text: str, tmp_path: Path) -> None:
    name, at, _ = PASSES[text]
    known = family(name)
    module = known.stepped.module if at == "@step" else known.module
    taken = Pipeline.parse(text + "}").run(module, target=a_target(tmp_path, 1e-9))
    assert taken.module is not module
    assert not taken.missed


def test_it_is_said_behind_how_many_tokens_it_breaks_even(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elidir.passes.gain.LONG", 8)
    module = family("llama").stepped.module
    text = "evict-kv{at_least=3 scorer=knorm}"
    found = Pipeline.parse(text).run(module, target=a_target(tmp_path, 0.05))
    assert "a token behind 8 goes from" in found.missed[0].reason
    assert found.missed[0].reason.endswith("it breaks even behind 32")


# ---- pictures, whose gain is that of what reads them

PICTURES = "drop-visual-tokens{rate=0.2"


def a_reader(most: int | None = None) -> Module:
    """A language model that takes so many tokens."""
    module = family("llama").stepped.module
    symbols = {n: replace(s, hi=most) for n, s in module.symbols.items()}
    return replace(module, symbols=symbols)


def test_a_picture_that_fits_no_prompt_loses_tokens_that_are_counted_anew(tmp_path: Path) -> None:
    module, target = tower("clip").module, a_target(tmp_path, 1000.0)
    anew = Pipeline.parse(PICTURES + " positions=compact}")
    assert anew.run(module, target=target, reader=a_reader(180)).module is not module
    for pipeline, most, says in (
        (PICTURES + "}", 180, "behind 180 positions of 179; positions=compact counts 36 anew"),
        (PICTURES + " positions=compact}", 36, "behind 36 positions of 35; give a smaller rate"),
    ):
        found = Pipeline.parse(pipeline).run(module, target=target, reader=a_reader(most))
        assert found.module is module
        assert found.missed[0].reason == f"no question is read {says}"


def test_a_picture_whose_answer_comes_no_sooner_keeps_its_tokens(tmp_path: Path) -> None:
    module, reader = tower("clip").module, a_reader()
    target = a_target(tmp_path, 1000.0)
    refused = Pipeline.parse(PICTURES + "}").run(module, target=target, reader=reader)
    assert refused.module is module
    (missed,) = refused.missed
    assert "sees no gain: the first token behind a picture goes from" in missed.reason
    assert missed.remedy == "force=true runs it all the same"
    forced = Pipeline.parse(PICTURES + " force=true}").run(module, target=target, reader=reader)
    assert forced.module is not module
    unread = Pipeline.parse(PICTURES + "}").run(module, target=target)
    assert unread.module is not module


def test_it_is_taken_where_calls_cost_nothing(tmp_path: Path) -> None:
    module, reader = tower("clip").module, a_reader()
    target = a_target(tmp_path, 1e-9)
    taken = Pipeline.parse(PICTURES + "}").run(module, target=target, reader=reader)
    assert taken.module is not module
    assert not taken.missed


def test_it_breaks_even_after_the_answer_that_repays_the_choice(tmp_path: Path) -> None:
    before, reader = tower("clip").module, a_reader()
    after = tower("clip").run(rate=0.2).module
    found = Answered.of((before, after), reader, (180, 36), a_target(tmp_path, 80.0))
    assert found.even is not None
    lost, won = found.first[1] - found.first[0], found.later[0] - found.later[1]
    assert found.even * won >= lost > (found.even - 1) * won
    assert replace(found, later=found.later[::-1]).even is None
    assert replace(found, first=found.first[::-1]).even == 0
