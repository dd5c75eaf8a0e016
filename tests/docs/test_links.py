"""Every page of documentation: the files, make targets and scripts that it names exist."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`\n]+`", "", page.read_text())
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", prose)
    broken = [t for t in links if "://" not in t and not (page.parent / t).exists()]
    assert not broken


@every_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE))
    assert named <= targets


@every_page
def test_scripts_exist(page: Path) -> None:
    named = re.findall(r"python -m (benchmarks[.\w]*)", page.read_text())
    missing = [n for n in named if not (ROOT / n.replace(".", "/")).with_suffix(".py").exists()]
    assert not missing


@every_page
def test_pages_are_plain(page: Path) -> None:
    """Lines of at most 110 characters outside of tables and code, and one title."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith("|")]
    assert not [line for line in lines if len(line) > 110]
    assert sum(line.startswith("# ") for line in lines) == 1
