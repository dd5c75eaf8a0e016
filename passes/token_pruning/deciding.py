"""What a layer before a cut decides: which tokens go on, and which of those parked come back.

The ops are emitted at the end of the layer's body, beside its attention, which stays as it is.
Who calls this, with which values, is in `narrowing.py`; scores are the scorer's affair.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import sympy

from elidir.ir import (
    Attention,
    Concat,
    Dim,
    KvAppend,
    KvRead,
    Op,
    Reshape,
    Slice,
    TokensRevive,
    TokensSelect,
    TokensTake,
    TokensWithin,
    Value,
    as_dim,
    symbol,
)
from elidir.passes.token_pruning.scorers import Scorer


def coming(group: int) -> sympy.Symbol:
    """Return the symbol of how many tokens come back into a group of layers in a step."""
    return symbol(f"K.{group}")


@dataclass(frozen=True)
class Choice:
    """Which of a step's tokens go on: what part at each cut, and at least how many."""

    keep: tuple[float, ...]
    at_least: int


@dataclass(frozen=True)
class Revival:
    """Which parked tokens come back: at most how many at a time, and above which score."""

    most: int
    above: float


@dataclass
class Deciding:
    """Emits the ops of one layer.

    Args:
        scorer: makes scores f32[B, S + N] of all keys.
        choice: which go on; None for all.
        revival: which parked ones come back; None for none.
        number: of the cut.
        given: the values of the body by name. `rows` are the wanted tokens and `fresh` the step's,
            a set of the session's; `valid` says which of them are, for a choice. `parked` keeps
            rows, and `next` is a state behind the cut, for a revival.
    """

    scorer: Scorer
    choice: Choice | None
    revival: Revival | None
    number: int
    given: Mapping[str, Value]
    ops: list[Op] = field(default_factory=list)

    def of(
        self, results: list[Value], ops: list[Op], axis: Callable[[Value], int | None]
    ) -> tuple[list[Value], dict[str, Value]]:
        """Return the layer's results over the tokens that go on, and what was decided, by name.

        Args:
            results: of the layer.
            ops: of its body; they grow.
            axis: gives the axis of a value's tokens.
        """
        self.ops = ops
        attention = next(op for op in ops if isinstance(op, Attention))
        scores = self.scorer(attention, self.given["rows"], ops)
        found = {} if self.choice is None else self._chosen(self.choice, scores)
        places = [axis(r) for r in results]
        at = next((i for i, place in enumerate(places) if place is not None), 0)
        parked = None if self.revival is None else self._parked(results[at])
        left = [
            value if at is None else self._left(value, at, found.get("chosen"))
            for value, at in zip(results, places, strict=True)
        ]
        if self.revival is None or parked is None:
            return left, found
        fresh = found.get("fresh", self.given["fresh"])
        left[at], going = self._revived(self.revival, scores, parked, left[at], fresh)
        return left, found | {"tokens": going, "parked": parked}

    def _emit(self, op: Op) -> Value:
        self.ops.append(op)
        return op.results[0]

    def _chosen(self, choice: Choice, scores: Value) -> dict[str, Value]:
        """Choose among the step's tokens; those that came back are behind them."""
        valid, fresh = self.given["valid"], self.given["fresh"]
        slots, new = scores.type.dims[1], valid.type.dims[1]
        ours = self.given["tokens"].type.dims[1] if "tokens" in self.given else new
        start = as_dim(slots - ours)
        part = self._emit(Slice(scores, axis=1, start=start, stop=as_dim(start + new)))
        keep = choice.keep[self.number]
        rows, least = self.given["rows"], choice.at_least
        chosen = self._emit(TokensSelect(part, valid, rows, keep, least, names=("chosen",)))
        return {"chosen": chosen, "fresh": self._emit(TokensWithin(chosen, fresh))}

    def _left(self, value: Value, axis: int, chosen: Value | None) -> Value:
        """Return a value's rows of the step's tokens that go on."""
        new: Dim = self.given["fresh"].type.dims[1]
        if value.type.dims[axis] != new:
            value = self._emit(Slice(value, axis=axis, start=0, stop=new))
        return value if chosen is None else self._emit(TokensTake(value, chosen, axis))

    def _parked(self, rows: Value) -> Value:
        """Park the rows of all tokens; that is in one native run with what made them."""
        batch, new, width = rows.tensor.dims
        keys = self._emit(Reshape(rows, (batch, 1, new, width)))
        none = self._emit(Slice(keys, axis=3, start=0, stop=0))
        given = (self.given["parked"], keys, none, self.given.get("tokens"))
        return self._emit(KvAppend(*given, names=("parked",)))

    def _revived(
        self, revival: Revival, scores: Value, parked: Value, left: Value, fresh: Value
    ) -> tuple[Value, Value]:
        """Put rows that were parked behind those that go on; returns both, and what goes on."""
        count, how = coming(self.number + 1), (revival.most, revival.above)
        given = (scores, parked, self.given["next"], fresh)
        revive = TokensRevive(*given, count, *how, names=("back", "going"))
        back, going = self._emit(revive), revive.results[1]
        kept = self._emit(KvRead(parked))
        batch, width = left.type.dims[0], left.type.dims[2]
        kept = self._emit(Reshape(kept, (batch, parked.type.dims[2], width)))
        both = Concat((left, self._emit(TokensTake(kept, back))), axis=1)
        return self._emit(both), going
