"""The original of a compiled program: its lossless form, over the same weights.

What a program was raised from is kept with it, so that no second model is loaded, and weights that
both use are held once.
"""

from dataclasses import replace

from elidir.frontends.program import Program
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
        calibration=None,
    )
