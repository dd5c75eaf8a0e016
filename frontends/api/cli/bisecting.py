"""`elidir bisect`: which pass breaks which layer, and the first token that flips.

A file of IR is run on random weights and inputs, a model on a prompt and what it answers; the
reference backend judges. What is found is written to a file that `elidir opt` and `elidir bisect`
run again.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elidir.cli import options as opts
from elidir.cli import output
from elidir.cli.opt import parse_ir, read_ir

if TYPE_CHECKING:
    from elidir.frontends import Finding, Oracle
    from elidir.ir import Module
    from elidir.passes import Pipeline

MODEL_TOLERANCE = 1e-3
"""Of the greatest logit, in float32 over all layers of a model."""

OWN = "the file's `// run:` line, a saved model's own, or lossless"
BY = "What is wrong: 'numbers', 'tokens' (a greedy one flips), or a bound, as 'kl<=0.02'."


def bisect(
    subject: Annotated[
        str, typer.Argument(metavar="FILE.ir|MODEL", help=f"A module's text, or {opts.MODEL}.")
    ],
    pipeline: Annotated[
        str, typer.Option("--pipeline", "-p", help="Passes.", show_default=OWN)
    ] = "",
    prompt: Annotated[str, typer.Option(help="What a model is run on.")] = "The capital of France",
    new: Annotated[int, typer.Option(min=0, help="Tokens of its answer that are looked at.")] = 16,
    by: Annotated[
        str, typer.Option(help=BY, show_default="numbers; tokens if a pass is not exact")
    ] = "",
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
    """Find the pass, the layer and the rewrite that change what a module computes."""
    from elidir.frontends import find_culprit

    with output.progress() as notify:
        case = _case(subject, pipeline, prompt, new, tolerance, notify)
        notify("searching")
        by = by or case.data.get("by", "")
        found = find_culprit(case.module, case.steps, case.oracle, by, case.data)
    file = out or Path(f"elidir-bisect-{found.culprit.by}.ir")
    file.write_text(found.reproducer, encoding="utf-8")
    if json:
        return output.say_json(_data(found, case, file))
    output.note(f"written to {file}: `elidir bisect {file}` runs it again")
    return output.say(found.sentence(case.text))


@dataclass(frozen=True, eq=False)
class _Case:
    """What is searched: passes, the module that they begin from, and what is right."""

    steps: "Pipeline"
    module: "Module"
    oracle: "Oracle"
    tokenizer: Any = None
    data: dict[str, Any] = field(default_factory=dict)

    def text(self, token: int) -> str:
        """Return the text of a token, "" without a tokenizer."""
        if self.tokenizer is None:
            return ""
        return str(self.tokenizer.decode([token], skip_special_tokens=False))


def _case(
    subject: str, pipeline: str, prompt: str, new: int, tolerance: float | None, notify: Any
) -> _Case:
    from elidir.frontends import Oracle
    from elidir.passes import reproducer_data

    if not subject.endswith(".ir"):
        return _model(subject, pipeline, prompt, new, tolerance, notify)
    text = read_ir(Path(subject))
    steps, module = parse_ir(text, pipeline)
    data = reproducer_data(text)
    limit = data.get("tolerance") if tolerance is None else tolerance
    if "model" in data:
        return _with_weights(steps, module, data, limit, notify)
    oracle = Oracle.of(module)
    return _Case(steps, module, oracle if limit is None else replace(oracle, tolerance=limit))


def _model(
    name: str, pipeline: str, prompt: str, new: int, tolerance: float | None, notify: Any
) -> _Case:
    """Return a model as raised, with what it computes for a prompt and its own answer."""
    from elidir.ir import ElidirError
    from elidir.passes import framed

    if pipeline:
        framed(opts.pipeline_of(pipeline))  # what is wrong with it is said before the long work
    compiled, usual = _compiled(name, notify)
    if compiled.tokenizer is None:
        raise ElidirError(f"the model {name} has no tokenizer that reads text; bisect its .ir file")
    data = {"model": _found_again(name), "ids": _answered(compiled, prompt, new)}
    steps = framed(opts.pipeline_of(pipeline or usual))
    return _on_weights(steps, compiled.program.raised, data, tolerance, compiled)


def _with_weights(
    steps: "Pipeline", module: "Module", data: dict[str, Any], limit: float | None, notify: Any
) -> _Case:
    """Return the module of a reproducer with the weights and the text that it names."""
    compiled, _ = _compiled(data["model"], notify)
    return _on_weights(steps, module, data, limit, compiled)


def _on_weights(
    steps: "Pipeline", module: "Module", data: dict[str, Any], limit: float | None, compiled: Any
) -> _Case:
    import torch

    from elidir.frontends import Feed, Oracle

    limit = MODEL_TOLERANCE if limit is None else limit
    feed = Feed(module, torch.tensor([data["ids"]]))
    oracle = Oracle(module, compiled.program.store, feed, limit, None)
    return _Case(steps, module, oracle, compiled.tokenizer, data | {"tolerance": limit})


def _compiled(name: str, notify: Any) -> tuple[Any, Any]:
    """Return a model compiled as simply as can be, or as saved, and its usual pipeline."""
    from elidir.cache import compile_named
    from elidir.frontends import is_artifact
    from elidir.saving import load

    if is_artifact(Path(name).expanduser()):
        made = load(name)
        return made, made.program.options.pipeline
    return compile_named(name, opts.compile_options("", "cpu", "cpu", None), notify), "lossless"


def _found_again(name: str) -> str:
    """Return a model's name as it is understood in any folder."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _answered(compiled: Any, prompt: str, new: int) -> list[int]:
    """Return the tokens of a prompt, and of the model's answer if it gives one."""
    from elidir.ir import ElidirError

    ids: list[int] = compiled.tokenizer.encode(prompt)
    limit = compiled.program.max_positions
    room = new if limit is None else min(new, limit - len(ids))
    try:
        compiled.language_model()
    except ElidirError:  # it reads text, and does not write any
        room = 0
    if room < 1:
        return ids
    found: list[int] = compiled.generate([ids], max_new_tokens=room, do_sample=False)[0].tolist()
    return found


def _data(found: "Finding", case: _Case, file: Path) -> dict[str, Any]:
    culprit, flip = found.culprit, found.flip
    where = {"pass": culprit.by, "rewrite": culprit.nth, "at": culprit.at, "fuel": culprit.fuel}
    texts = {"old_text": case.text(flip.old), "new_text": case.text(flip.new)} if flip else {}
    return where | {
        "layer": found.blame and found.blame.layer,
        "layers": found.blame and asdict(found.blame),
        "difference": found.wrong,
        "flip": flip and asdict(flip) | texts,
        "reproducer": str(file),
        "sentence": found.sentence(case.text),
    }
