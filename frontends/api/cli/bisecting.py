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
from elidir.cli.observing import compiled_simply, recorded, seen_by_model, seen_in_text
from elidir.cli.opt import parse_ir, read_ir

if TYPE_CHECKING:
    from elidir.frontends import Finding, Observed, Oracle
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
    calibration: opts.Calibration = None,
    json: opts.Json = False,
) -> None:
    """Find the pass, the layer and the rewrite that change what a module computes."""
    from elidir.frontends import find_culprit

    with output.progress() as notify:
        asked = _Asked(pipeline, prompt, new, tolerance, calibration)
        case = _case(subject, asked, notify)
        notify("searching")
        by, seen = by or case.data.get("by", ""), case.observed.found
        found = find_culprit(case.module, case.steps, case.oracle, by, case.data, observations=seen)
    file = out or Path(f"elidir-bisect-{found.culprit.by}.ir")
    file.write_text(found.reproducer, encoding="utf-8")
    if json:
        return output.say_json(_data(found, case, file))
    output.note(f"written to {file}: `elidir bisect {file}` runs it again")
    return output.say(found.sentence(case.text))


@dataclass(frozen=True)
class _Asked:
    """How the command said that it is searched."""

    pipeline: str
    prompt: str
    new: int
    tolerance: float | None
    calibration: Path | None


@dataclass(frozen=True, eq=False)
class _Case:
    """What is searched: passes, what they know, the module they begin from, and what is right."""

    steps: "Pipeline"
    module: "Module"
    oracle: "Oracle"
    observed: "Observed"
    tokenizer: Any = None
    data: dict[str, Any] = field(default_factory=dict)

    def text(self, token: int) -> str:
        """Return the text of a token, "" without a tokenizer."""
        if self.tokenizer is None:
            return ""
        return str(self.tokenizer.decode([token], skip_special_tokens=False))


def _case(subject: str, asked: _Asked, notify: Any) -> _Case:
    from elidir.frontends import Oracle
    from elidir.passes import reproducer_data

    if not subject.endswith(".ir"):
        return _model(subject, asked, notify)
    text = read_ir(Path(subject))
    steps, module = parse_ir(text, asked.pipeline)
    data = reproducer_data(text)
    limit = data.get("tolerance") if asked.tolerance is None else asked.tolerance
    if "model" in data:
        compiled, _ = compiled_simply(data["model"], notify)
        calibration = asked.calibration or recorded(data)
        return _on_weights(steps, module, data, limit, compiled, calibration)
    oracle = Oracle.of(module)
    if limit is not None:
        oracle = replace(oracle, tolerance=limit)
    return _Case(steps, module, oracle, seen_in_text(steps, module, asked.calibration))


def _model(name: str, asked: _Asked, notify: Any) -> _Case:
    """Return a model as raised, with what it computes for a prompt and its own answer."""
    from elidir.ir import ElidirError
    from elidir.passes import framed

    if asked.pipeline:  # what is wrong with it is said before the long work
        framed(opts.pipeline_of(asked.pipeline))
    compiled, usual = compiled_simply(name, notify)
    if compiled.tokenizer is None:
        raise ElidirError(f"the model {name} has no tokenizer that reads text; bisect its .ir file")
    data = {"model": _found_again(name), "ids": _answered(compiled, asked.prompt, asked.new)}
    steps = framed(opts.pipeline_of(asked.pipeline or usual))
    raised, limit = compiled.program.raised, asked.tolerance
    return _on_weights(steps, raised, data, limit, compiled, asked.calibration)


def _on_weights(
    steps: "Pipeline",
    module: "Module",
    data: dict[str, Any],
    limit: float | None,
    compiled: Any,
    calibration: Path | None,
) -> _Case:
    """Return a module with the weights of a model, on the text that the data hold."""
    import torch

    from elidir.frontends import Feed, Oracle

    observed = seen_by_model(steps, compiled, calibration)
    _note_other_data(compiled.program.calibration, observed.provenance)
    if calibration is not None:
        data = data | {"calibration": str(calibration.resolve())}
    limit = MODEL_TOLERANCE if limit is None else limit
    feed = Feed(module, torch.tensor([data["ids"]]))
    oracle = Oracle(module, compiled.program.store, feed, limit, None)
    more = data | {"tolerance": limit}
    return _Case(steps, module, oracle, observed, compiled.tokenizer, more)


def _note_other_data(saved: Any, used: Any) -> None:
    """Say so if a saved model was calibrated on other data than it is searched with."""
    if saved and used and saved.data != used.data:
        output.note(
            f"it was calibrated on {saved}, and is searched with {used}; give --calibration"
        )


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
