"""Evaluating a `Compiled`: it and the original that it was made from, side by side.

The original is the lossless form of the same program over the same weights, so that no second model
is loaded. What is measured, and how, is in `elidir.frontends.evaluation`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from elidir.backends.runtime import LanguageModel
from elidir.compiled import Compiled
from elidir.frontends import (
    Asking,
    Bound,
    Evaluation,
    EvaluationError,
    Quality,
    Task,
    check_bounds,
    measure_quality,
    original_program,
    read_bounds,
    task_of,
)
from elidir.frontends.calibration import Observations, bundled_text
from elidir.ir import nearest
from elidir.passes import framed


def original(compiled: Compiled) -> Compiled:
    """Return the model before any pass that may change what it computes, in its own dtype."""
    return Compiled.of(original_program(compiled.program), compiled.tokenizer)


def _pair(compiled: Compiled) -> tuple[LanguageModel, LanguageModel]:
    """Return the original and the compiled model; raises for one that cannot generate."""
    return original(compiled).language_model(), compiled.language_model()


def quality(compiled: Compiled, texts: Any, *, tokenizer: Any = None, **options: Any) -> Quality:
    """Return how near a compiled model is to the original; see `measure_quality`."""
    options["tokenizer"] = compiled.tokenizer if tokenizer is None else tokenizer
    return measure_quality(*_pair(compiled), texts, **options)


def evaluate(
    compiled: Compiled,
    tasks: Sequence[str | Task] = (),
    texts: Any = None,
    *,
    tokenizer: Any = None,
    chat: bool | None = None,
    **options: Any,
) -> Evaluation:
    """Measure quality on some texts, if there are any, and ask both models the tasks' questions.

    Args:
        compiled: what is evaluated.
        tasks: names, or tasks with options of their own.
        texts: as `quality` takes them; None leaves it out.
        tokenizer: elidir's own, for a model that was not named.
        chat: whether to ask through the chat template; None if there is one.
        options: `seed` and `notify` for all; the others are those of the tasks that are named, and
            with texts those of `measure_quality`.

    Raises:
        EvaluationError: an option that nothing of this call has, or a model that cannot be asked.
    """
    asked = [task_of(t, options) if isinstance(t, str) else t for t in tasks]
    named = [task for task, t in zip(asked, tasks, strict=True) if isinstance(t, str)]
    _check(options, named, with_text=texts is not None)
    pair = _pair(compiled)
    reads = compiled.tokenizer if tokenizer is None else tokenizer
    rounds = [Asking.of(t, *pair, reads, chat=chat) for t in asked]
    told = {k: v for k, v in options.items() if k in _OF_QUALITY}
    found = None if texts is None else measure_quality(*pair, texts, tokenizer=reads, **told)
    shared = {k: options[k] for k in ("seed", "notify") if k in options}
    return Evaluation(found, tuple(r.run(**shared) for r in rounds))


_OF_QUALITY = frozenset(signature(measure_quality).parameters) - {
    *("dense", "compiled", "texts", "tokenizer")
}


def _check(options: Mapping[str, Any], named: Sequence[Task], *, with_text: bool) -> None:
    """Raise `EvaluationError` for options that nothing has."""
    known = {"seed", "notify", *(f.name for task in named for f in fields(task))}
    known |= _OF_QUALITY if with_text else set()
    if unknown := [name for name in options if name not in known]:
        needs_text = not with_text and unknown[0] in _OF_QUALITY
        hint = "; those of quality need texts" if needs_text else nearest(unknown[0], known)
        raise EvaluationError(
            f"nothing that is evaluated has the option {', '.join(unknown)}{hint}"
        )


WINDOWS = 8
"""So many windows at most are read to judge a pipeline while compiling."""


@dataclass(frozen=True)
class Demand:
    """The quality that a compilation must have: bounds, and the texts that they are measured on."""

    bounds: tuple[Bound, ...] = ()
    texts: Any = None

    @classmethod
    def of(cls, wanted: str | None, texts: Any, model: Any, calibration: Any = None) -> "Demand":
        """Return what was asked for; raises `ElidirError` before any long work if it is wrong.

        Without texts it is measured on those of calibration, else on the bundled one.
        """
        if wanted is None:
            return cls()
        bounds = read_bounds(wanted)
        if isinstance(model, type) or not isinstance(model, str | torch.nn.Module):
            raise EvaluationError(
                "quality= is measured on a language model; give elidir.compile its name or object"
            )
        return cls(bounds, _calibrated_on(model, calibration) if texts is None else texts)

    def check(self, made: Any) -> Any:
        """Return what was compiled; raises `QualityError` with the figures if it is not so good."""
        if self.bounds:
            found = quality(made, self.texts, most=WINDOWS)
            named = made.program.options.pipeline
            what = named if isinstance(named, str) else str(framed(named))
            check_bounds(self.bounds, found.metrics, f"the pipeline {what}", found)
        return made


def _calibrated_on(model: Any, calibration: Any) -> Any:
    """Return the texts of calibration; observations and calls of a model are none."""
    first = calibration[0] if isinstance(calibration, list | tuple) and calibration else calibration
    observed = isinstance(first, Observations | Mapping)
    file = isinstance(first, Path) and first.suffix == ".safetensors"
    if calibration is not None and not observed and not file:
        return calibration
    if isinstance(model, str):
        return bundled_text()
    raise EvaluationError("quality= needs text to measure on; give quality_texts=")
