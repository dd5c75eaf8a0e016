"""The fenced blocks of a page of documentation, and an environment to follow it in.

A fence may carry a title, which is the name of the file it shows. In a `console` block each line
that starts with `$ ` is a command, what follows is its output, and `...` stands for anything.
Nothing here asserts anything.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_COMMANDS = {
    "pip": "-m pip",
    "python": "",
    "pytest": "-m pytest",
    "elidir": "-c 'import sys; from elidir.cli import main; sys.exit(main())'",
}


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the file it shows ("" for none), its text and line."""

    language: str
    title: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """One line of a console, and what the page says comes of it."""

    line: str
    output: str

    @property
    def fails(self) -> bool:
        """Whether the command is to end with an error."""
        return self.output.startswith("error: ")


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page that name their language, in order."""
    text = page.read_text()
    found = _FENCE.finditer(text)
    return [Block(m[1], m[2] or "", m[3], text.count("\n", 0, m.start()) + 1) for m in found]


def commands(block: Block) -> Iterator[Command]:
    """Yield the commands of a console block with their outputs."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        yield Command(line, output)


def matches(wanted: str, found: str) -> bool:
    """Whether a text is what a page says; ends of lines do not count."""
    parts = (re.escape(_stripped(part)) for part in re.split(r"\.\.\.", _stripped(wanted)))
    return re.fullmatch(".*".join(parts), _stripped(found), re.DOTALL) is not None


def _stripped(text: str) -> str:
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip("\n")


def reader(folder: Path) -> dict[str, str]:
    """Return the environment of who follows a page: tools on the path, installs kept apart."""
    tools, site = folder / ".bin", folder / ".site"
    tools.mkdir()
    for name, start in _COMMANDS.items():
        script = tools / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -P {start} "$@"\n')
        script.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PIP", "COV"))}
    return kept | {
        "PATH": f"{tools}:{kept.get('PATH', '')}",
        "PYTHONPATH": str(site),
        "PIP_TARGET": str(site),
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "80",
        "TERM": "dumb",
        "NO_COLOR": "1",
    }


def follow(command: Command, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run one command in a folder; errors and output come together, as on a terminal."""
    out, err = subprocess.PIPE, subprocess.STDOUT
    return subprocess.run(
        command.line, shell=True, cwd=folder, env=env, stdout=out, stderr=err, text=True
    )
