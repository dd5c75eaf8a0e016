"""What calibration observes, as passes read it: plain arrays by the name of a weight.

Each kind of observation has a name that a pass lists in `needs`. How it is recorded is the
frontends' affair; here is what it means.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray

LINEAR_INPUTS = "linear-inputs"
"""The observation of every linear map: a `LinearInput` by the full name of its weight."""


@dataclass(frozen=True, eq=False)
class LinearInput:
    """What went into one linear map over the calibration data, by input channel.

    Args:
        reach: the greatest magnitude.
        power: the mean square.
        weight_power: the sum of squares of the weight's column.
        output_power: of a typical token (the median), the sum of squares of what came out.
        sum_power: likewise of the sum that the output was added into; 0 if it was in none.
        tokens: how many were seen.
    """

    reach: Array
    power: Array
    weight_power: Array
    output_power: float
    sum_power: float
    tokens: float

    @property
    def share(self) -> float | None:
        """How much of the sum came from this map, 1 at most; None if it was added into none."""
        return min(1.0, self.output_power / self.sum_power) if self.sum_power else None


ATTENTION_LOST = "attention-lost"
"""The observation of what later layers miss of dropped tokens: an `AttentionLost`."""

SHARES = tuple(n / 20 for n in range(1, 20))
"""The shares of kept tokens for which it is recorded."""


@dataclass(frozen=True, eq=False)
class AttentionLost:
    """What the last token's attention loses if tokens are dropped, over the calibration data.

    Args:
        lost: f32[L, L, len(SHARES)]; at [d, m, i] the mean share of the attention of attention m
            that goes to tokens which are not among the SHARES[i] that attention d ranks highest.
            The first token, which takes the attention that has nowhere to go, is left out. L is 0
            where nothing was seen.
        tokens: how many were seen.
    """

    lost: Array
    tokens: float

    def at(self, decides: int, later: int, share: float) -> float:
        """Return what is lost in a later attention at a share, between the recorded ones."""
        return float(np.interp(share, (0.0, *SHARES, 1.0), (1.0, *self.lost[decides, later], 0.0)))
