"""Which channels leave the grid: allotted over a whole model by what each of them brings.

The step of a grid follows its greatest value, so channels leave in order of their reach. Rounding
to steps of s adds noise of power s^2 / 12 to every channel; through the columns of a weight that
makes an error, measured against the energy of a typical output. The budget goes to the
steepest parts of the lower convex hull of each input's error: greedy is then best but for one part.
Nothing here knows a module.
"""

import heapq
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from elidir.passes.observed import Array, LinearInput

LEVELS = 127
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Site:
    """One input of linear maps: its channels in order of reach, and the error if k of them leave.

    `error[k]` is relative to the output's energy, summed over the maps that read the input, times
    what an error there weighs. `tokens` is how many were seen.
    """

    order: Array
    reach: Array
    error: Array
    tokens: float

    @classmethod
    def of(cls, maps: list[LinearInput], weight: float = 1.0) -> "Site":
        """Return the site of maps that read one input; their errors weigh so much."""
        reach = maps[0].reach
        order = np.argsort(-reach, kind="stable")
        each = np.stack([m.weight_power / max(m.output_power, TINY) for m in maps])
        power = each.sum(0)[order]
        reach = np.append(reach[order], 0.0)
        left = np.append(np.cumsum(power[::-1])[::-1], 0.0)
        error = weight * (reach / LEVELS) ** 2 / 12 * left
        return cls(order, reach, error, maps[0].tokens)

    @property
    def width(self) -> int:
        """The number of channels."""
        return len(self.order)

    def columns(self, k: int) -> tuple[int, ...]:
        """Return the k channels that leave, in ascending order."""
        return tuple(sorted(int(c) for c in self.order[:k]))

    def scale(self, k: int, clip: float = 1.0) -> float:
        """Return the step of a grid that ends at `clip` of the others' reach; 1 if that is zero."""
        return float(np.float32(self.reach[k] * clip / LEVELS)) or 1.0


TINY = 1e-30


def allot(sites: Mapping[K, Site], fraction: float) -> dict[K, int]:
    """Return how many channels of each site leave, at most this fraction of all of them."""
    budget = int(fraction * sum(s.width for s in sites.values()))
    taken = dict.fromkeys(sites, 0)
    parts = {key: _hull(site.error) for key, site in sites.items()}
    # Ties go to the site that comes first, so that the same data always give the same answer.
    heap = [(-gain, at, key) for at, (key, p) in enumerate(parts.items()) for gain, _ in p[:1]]
    heapq.heapify(heap)
    while heap:
        _, at, key = heapq.heappop(heap)
        _, k = parts[key].pop(0)
        if k - taken[key] > budget:
            continue
        budget -= k - taken[key]
        taken[key] = k
        if parts[key]:
            heapq.heappush(heap, (-parts[key][0][0], at, key))
    return taken


def _hull(error: Array) -> list[tuple[float, int]]:
    """Return (gain per channel, k) at the corners of the lower convex hull, while it falls."""
    corners = [0]
    for k in range(1, len(error)):
        while len(corners) > 1 and _slope(error, corners[-2], corners[-1]) >= _slope(
            error, corners[-1], k
        ):
            corners.pop()
        corners.append(k)
    pairs = pairwise(corners)
    return [(-_slope(error, a, b), b) for a, b in pairs if error[b] < error[a]]


def _slope(error: Array, a: int, b: int) -> float:
    return float(error[b] - error[a]) / (b - a)
