"""`docs/adding-a-pass.md`, followed literally: files are written, commands typed, in order."""

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks, commands, follow, matches, reader

PAGE = ROOT / "docs" / "adding-a-pass.md"


@pytest.mark.slow
def test_the_page_followed_literally(tmp_path: Path) -> None:
    env = reader(tmp_path)
    for block in blocks(PAGE):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        elif block.language == "console":
            type_in(block, tmp_path, env)


def type_in(block: Block, folder: Path, env: dict[str, str]) -> None:
    """Run the commands of a block and compare what they print."""
    for command in commands(block):
        run = follow(command, folder, env)
        said = f"line {block.line}: $ {command.line}\n{run.stdout}"
        assert (run.returncode != 0) == command.fails, said
        assert matches(command.output, run.stdout), said


def test_every_block_is_a_file_or_a_console() -> None:
    """A block that is neither would not be tested."""
    wrong = [b.line for b in blocks(PAGE) if not b.title and b.language != "console"]
    assert not wrong
