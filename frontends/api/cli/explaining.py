"""`elidir explain`: what each pass did to a model, or why it did not, and what runs where.

The text is that of `Compiled.explain`; here it is only asked for and printed.
"""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from elidir.cli import options as opts
from elidir.cli import output


def explain(
    model: opts.Model,
    pipeline: opts.Pipeline = "lossless",
    target: opts.Target = "cpu",
    backend: opts.Backend = "cpu",
    dtype: opts.Dtype = None,
    calibration: opts.Calibration = None,
    ir: Annotated[bool, typer.Option("--ir", help="Print the program as well.")] = False,
    json: opts.Json = False,
) -> None:
    """Say what each pass did to a model, or why it did not."""
    chosen = opts.compile_options(pipeline, target, backend, dtype)
    from elidir.cache import compile_named

    with output.progress() as notify:
        compiled = compile_named(model, chosen, notify, calibration=calibration)
        notify("preparing weights")
        compiled.prepare()
    if json:
        return output.say_json(_data(model, compiled) | ({"ir": compiled.ir} if ir else {}))
    return output.say(compiled.explain() + (f"\n{compiled.ir}" if ir else ""))


def _data(model: str, compiled: Any) -> dict[str, Any]:
    program = compiled.program
    taken = {
        f"@{name}": dict(vars(program)[name].taken())
        for name in ("forward", "step")
        if vars(program).get(name) is not None
    }
    return {
        "model": model,
        "layers": len(list(program.raised.layers())),
        "bodies": len(program.raised.bodies),
        "remarks": list(program.remarks),
        "passes": [{"kind": type(r).__name__.lower(), **asdict(r)} for r in program.result.remarks],
        "backends": taken,
    }
