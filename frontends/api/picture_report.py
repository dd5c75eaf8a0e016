"""What a vision-language model costs: pictures become features, then a prompt of fewer is read.

Both parts are costed apart and joined. Its prompt is so many words and what is left of the tokens
of pictures of one size; the waterfall follows the passes of the language model, then those of the
tower. Nothing runs but what is measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import sympy

from elidir.cost_models import (
    Earlier,
    Measured,
    Report,
    Snapshot,
    joined,
    joined_snapshot,
    report,
    waterfall,
)
from elidir.frontends import Program
from elidir.ir import Module, product

PHASE = "pictures"
WORDS = 64
"""Words of a prompt with pictures, unless the caller says how many."""


@dataclass(frozen=True, eq=False)
class Sight:
    """Pictures of one shape, so many in each prompt.

    Args:
        program: from their pixels to features.
        places: tokens of one in a prompt before any are dropped, ends of rows included.
        count: how many.
    """

    program: Program
    places: int
    count: int

    @cached_property
    def whole(self) -> int:
        """Tokens of a prompt that are of pictures, before any are dropped."""
        return self.count * self.places

    @cached_property
    def left(self) -> int:
        """Those that are left; no end of a row is counted where tokens were dropped."""
        return self.left_by(self.program.module)

    def left_by(self, module: Module) -> int:
        """Those that are left by a module."""
        found, before = (_features(m) for m in (module, self.program.raised))
        return self.count * found if found < before else self.whole


def _features(module: Module) -> int:
    """Return how many features a module makes of a picture."""
    region = module["forward"].region
    rows = product(region.results[0].type.dims[:-1])
    return int(sympy.sympify(rows) / region.params[0].type.dims[0])


def with_pictures(
    after: Report, words: Program, sight: Sight, targets: Any, request: Mapping[str, Any]
) -> Report:
    """Return the report of a language model with what its pictures cost before it.

    Args:
        after: of the language model, over the tokens that are left.
        words: the language model.
        sight: the pictures.
        targets: as in `report`.
        request: batch, context and dtype as in `report`, and what was `measured` of the pictures.
    """
    given = {k: v for k, v in request.items() if k in ("batch", "context", "dtype")}
    seen = given | {"batch": after.batch * sight.count, "prompt": 1, "context": None}
    measured: tuple[Measured, ...] = request.get("measured", ())
    before = report(sight.program.module, targets, new=1, measured=measured, **seen)
    number = after.prompt - sight.left
    falls = _Falls(words, sight, targets, number, given, seen)
    left = f"{sight.left} tokens of the prompt are of pictures"
    if sight.left < sight.whole:
        left += f", which had {sight.whole} before some were dropped"
    first = Earlier(PHASE, before, sight.left * after.batch)
    most = words.max_positions
    fits = most is None or number + sight.whole < most  # else it has no cost before the pass
    made = joined(first, after, falls.rows() if fits else ())
    return replace(made, notes=(*made.notes, left))


@dataclass(frozen=True, eq=False)
class _Falls:
    """The waterfall of both: the language model's passes over all tokens, then the tower's."""

    words: Program
    sight: Sight
    targets: Any
    number: int
    given: Mapping[str, Any]
    seen: Mapping[str, Any]

    def rows(self) -> Iterator[Snapshot]:
        """Yield what both cost after each pass, target by target."""
        whole, left = self.sight.whole, self.sight.left
        history = self.sight.program.history
        reads = {n: self._reads(self.words.history[-1:], n) for n in (whole, left)}
        raised, *passed = [self._sees([row]) for row in history]
        each = len(raised)
        for i, row in enumerate(self._reads(self.words.history, whole)):
            yield joined_snapshot(row.name, raised[i % each], row)
        for (name, module), found in zip(history[1:], passed, strict=True):
            for a, b in zip(found, reads[self.sight.left_by(module)], strict=True):
                yield joined_snapshot(f"{PHASE}: {name}", a, b)

    def _reads(self, history: Any, tokens: int) -> tuple[Snapshot, ...]:
        return waterfall(history, self.targets, prompt=self.number + tokens, **self.given)

    def _sees(self, history: Any) -> tuple[Snapshot, ...]:
        return waterfall(history, self.targets, **self.seen)
