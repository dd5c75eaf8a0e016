"""README.md: its tables name what there is."""

import re

from elidir.cli import app
from elidir.passes import passes, preset_names
from tests.docs.pages import ROOT

README = ROOT / "README.md"


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
