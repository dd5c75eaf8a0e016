"""Passes that cannot pay on a target leave the module, and say from where on they would.

Targets are the host's with calls that cost nothing or much; nothing runs.
"""

from pathlib import Path

import pytest

from elidir.cost_models import dump_target, load_target
from elidir.passes import Pipeline
from tests.frontends.families import family

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
