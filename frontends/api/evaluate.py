"""Evaluating a `Compiled`: it and the original that it was made from, side by side.

The original is the lossless form of the same program over the same weights, so that no second model
is loaded. What is measured, and how, is in `elidir.frontends.evaluation`.
"""

from typing import Any

from elidir.compiled import Compiled
from elidir.frontends import Quality, check_scorable, measure_quality, original_program


def original(compiled: Compiled) -> Compiled:
    """Return the model before any pass that may change what it computes, in its own dtype."""
    return Compiled.of(original_program(compiled.program), compiled.tokenizer)


def quality(compiled: Compiled, texts: Any, *, tokenizer: Any = None, **options: Any) -> Quality:
    """Return how near a compiled model is to the original; see `measure_quality`."""
    model = compiled.language_model()
    check_scorable(compiled.program)
    options["tokenizer"] = compiled.tokenizer if tokenizer is None else tokenizer
    return measure_quality(original(compiled).language_model(), model, texts, **options)
