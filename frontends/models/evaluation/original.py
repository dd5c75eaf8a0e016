"""The original of a compiled program: its lossless form, over the same weights.

What a program was raised from is kept with it, so that no second model is loaded, and weights that
both use are held once.
"""

from dataclasses import replace

from elidir.frontends.evaluation.errors import EvaluationError
from elidir.frontends.program import Program
from elidir.ir import Tensor
from elidir.passes import History, framed

LOSSLESS = "lossless"


def original_program(program: Program) -> Program:
    """Return the program before any pass that may change what it computes, in its own dtype."""
    history = History()
    result = framed(LOSSLESS).run(
        program.raised, instruments=[history], target=program.options.target
    )
    return replace(
        program,
        module=result.module,
        options=replace(program.options, pipeline=LOSSLESS, dtype=None),
        result=result,
        history=tuple(history.rows),
        seconds={},
    )


def check_scorable(program: Program) -> None:
    """Raise `EvaluationError` unless the program gives a score to each token of its vocabulary."""
    kind = program.module["forward"].region.results[0].type
    size = kind.dims[-1] if isinstance(kind, Tensor) and kind.dims else None
    vocabulary = program.vocabulary
    if vocabulary is None or not isinstance(size, int) or size < vocabulary:
        raise EvaluationError(
            f"the model gives {kind} and reads {vocabulary or 'no'} token ids: it does not say "
            "which token comes next, so text cannot be scored; use a model with a language head"
        )
