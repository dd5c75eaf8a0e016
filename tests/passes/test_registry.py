"""The registry: passes of others come in through entry points, and each name is taken once.

Every built-in pass is registered, says what it does and what it promises, and has a golden file.
"""

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from elidir.ir import ElidirError
from elidir.passes import Invariant, Pass, Pipeline, PipelineError, find_pass, passes, register
from elidir.passes import registry as registry_module

PLUGIN = '''
from dataclasses import dataclass
from elidir.passes import Invariant, Pass, register

@register
@dataclass(frozen=True)
class Theirs(Pass):
    """A pass of a third party."""
    name = "{name}"
    invariant = Invariant.EXACT
    strength: int = 1
'''


@pytest.fixture
def plugin(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Install a package with a pass of the name asked for, until the test ends."""
    passes()
    (tmp_path / "their_passes.py").write_text(PLUGIN.format(name=request.param))
    entry = EntryPoint("theirs", "their_passes", registry_module.GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry_module, "entry_points", lambda group: [entry])
    monkeypatch.setattr(registry_module, "_PASSES", dict(registry_module._PASSES))
    registry_module._load.cache_clear()
    yield
    sys.modules.pop("their_passes", None)


@pytest.mark.parametrize("plugin", ["their-pass"], indirect=True)
@pytest.mark.usefixtures("plugin")
def test_passes_of_others_are_found() -> None:
    pipeline = Pipeline.of("cse, their-pass{strength=3}")
    assert str(pipeline) == "cse, their-pass{strength=3}"
    assert find_pass("their-pass").__doc__ == "A pass of a third party."


@pytest.mark.parametrize("plugin", ["cse"], indirect=True)
@pytest.mark.usefixtures("plugin")
def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ElidirError, match="the pass name 'cse' is taken"):
        passes()


def test_a_plugin_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("theirs", "not_installed_at_all:Pass", registry_module.GROUP)
    monkeypatch.setattr(registry_module, "entry_points", lambda group: [entry])
    registry_module._load.cache_clear()
    with pytest.raises(ElidirError, match=r"plug-in 'theirs' .* repair or uninstall"):
        passes()


def test_every_pass_says_what_it_is() -> None:
    for name, cls in passes().items():
        assert cls.name == name
        assert isinstance(cls.invariant, Invariant)
        assert (cls.__doc__ or "").strip()


def test_every_exact_pass_has_golden_files() -> None:
    folder = Path(__file__).parent
    exact = [n for n, cls in passes().items() if cls.__module__.startswith("elidir.passes.exact")]
    assert exact
    assert not [name for name in exact if not list(folder.glob(f"{name.replace('-', '_')}/*.ir"))]


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(PipelineError, match="did you mean 'canonicalize'"):
        find_pass("canonicalise")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"name": "cse", "invariant": Invariant.EXACT}, "'cse' is taken"),
        ({"name": "fixpoint", "invariant": Invariant.EXACT}, "'fixpoint' is taken"),
        ({"name": "lossless", "invariant": Invariant.EXACT}, "'lossless' is taken"),
        ({"name": "Not A Name", "invariant": Invariant.EXACT}, "no name for a pass"),
        ({"name": "other"}, "declares no invariant"),
    ],
)
def test_an_incomplete_pass_is_refused(body: dict[str, object], message: str) -> None:
    passes()
    with pytest.raises(ElidirError, match=message):
        register(type("Other", (Pass,), body))
