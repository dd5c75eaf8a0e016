"""README.md: its Python blocks run and print what it says; its tables name what there is.

The blocks run in one interpreter, in order, as a reader would type them. A `text` block is the
output of the Python block before it.
"""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from elidir.cli import app
from elidir.passes import passes, preset_names
from tests.docs.pages import ROOT, Block, blocks, matches, reader

README = ROOT / "README.md"
MARK = "\x1e"


def python_blocks() -> list[tuple[Block, str | None]]:
    """The Python blocks, each with the output that follows it, None if nothing does."""
    found = [*blocks(README), Block("end", "", "", 0)]
    return [
        (block, after.text if after.language == "text" else None)
        for block, after in pairwise(found)
        if block.language == "python"
    ]


@pytest.mark.slow
def test_the_python_blocks_print_what_the_page_says(tmp_path: Path) -> None:
    told = python_blocks()
    assert any(wanted for _, wanted in told)
    script = tmp_path / "readme.py"
    script.write_text(f"\nprint({MARK!r})\n".join(block.text for block, _ in told))
    env = reader(tmp_path)
    run = subprocess.run([sys.executable, "-P", script], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for (block, wanted), found in zip(told, run.stdout.split(f"{MARK}\n"), strict=True):
        assert matches(wanted or "", found), f"the block at line {block.line} printed:\n{found}"


def first_cells(heading: str) -> list[str]:
    """The words in backquotes in the first column of the table under a heading."""
    section = README.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \|", section, re.MULTILINE)
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


def test_the_table_of_passes_is_the_registry() -> None:
    assert set(first_cells("What exists today")) == set(passes())
    assert {"lossless", "balanced", "aggressive"} == set(preset_names())


def test_the_folders_exist() -> None:
    assert not [name for name in first_cells("The repository") if not (ROOT / name).is_dir()]


def test_the_table_of_commands_is_the_command_line() -> None:
    told = [text.split()[1] for text in first_cells("Command line")]
    assert told == [command.callback.__name__ for command in app.registered_commands]
