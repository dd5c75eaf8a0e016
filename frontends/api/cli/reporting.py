"""`elidir report`: the predicted cost of a model, or of a description of one, on some targets.

Only options and writing live here; the figures are those of `elidir.cost_models`. What is wrong
with the command, a file that cannot be written included, is said before any long work.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from elidir.cli import options as opts
from elidir.cli import output

SUBJECT = f"A model ({opts.MODEL}), or a description: a YAML file, or the name of one."
FEWER = "fewer if the model takes fewer"
FILE = "to this file; - is stdout."


def report(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=SUBJECT)],
    targets: Annotated[str, typer.Option(help="With commas.")] = "p40,a100,m2,npu",
    prompt: Annotated[
        int | None, typer.Option(help="Tokens of the prompt.", show_default=f"512, {FEWER}")
    ] = None,
    new: Annotated[
        int | None, typer.Option(help="Tokens to make after it.", show_default=f"128, {FEWER}")
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows.")] = 1,
    context: Annotated[
        int | None,
        typer.Option(help="Cached tokens when one token is costed.", show_default="the prompt"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Count floats in this dtype.", show_default="as stored")
    ] = None,
    pipeline: opts.Pipeline = "lossless",
    calibration: opts.Calibration = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run the model here too, beside the target cpu.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help=f"Write a page with plots {FILE}")] = None,
    md: Annotated[Path | None, typer.Option(help=f"Write Markdown {FILE}")] = None,
    csv: Annotated[Path | None, typer.Option(help=f"Write every row as CSV {FILE}")] = None,
    json: opts.Json = False,
) -> None:
    """Predict time, memory and energy on each target, with what each figure rests on."""
    from elidir.cost_models import load_target

    form = _form({"html": html, "markdown": md, "csv": csv}, json)
    sizes = {"prompt": prompt, "new": new, "batch": batch, "context": context, "dtype": dtype}
    request = {name: size for name, size in sizes.items() if size is not None}
    wanted = [load_target(name) for name in opts.split_names(targets)]
    _check(model, wanted, measure, (pipeline, calibration))
    made = _report(model, wanted, (pipeline, calibration), request, measure)
    text = getattr(made, f"to_{form.name}")()
    if form.file is None:
        return output.say(text)
    output.write(form.file, text)
    return output.note(f"written to {form.file}")


@dataclass(frozen=True)
class _Form:
    """What is written, and to which file; None is stdout."""

    name: str
    file: Path | None = None


def _form(files: dict[str, Path | None], json: bool) -> _Form:
    """Return the one form that is asked for; raises `ElidirError` for several, or a bad file."""
    from elidir.ir import ElidirError

    chosen = [_Form(name, file) for name, file in files.items() if file is not None]
    chosen += [_Form("json")] if json else []
    if len(chosen) > 1:
        raise ElidirError("a report has one form: give one of --html, --md, --csv and --json")
    form = chosen[0] if chosen else _Form("text")
    if form.file is None or str(form.file) == "-":
        return _Form(form.name)
    output.check_writable(form.file)
    return form


def _check(
    model: str, targets: list[Any], measure: bool, compiled_with: tuple[str, Path | None]
) -> None:
    from elidir.ir import ElidirError

    if not targets:
        raise ElidirError("no target is named; give some, as in --targets p40,m2")
    if measure and "cpu" not in (t.name for t in targets):
        raise ElidirError("--measure runs the model on this host; add cpu to --targets")
    if measure and _is_description(model):
        raise ElidirError(f"{model} is a description, without weights to run; drop --measure")
    if compiled_with != ("lossless", None) and _is_description(model):
        raise ElidirError(
            f"{model} is a description, without a program that passes change; drop --pipeline and "
            "--calibration, or name a model"
        )


def _is_description(model: str) -> bool:
    from elidir.cost_models import descriptions

    return model.endswith((".yaml", ".yml")) or model in descriptions()


def _report(
    model: str,
    targets: list[Any],
    compiled_with: tuple[str, Path | None],
    request: dict[str, Any],
    measure: bool,
) -> Any:
    from elidir.cost_models import report

    if _is_description(model):
        return report(model, targets, **request)
    pipeline, calibration = compiled_with
    chosen = opts.compile_options(pipeline, "cpu", "cpu", _runs_in(request) if measure else None)
    from elidir.cache import compile_named

    with output.progress() as notify:
        compiled = compile_named(model, chosen, notify, calibration=calibration)
        notify("measuring" if measure else "costing")
        return compiled.report(targets, measure=measure, **request)


def _runs_in(request: dict[str, Any]) -> str | None:
    """Return the dtype to compile for, where what is costed is run as well."""
    names = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", None: None}
    dtype = request.get("dtype")
    if dtype not in names:
        from elidir.ir import ElidirError

        raise ElidirError(f"--measure runs in f32, bf16 or f16, not in {dtype}")
    return names[dtype]
