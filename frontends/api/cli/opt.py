"""`elidir opt`: passes on a file of IR, text in and text out, with what happens between them.

The file is what `str(module)`, a crash or `elidir bisect` wrote. The module goes to stdout, all
else (times, remarks, modules between passes) to stderr.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elidir.cli import options as opts
from elidir.cli import output
from elidir.cli.observing import seen_in_file

if TYPE_CHECKING:
    from elidir.ir import Module
    from elidir.passes import Instrument, Pipeline

GOLDEN = "\n// ----\n"
"""In a golden test, what comes after this line is what is expected."""

File = Annotated[Path, typer.Argument(metavar="FILE.ir", help="A module's text.")]


def opt(
    file: File,
    pipeline: Annotated[
        str,
        typer.Option("--pipeline", "-p", help="Passes.", show_default="the file's `// run:` line"),
    ] = "",
    print_ir: Annotated[bool, typer.Option(help="Print the module after each change.")] = False,
    after: Annotated[str, typer.Option(help="With --print-ir: after this pass only.")] = "",
    dump: Annotated[Path | None, typer.Option(help="Write the module after each change.")] = None,
    time: Annotated[bool, typer.Option(help="Say how long each pass took.")] = False,
    verify: Annotated[bool, typer.Option(help="Verify the module after each change.")] = True,
    numerics: Annotated[
        bool, typer.Option(help="Run the module on random numbers after each exact pass.")
    ] = False,
    folded: Annotated[bool, typer.Option(help="Print runs of equal layers once.")] = False,
    remarks: Annotated[bool, typer.Option(help="Say what passes did, and what not.")] = False,
    calibration: opts.Calibration = None,
    json: opts.Json = False,
) -> None:
    """Run passes on a module's text, and print it."""
    from elidir.passes import reproducer_data

    text = read_ir(file)
    steps, module = parse_ir(text, pipeline)
    watching = _Watching(steps, module, after=after if print_ir or after else None)
    watching.add(verify=verify, dump=dump, time=time, numerics=numerics)
    with output.progress() as notify:
        seen = seen_in_file(steps, module, reproducer_data(text), calibration, notify)
    result = steps.run(module, instruments=watching.instruments, observations=seen)
    text = _text(result.module, folded)
    if json:
        output.say_json(_data(text, result, watching))
    else:
        watching.finish(result.remarks if remarks else ())
        output.say(text)
    watching.raise_for_numerics()


def read_ir(file: Path) -> str:
    """Return the text of a file of IR."""
    from elidir.ir import ElidirError

    try:
        return file.read_text(encoding="utf-8").partition(GOLDEN)[0] + "\n"
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ElidirError(f"cannot read {file}: {reason}; give a file of IR") from None


def parse_ir(text: str, pipeline: str) -> "tuple[Pipeline, Module]":
    """Return the pipeline (that of the text, if none is given) and the module of a text."""
    from elidir.ir import parse_module
    from elidir.passes import Pipeline, read_reproducer

    if not pipeline:
        return read_reproducer(text)
    return Pipeline.of(opts.pipeline_of(pipeline)), parse_module(text)


def _text(module: "Module", folded: bool) -> str:
    from elidir.ir import fold_module

    return fold_module(module) if folded else str(module)


class _Watching:
    """The instruments that were asked for, and what they have to say at the end."""

    def __init__(self, steps: "Pipeline", module: "Module", after: str | None) -> None:
        self.steps, self.module = steps, module
        self.instruments: list[Instrument] = []
        self.time: Any = None
        self.numerics: Any = None
        if after is not None:
            self._print(after)

    def _print(self, after: str) -> None:
        from elidir.ir import ElidirError, nearest
        from elidir.passes import Print

        if after and after not in self.steps.names():
            hint = nearest(after, self.steps.names())
            raise ElidirError(f"the pipeline has no pass '{after}' to print after{hint}")
        wanted = f"// after {after}"
        self.instruments.append(
            Print(lambda text: output.note(text) if text.startswith(wanted) else None)
        )

    def add(self, *, verify: bool, dump: Path | None, time: bool, numerics: bool) -> None:
        """Add the others."""
        from elidir.passes import Dump, Time, Verify

        self.instruments += [Verify()] if verify else []
        self.instruments += [Dump(dump)] if dump else []
        if time:
            self.time = Time()
            self.instruments.append(self.time)
        if numerics:
            from elidir.frontends import Numerics, Oracle

            self.numerics = Numerics(Oracle.of(self.module))
            self.instruments.append(self.numerics)

    def finish(self, remarks: "Sequence[Any]") -> None:
        """Write notes."""
        for name, seconds in self.time.rows if self.time else ():
            output.note(f"{seconds * 1000:9.2f} ms  {name}")
        for name, difference in self.numerics.rows if self.numerics else ():
            output.note(f"{name}: {difference or 'same numbers'}")
        for remark in remarks:
            output.note(str(remark))

    def raise_for_numerics(self) -> None:
        """Raise if a pass that promises the same numbers gave others."""
        from elidir.ir import ElidirError

        if self.numerics and (first := self.numerics.first):
            raise ElidirError(
                f"after {first[0]}, {first[1]}; `elidir bisect` finds the rewrite that does it"
            )


def _data(text: str, result: Any, watching: _Watching) -> dict[str, Any]:
    rows = watching.numerics.rows if watching.numerics else ()
    return {
        "module": text,
        "passes": [
            {
                "name": r.name,
                "changed": r.changed,
                "stats": dict(r.stats),
                "remarks": [{"kind": type(m).__name__.lower(), **asdict(m)} for m in r.remarks],
            }
            for r in result.records
        ],
        "seconds": [
            {"pass": n, "seconds": s} for n, s in (watching.time.rows if watching.time else ())
        ],
        "numerics": [{"pass": n, "difference": str(d) if d else None} for n, d in rows],
    }
