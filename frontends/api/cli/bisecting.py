"""`elidir bisect`: which rewrite of which pass makes a module compute something else.

A file of IR is run on random weights and inputs, a model on a prompt; the reference backend judges.
What is found is written to a file that `elidir opt` runs again.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elidir.cli import options as opts
from elidir.cli import output
from elidir.cli.opt import read_module

if TYPE_CHECKING:
    from elidir.frontends import Oracle
    from elidir.ir import Module
    from elidir.passes import Pipeline

MODEL_TOLERANCE = 1e-3
"""Of the greatest logit, in float32 over all layers of a model."""


def bisect(
    subject: Annotated[
        str, typer.Argument(metavar="FILE.ir|MODEL", help=f"A module's text, or {opts.MODEL}.")
    ],
    pipeline: Annotated[
        str,
        typer.Option(
            "--pipeline",
            "-p",
            help="Passes.",
            show_default="the file's `// run:` line, or lossless",
        ),
    ] = "",
    prompt: Annotated[str, typer.Option(help="What a model is run on.")] = "The capital of France",
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Error allowed, of the greatest value.", show_default="1e-6, models 1e-3"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the reproducer.")
    ] = None,
    json: opts.Json = False,
) -> None:
    """Find the pass and the rewrite that change what a module computes."""
    from elidir.frontends import find_culprit

    with output.progress() as notify:
        steps, module, oracle = _subject(subject, pipeline, prompt, tolerance, notify)
        notify("searching")
        found = find_culprit(module, steps, oracle)
    file = out or Path(f"elidir-bisect-{found.culprit.by}.ir")
    file.write_text(found.reproducer, encoding="utf-8")
    culprit = found.culprit
    if json:
        where = {"pass": culprit.by, "rewrite": culprit.nth, "at": culprit.at, "fuel": culprit.fuel}
        return output.say_json(where | {"difference": found.what, "reproducer": str(file)})
    return output.say(f"{found}\nrun `elidir opt --numerics {file}` to see it again")


def _subject(
    subject: str, pipeline: str, prompt: str, tolerance: float | None, notify: Any
) -> "tuple[Pipeline, Module, Oracle]":
    from dataclasses import replace

    from elidir.frontends import Oracle

    if not subject.endswith(".ir"):
        return _model(subject, pipeline or "lossless", prompt, tolerance, notify)
    steps, module = read_module(Path(subject), pipeline)
    oracle = Oracle.of(module)
    return steps, module, oracle if tolerance is None else replace(oracle, tolerance=tolerance)


def _model(
    name: str, pipeline: str, prompt: str, tolerance: float | None, notify: Any
) -> "tuple[Pipeline, Module, Oracle]":
    """Return a model as raised, with what it computes for a prompt."""
    chosen = opts.compile_options("", "cpu", "cpu", None)
    from elidir.passes import framed

    steps = framed(opts.pipeline_of(pipeline))
    import torch

    from elidir.cache import compile_named
    from elidir.frontends import Feed, Oracle, is_artifact
    from elidir.ir import ElidirError
    from elidir.saving import load

    saved = is_artifact(Path(name).expanduser())
    compiled = load(name) if saved else compile_named(name, chosen, notify)
    if compiled.tokenizer is None:
        raise ElidirError(f"the model {name} has no tokenizer that reads text; bisect its .ir file")
    program = compiled.program
    ids = torch.tensor([compiled.tokenizer.encode(prompt)])
    feed = Feed(program.raised, ids)
    limit = MODEL_TOLERANCE if tolerance is None else tolerance
    return steps, program.raised, Oracle(program.raised, program.store, feed, limit, None)
