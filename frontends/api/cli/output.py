"""How the verbs write: data as JSON or tables on stdout, progress and notes on stderr.

Nothing here decides what is said. Progress is drawn only where stderr is a terminal.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

WIDTH = 100
STARTED = time.perf_counter()
"""When the command began, as near as its own first import can tell."""


def say(text: str) -> None:
    """Write text to stdout, with one end of line."""
    typer.echo(text.rstrip("\n"))


def note(text: str) -> None:
    """Write a line about the run to stderr."""
    typer.secho(text, err=True, dim=True)


def say_json(data: Any) -> None:
    """Write data to stdout as JSON."""
    typer.echo(json.dumps(data, indent=2, default=str))


def check_writable(file: Path) -> None:
    """Raise `ElidirError` if a file cannot be written, before the work that is to fill it."""
    from elidir.ir import ElidirError

    if file.is_dir():
        raise ElidirError(f"{file} is a folder; name a file in it")
    if not file.parent.is_dir():
        raise ElidirError(f"there is no folder {file.parent} to write {file.name} to; make it")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            return
    except OSError as error:
        raise ElidirError(f"cannot write {file}: {error.strerror}; name another place") from None


def write(file: Path, text: str) -> None:
    """Write a whole file or leave what was there; raises `ElidirError` if it cannot be."""
    from elidir.ir import ElidirError

    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ElidirError(f"cannot write {file}: {error.strerror}; name another place") from None


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to stdout; the last column takes what is left of the width, and is wrapped."""
    from rich.console import Console
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", width=None)
    for at, name in enumerate(head):
        made.add_column(name, no_wrap=at < len(head) - 1, overflow="fold")
    for row in rows:
        made.add_row(*row)
    console = Console(markup=False, highlight=False)
    console.width = console.width if console.is_terminal else WIDTH
    console.print(made)


@contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """Show the stage of long work, with the seconds so far, on stderr while it goes on.

    What comes with a stage is how much of it is done, and of how much; a bar shows it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(20),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda stage, done=0, whole=None: bar.update(
            task, description=stage, completed=done, total=whole
        )
