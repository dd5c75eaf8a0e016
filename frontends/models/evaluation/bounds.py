"""Bounds on quality: `kl<=0.02, top1>=0.9` as data, checked before long work and after measuring.

A bound names a metric and the side on which it is good. Nothing is measured here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elidir.frontends.evaluation.errors import EvaluationError
from elidir.frontends.evaluation.intervals import Estimate, number
from elidir.ir import nearest

LESS_IS_BETTER = frozenset({"kl", "ppl", "ppl_ratio"})
SHARES = frozenset({"top1"})

_FORM = re.compile(r"([\w-]+)\s*(<=|>=)\s*([-+.\w]+)")


class QualityError(EvaluationError):
    """A bound was missed; `measured` holds what was measured."""

    def __init__(self, message: str, measured: Any = None) -> None:
        super().__init__(message)
        self.measured = measured


@dataclass(frozen=True)
class Bound:
    """A metric may be at most (`<=`) or must be at least (`>=`) a limit."""

    metric: str
    sign: str
    limit: float

    def holds(self, value: float) -> bool:
        """Whether a figure is within; one that is no number is not."""
        return value <= self.limit if self.sign == "<=" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{number(self.limit)}"


def read_bounds(text: str, shares: Sequence[str] = ()) -> tuple[Bound, ...]:
    """Return the bounds of an expression, such as `kl<=0.02, top1>=0.9`.

    Args:
        text: bounds with commas.
        shares: further metrics from 0 to 1 of which more is better, such as names of tasks.

    Raises:
        EvaluationError: it is no such expression, with the nearest metric.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise EvaluationError("the bound is empty; give one such as kl<=0.02")
    return tuple(_bound(part, SHARES | set(shares)) for part in parts)


def _bound(text: str, shares: frozenset[str]) -> Bound:
    found = _FORM.fullmatch(text)
    if found is None:
        raise EvaluationError(f"'{text}' is no bound; write one as kl<=0.02 or top1>=0.9")
    metric, sign, limit = found.groups()
    if metric not in LESS_IS_BETTER | shares:
        raise EvaluationError(f"no metric '{metric}'{nearest(metric, LESS_IS_BETTER | shares)}")
    wanted = "<=" if metric in LESS_IS_BETTER else ">="
    if sign != wanted:
        better = "less" if wanted == "<=" else "more"
        raise EvaluationError(f"of {metric} {better} is better; write {metric}{wanted}{limit}")
    return Bound(metric, sign, _limit(text, limit, 1.0 if metric in shares else None))


def _limit(bound: str, text: str, top: float | None) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf") or (top is not None and value > top):
        allowed = "0 or more" if top is None else f"from 0 to {top:g}"
        raise EvaluationError(f"the limit of '{bound}' must be a number, {allowed}")
    return value


def check_bounds(
    bounds: Sequence[Bound], metrics: Mapping[str, Estimate], what: str, measured: Any = None
) -> None:
    """Raise `QualityError` with the figures if some bounds are missed.

    Args:
        bounds: what was asked for.
        metrics: what was found, by metric.
        what: whose figures these are.
        measured: kept in the error.
    """
    wrong = [b for b in bounds if not b.holds(metrics[b.metric].value)]
    if wrong:
        told = "; ".join(f"{b} is missed, {b.metric} is {metrics[b.metric]}" for b in wrong)
        raise QualityError(f"{what}: {told}; choose a milder pipeline or a wider bound", measured)
