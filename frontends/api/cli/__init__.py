"""The command line: one verb for each thing that Python can do.

Here are the app and its way out: an `ElidirError` is one line on stderr and exit code 1, a wrong
command line is 2. Nothing heavy is imported before a verb runs, so that `--help` is quick; each
verb is in a module of its own, and what they share in `options` and `output`.
"""

import os
import sys
from typing import Annotated

import typer

from elidir.cli import (
    bisecting,
    calibrating,
    compiling,
    evaluating,
    explaining,
    lists,
    opt,
    reporting,
    running,
)

app = typer.Typer(
    name="elidir",
    help="A compiler for transformer inference that leaves out the work the answer does not need.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(running.run)
app.command()(compiling.compile)
app.command()(reporting.report)
app.command()(explaining.explain)
app.command()(evaluating.eval)
app.command()(evaluating.verify)
app.command()(opt.opt)
app.command()(bisecting.bisect)
app.command()(calibrating.calibrate)
app.command()(lists.passes)
app.command()(lists.targets)
app.command()(lists.backends)


def _version(wanted: bool) -> None:
    if wanted:
        from elidir import __version__

        typer.echo(f"elidir {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """A compiler for transformer inference that leaves out the work the answer does not need."""


def main() -> None:
    """Run the command line."""
    try:
        app()
    except BrokenPipeError:  # the reader has gone: as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        from elidir.ir import ElidirError

        if not isinstance(error, ElidirError):
            raise
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
