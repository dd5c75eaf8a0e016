"""`elidir report`: the predicted cost of a model, or of a description of one, on some targets.

Only options and printing live here; the figures are those of `elidir.cost_models`.
"""

from typing import Annotated, Any

import typer

from elidir.cli import options as opts
from elidir.cli import output

SUBJECT = f"A model ({opts.MODEL}), or a description: a YAML file, or the name of one."


def report(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=SUBJECT)],
    targets: Annotated[str, typer.Option(help="With commas.")] = "p40,a100,m2,npu",
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 512,
    new: Annotated[int, typer.Option(help="Tokens to make after it.")] = 128,
    batch: Annotated[int, typer.Option(help="Rows.")] = 1,
    context: Annotated[
        int | None,
        typer.Option(help="Cached tokens when one token is costed.", show_default="the prompt"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Count floats in this dtype.", show_default="as stored")
    ] = None,
    pipeline: opts.Pipeline = "lossless",
    json: opts.Json = False,
) -> None:
    """Predict time, memory and energy on each target, with what each figure rests on."""
    from elidir.cost_models import load_target

    request = {"prompt": prompt, "new": new, "batch": batch, "context": context, "dtype": dtype}
    wanted = [load_target(name) for name in opts.split_names(targets)]
    made = _report(model, wanted, pipeline, request)
    output.say(made.to_json() if json else made.to_text())


def _report(model: str, targets: list[Any], pipeline: str, request: dict[str, Any]) -> Any:
    from elidir.cost_models import descriptions, report

    if model.endswith((".yaml", ".yml")) or model in descriptions():
        return report(model, targets, **request)
    chosen = opts.compile_options(pipeline, "cpu", "cpu", None)
    from elidir.cache import compile_named

    with output.progress() as notify:
        compiled = compile_named(model, chosen, notify)
        notify("costing")
        return compiled.report(targets, **request)
