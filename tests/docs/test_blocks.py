"""The Python blocks of every page run, and print what the page says.

The blocks of a page run in one interpreter, in order, as a reader would type them, in an empty
folder. A `text` block is the output of the Python block before it. A page whose blocks are files
to write is followed in a test of its own.
"""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks, matches, reader

MARK = "\x1e"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(page: Path) -> list[tuple[Block, str | None]]:
    """The Python blocks, each with the output that follows it, None if nothing does."""
    found = [*blocks(page), Block("end", "", "", 0)]
    return [
        (block, after.text if after.language == "text" else None)
        for block, after in pairwise(found)
        if block.language == "python" and not block.title
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=lambda p: p.stem)
def test_the_python_blocks_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    told = python_blocks(page)
    script = tmp_path / "page.py"
    script.write_text(f"\nprint({MARK!r})\n".join(block.text for block, _ in told))
    env = reader(tmp_path)
    run = subprocess.run(
        [sys.executable, "-P", script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    for (block, wanted), found in zip(told, run.stdout.split(f"{MARK}\n"), strict=True):
        assert matches(wanted or "", found), f"the block at line {block.line} printed:\n{found}"


def test_the_readme_shows_what_its_blocks_print() -> None:
    assert any(wanted for _, wanted in python_blocks(ROOT / "README.md"))
