"""Where to drop tokens: the layers at which later attention loses least, for a share of the work.

What is lost comes from calibration (`AttentionLost`). Nothing is rewritten here.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise

from elidir.passes.observed import AttentionLost


def place(
    seen: AttentionLost, keep: tuple[float, ...], work: float
) -> tuple[tuple[int, ...], float]:
    """Return the layers to drop tokens before, and the mean share of attention that is lost.

    Args:
        seen: what calibration saw; attention i is that of layer i.
        keep: the part that goes on at each of the layers.
        work: the layers' work that may be left, as a share of all; the least there is where no
            choice is as little.
    """
    layers = len(seen.lost)
    choices = list(combinations(range(1, layers), len(keep)))
    fitting = [cuts for cuts in choices if left(cuts, keep, layers) <= work]
    if not fitting:
        fitting = [min(choices, key=lambda cuts: left(cuts, keep, layers))]
    best = min(fitting, key=lambda cuts: lost(seen, cuts, keep))
    return best, lost(seen, best, keep)


def left(cuts: tuple[int, ...], keep: tuple[float, ...], layers: int) -> float:
    """Return the share of the layers' work that is left."""
    return (
        sum(share * (end - start) for start, end, share, _ in _spans(cuts, keep, layers)) / layers
    )


def lost(seen: AttentionLost, cuts: tuple[int, ...], keep: tuple[float, ...]) -> float:
    """Return the share of attention that all layers lose, on average."""
    layers = len(seen.lost)
    total = sum(
        seen.at(start - 1, later, share)
        for start, end, share, dropped in _spans(cuts, keep, layers)
        for later in range(start, end)
        if dropped
    )
    return total / layers


def _spans(
    cuts: tuple[int, ...], keep: tuple[float, ...], layers: int
) -> Iterator[tuple[int, int, float, bool]]:
    """Yield first layer, end, share of tokens, and whether some were dropped, from cut to cut."""
    share, starts = 1.0, (0, *cuts, layers)
    for i, (start, end) in enumerate(pairwise(starts)):
        share *= keep[i - 1] if i else 1.0
        yield start, end, share, i > 0
