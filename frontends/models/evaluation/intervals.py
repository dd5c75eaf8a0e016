"""Estimates with bootstrap intervals: a figure, and how far it may be off for want of samples.

Samples are drawn anew with replacement, from a stated seed, so that the same samples always give
the same interval. Nothing here knows what was measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 1000
COVERED = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; `low` and `high` are None where one sample is all."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return number(self.value)
        return f"{number(self.value)} ({number(self.low)} to {number(self.high)})"

    def to_dict(self) -> dict[str, float | None]:
        """Return value, low and high."""
        return {"value": self.value, "low": self.low, "high": self.high}


def number(value: float) -> str:
    """Return a number in three digits, or whole where it has more; what is nought as 0."""
    return "0" if not value else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _mean(drawn: np.ndarray) -> np.ndarray:
    return np.asarray(drawn.mean(-1))


def bootstrap(
    samples: Sequence[float],
    seed: int = 0,
    statistic: Callable[[np.ndarray], np.ndarray] = _mean,
) -> Estimate:
    """Return a statistic of some samples, and its interval under resampling.

    Args:
        samples: one figure for each window, question or run.
        seed: of the draws.
        statistic: from [.., samples] to [..]; the mean if none is given.
    """
    found = np.asarray(samples, dtype=np.float64)
    value = float(statistic(found))
    if len(found) < 2:
        return Estimate(value)
    drawn = np.random.default_rng(seed).integers(0, len(found), (DRAWS, len(found)))
    tail = (1 - COVERED) / 2
    low, high = np.quantile(statistic(found[drawn]), [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
