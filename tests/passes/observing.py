"""Observations for modules without arrays: every linear map of a weight saw the same few outliers.

Channels 3, 10, 17, .. are large. A weight whose name holds `unseen` was not calibrated, and what
goes into one whose name holds `dead` was zero.
"""

from typing import Any

import numpy as np

from elidir.ir import Module
from elidir.passes import LINEAR_INPUTS, LinearInput


def observed(module: Module) -> dict[str, Any]:
    """Return observations of each stored matrix of a module."""
    stored = {n: e.type for n, e in module.weights.items() if e.expr is None}
    widths = {n: int(t.dims[1]) for n, t in stored.items() if len(t.dims) == 2}
    seen = {n: _input(n, width) for n, width in widths.items() if "unseen" not in n}
    return {LINEAR_INPUTS: seen}


def _input(name: str, width: int) -> LinearInput:
    channels = np.arange(width)
    reach = np.where(channels % 7 == 3, 64.0, 1.0 + channels / 1024).astype(np.float32)
    reach = reach * 0 if "dead" in name else reach
    return LinearInput(reach, reach**2 / 9, np.ones_like(reach), 4.0 * width, 0.0, 14_000.0)
