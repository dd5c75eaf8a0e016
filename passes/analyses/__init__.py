"""The three analyses that recover structure from a program: token axis, residual stream, state.

Passes ask them (`cx.get(TokenAxis)`) instead of a model's class. They read a module and change
nothing.
"""

from elidir.passes.analyses.residual_stream import (
    ResidualStream,
    Segment,
    group_layers,
    stream_segments,
)
from elidir.passes.analyses.state import State
from elidir.passes.analyses.token_axis import Mixer, TokenAxis, token_axes

__all__ = [
    "Mixer",
    "ResidualStream",
    "Segment",
    "State",
    "TokenAxis",
    "group_layers",
    "stream_segments",
    "token_axes",
]
