"""`elidir eval` and `elidir verify`: a compiled model beside the original, on text and tasks.

Files, tasks and bounds are checked before the model is loaded. A bound that is missed ends the
command with exit code 1, after the figures. What is measured is `elidir.frontends.evaluation`'s.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elidir.cli import options as opts
from elidir.cli import output

if TYPE_CHECKING:
    from elidir.frontends import Bound, Evaluation, Task

TEXT_METRICS = "kl"
"""The name by which `--tasks` asks for the measures of text."""

Window = Annotated[
    int | None, typer.Option(help="Tokens of a window.", show_default="1024, or what there is")
]
Windows = Annotated[
    int | None, typer.Option(help="Windows at most, spread over the texts.", show_default="all")
]
Context = Annotated[
    int | None,
    typer.Option(help="Tokens of a window prefilled and not scored.", show_default="half"),
]
Chunk = Annotated[int, typer.Option(help="Tokens of each step after the context.")]
Singles = Annotated[int, typer.Option(help="Tokens at a window's end that are fed one by one.")]
Seed = Annotated[int, typer.Option(help="Of questions and of intervals.")]
Bounds = Annotated[
    str,
    typer.Option("--bound", help="What must hold, such as 'kl<=0.02, top1>=0.9'; else exit 1."),
]


Tasks = Annotated[
    str,
    typer.Option(
        help="With commas: kl (all measures of text), passkey, needle, squad, hotpot.",
        show_default="kl if there is text, and passkey",
    ),
]
Texts = Annotated[list[Path] | None, typer.Option(help="A text file; may be repeated.")]
Lengths = Annotated[str, typer.Option(help="Tokens of passkey and needle.")]
Depths = Annotated[str, typer.Option(help="Where they hide it, from 0 to 1.")]
Trials = Annotated[int, typer.Option(help="Questions for each length and depth.")]
Haystack = Annotated[Path | None, typer.Option(help="Needle's text.", show_default="essays")]
Questions = Annotated[int, typer.Option(help="Questions of squad and hotpot.")]
Distractors = Annotated[int, typer.Option(help="Passages that do not help, with each question.")]
Chat = Annotated[
    bool | None,
    typer.Option(help="Whether to use the chat template.", show_default="if there is one"),
]


def eval(
    model: opts.Model,
    pipeline: opts.Pipeline = "lossless",
    tasks: Tasks = "",
    text: Texts = None,
    lengths: Lengths = "500,1000",
    depths: Depths = "0,0.25,0.5,0.75,1",
    trials: Trials = 2,
    haystack: Haystack = None,
    questions: Questions = 100,
    distractors: Distractors = 0,
    window: Window = None,
    windows: Windows = None,
    context: Context = None,
    chunk: Chunk = 64,
    singles: Singles = 16,
    seed: Seed = 0,
    chat: Chat = None,
    bound: Bounds = "",
    target: opts.Target = "cpu",
    backend: opts.Backend = "cpu",
    dtype: opts.Dtype = None,
    calibration: opts.Calibration = None,
    json: opts.Json = False,
) -> None:
    """Measure a compiled model beside the original: on text, and on tasks with known answers."""
    chosen = opts.compile_options(pipeline, target, backend, dtype)
    hidden = {"lengths": _numbers(lengths, int), "depths": _numbers(depths, float)}
    asked = {"asked": questions, "distractors": distractors, "trials": trials, "seed": seed}
    names = opts.split_names(tasks) or ((TEXT_METRICS,) if text else ()) + ("passkey",)
    made = _tasks(names, {**hidden, **asked, "haystack": haystack})
    texts = _texts(text or [], names, window)
    bounds = _bounds(bound, names)
    fed = {"chunk": chunk, "singles": singles, "context": context}
    request = {"seed": seed, "chat": chat}
    request |= {} if texts is None else _request(window, windows, seed, fed)
    found, ran = _evaluated((model, chosen, calibration), made, texts, request)
    _tell(found, bounds, {"model": model, "pipeline": ran}, json)


def verify(
    model: opts.Model,
    text: Annotated[Path, typer.Argument(metavar="TEXTFILE", help="A text of your own.")],
    pipeline: opts.Pipeline = "lossless",
    bound: Bounds = "",
    window: Window = None,
    windows: Windows = None,
    context: Context = None,
    chunk: Chunk = 64,
    singles: Singles = 16,
    seed: Seed = 0,
    target: opts.Target = "cpu",
    backend: opts.Backend = "cpu",
    dtype: opts.Dtype = None,
    calibration: opts.Calibration = None,
    json: opts.Json = False,
) -> None:
    """Compare a compiled model with the original on a text; exit code 1 if a bound is missed."""
    chosen = opts.compile_options(pipeline, target, backend, dtype)
    texts = _texts([text], (TEXT_METRICS,), window)
    bounds = _bounds(bound, (TEXT_METRICS,))
    request = _request(
        window, windows, seed, {"chunk": chunk, "singles": singles, "context": context}
    )
    found, ran = _evaluated((model, chosen, calibration), [], texts, request)
    _tell(found, bounds, {"model": model, "pipeline": ran, "text": str(text)}, json)


# ---- what was asked for


def _numbers(text: str, kind: Any) -> tuple[Any, ...]:
    from elidir.ir import ElidirError

    try:
        return tuple(kind(part) for part in opts.split_names(text))
    except ValueError:
        raise ElidirError(f"'{text}' is no list of numbers; write one as 500,1000") from None


def _tasks(names: tuple[str, ...], given: dict[str, Any]) -> "list[Task]":
    """Return the tasks, ready; raises for a name or an option that is wrong."""
    from elidir.frontends import EvaluationError, read_text, task_of, tasks
    from elidir.ir import nearest

    known = (TEXT_METRICS, *tasks())
    for name in names:
        if name not in known:
            raise EvaluationError(f"no task '{name}'{nearest(name, known)}")
    if given["haystack"] is not None:
        given = given | {"haystack": read_text(given["haystack"])}
    made = [task_of(name, given) for name in names if name != TEXT_METRICS]
    for task in made:
        task.prepare()
    return made


def _texts(files: list[Path], names: tuple[str, ...], window: int | None) -> list[str] | None:
    """Return the texts if they are asked for; one that must be too short is refused at once."""
    from elidir.frontends import EvaluationError, read_text

    if TEXT_METRICS not in names:
        return None
    if not files:
        raise EvaluationError("kl is measured on text; give --text FILE")
    texts = [read_text(file) for file in files]
    longest = max(len(t.encode()) for t in texts)
    if window is not None and longest < window:  # a token has at least one byte
        raise EvaluationError(
            f"the text of {longest} bytes is shorter than a window of {window} tokens; give a "
            "longer text, or a smaller --window"
        )
    return texts


def _bounds(text: str, names: tuple[str, ...]) -> "tuple[Bound, ...]":
    from elidir.frontends import EvaluationError, read_bounds

    shares = [n for n in names if n != TEXT_METRICS]
    bounds = read_bounds(text, shares) if text else ()
    for bound in bounds:
        if bound.metric not in shares and TEXT_METRICS not in names:
            raise EvaluationError(f"{bound.metric} is measured on text; give --text FILE")
    return bounds


def _request(
    window: int | None, windows: int | None, seed: int, fed: dict[str, Any]
) -> dict[str, Any]:
    from elidir.frontends import Feeding

    return {"window": window, "most": windows, "seed": seed, "feeding": Feeding(**fed)}


# ---- doing it


def _evaluated(
    subject: tuple[str, Any, Path | None],
    tasks: "list[Task]",
    texts: Any,
    request: dict[str, Any],
) -> "tuple[Evaluation, str]":
    """Evaluate a model of a name, compiled or saved with some options; returns its pipeline too."""
    from elidir.cache import compile_named
    from elidir.frontends import is_artifact

    model, chosen, calibration = subject
    with output.progress() as notify:
        compiled = compile_named(model, chosen, notify, calibration=calibration)
        notify("evaluating")
        found = compiled.evaluate(tasks, texts, notify=notify, **request)
        saved = is_artifact(Path(model).expanduser())  # it runs by its own pipeline
        return found, str(compiled.program.options.pipeline if saved else chosen.pipeline)


def _tell(
    found: "Evaluation", bounds: "tuple[Bound, ...]", head: dict[str, Any], json: bool
) -> None:
    """Print the figures, and end with what is missed."""
    from elidir.frontends import check_bounds

    if json:
        missed = [str(b) for b in bounds if not b.holds(found.metrics[b.metric].value)]
        told = {"bounds": [str(b) for b in bounds], "missed": missed}
        output.say_json(head | found.to_dict() | told)
    else:
        output.table(("", "original", "compiled", "compiled to original"), list(found.rows()))
        for note in found.notes:
            output.say(note)
    check_bounds(bounds, found.metrics, f"the pipeline {head['pipeline']}")
