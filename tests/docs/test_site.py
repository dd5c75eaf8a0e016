"""The pages that are made from the registries name all that there is, and the menu all pages.

What the command line lists, what has a page and what has a golden test are the same. Whether the
site builds, and its links lead somewhere, is checked by `make lint`.
"""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from elidir.backends import backend_names
from elidir.cli import app
from elidir.cost_models import targets
from elidir.ir import OPS
from elidir.passes import options_of, passes
from tests.docs.pages import ROOT


def _hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOK = _hook()
PAGES = HOOK.pages()


def headings(page: str) -> set[str]:
    """The headings of the second level, without their quotes."""
    return {h.strip("`") for h in re.findall(r"^## (.+)$", PAGES[page], re.MULTILINE)}


def test_every_op_target_backend_and_command_has_its_heading() -> None:
    commands = {f"elidir {c.callback.__name__}" for c in app.registered_commands}
    assert headings("reference/ops.md") == set(OPS)
    assert headings("reference/targets.md") == set(targets())
    assert headings("reference/backends.md") == set(backend_names())
    assert headings("reference/commands.md") == commands


def test_every_pass_has_a_card_in_the_list() -> None:
    listed = re.findall(r"\(\.\./passes/([\w-]+)\.md\)", PAGES["reference/passes.md"])
    assert listed == sorted(passes())
    assert {f"passes/{name}.md" for name in listed} <= set(PAGES)


def test_every_written_card_is_of_a_pass() -> None:
    written = {path.stem for path in HOOK.WRITTEN.glob("*.md")}
    assert written <= set(passes())


@pytest.mark.parametrize("name", sorted(passes()))
def test_a_card_has_a_title_the_options_and_an_example(name: str) -> None:
    text = PAGES[f"passes/{name}.md"]
    assert text.startswith(f"# {name}\n")
    assert all(f"option `{o.name}`" in text for o in options_of(passes()[name]))
    assert f"applied {name}" in text


def test_an_example_that_no_longer_comes_out_stops_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = HOOK.GOLDEN / "cse" / "equal.ir"
    folder = tmp_path / "cse"
    folder.mkdir()
    (folder / "equal.ir").write_text(golden.read_text().replace("// ----\n", "// ----\n\n"))
    monkeypatch.setattr(HOOK, "GOLDEN", tmp_path)
    with pytest.raises(Exception, match=r"equal\.ir of cse does not come out"):
        HOOK.example("cse")


def test_every_page_is_in_the_menu() -> None:
    menu = yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = [path.name for path in (ROOT / "docs").glob("*.md")]
    made = [page for page in PAGES if not page.startswith("passes/")]
    assert not [page for page in (*pages, *made) if f" {page}" not in menu]
