"""Finding the pass, the layer and the rewrite that make a module wrong, by running it.

The search is `elidir.passes.bisect`, the judgement `verdict`, the layer `blame`; here they are put
together, with the smallest pipeline and module that show the mistake again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from elidir.frontends.blame import Blame, blame
from elidir.frontends.numerics import Oracle
from elidir.frontends.verdict import NUMBERS, TOKENS, Flip, first_flip, judge, reads_tokens
from elidir.ir import Module
from elidir.passes import Culprit, Invariant, Pipeline, bisect, reproducer_text


@dataclass(frozen=True)
class Finding:
    """What was found.

    Args:
        culprit: the rewrite.
        wrong: what it does, in words.
        blame: the layers that it hits; None where layers cannot be told apart.
        flip: the first greedy token that is another; None if none is, or there are no tokens.
        has_tokens: whether there are.
        reproducer: a file's text that `elidir opt` and `elidir bisect` run.
    """

    culprit: Culprit
    wrong: str
    blame: Blame | None
    flip: Flip | None
    has_tokens: bool
    reproducer: str

    def sentence(self, text: Callable[[int], str] = lambda token: "") -> str:
        """Return it in one sentence; `text` gives the text of a token."""
        by, where = self.culprit.by, self.blame or "the module"
        flip = self.flip.said(text) if self.flip else "no greedy token flips" * self.has_tokens
        what = "; ".join(dict.fromkeys(filter(None, (self.wrong, flip))))
        return f"{self._which()}pass '{by}' breaks {where}{self._at()}: {what}"

    def _which(self) -> str:
        return f"{_ordinal(self.culprit.nth)} rewrite of " if self.culprit.nth else ""

    def _at(self) -> str:
        return f", at {self.culprit.at}" if self.culprit.at else ""

    def __str__(self) -> str:
        return self.sentence()


def usual_judge(pipeline: Pipeline, module: Module) -> str:
    """Return how a pipeline is judged unless it is said: exact passes by numbers."""
    exact = all(p.invariant is Invariant.EXACT for p in pipeline.passes())
    return NUMBERS if exact or not reads_tokens(module) else TOKENS


def find_culprit(
    module: Module,
    pipeline: Pipeline,
    oracle: Oracle,
    by: str = "",
    data: dict[str, Any] | None = None,
    **running: Any,
) -> Finding:
    """Return the first rewrite of a pipeline after which something is wrong.

    Args:
        module: what the pipeline begins from.
        pipeline: the passes.
        oracle: what is right.
        by: what is judged; see `verdict`.
        data: goes into the reproducer.
        running: what `Pipeline.run` is to be given.

    Raises:
        BisectError: the result is good, or bad without any rewrite.
    """
    by = by or usual_judge(pipeline, module)
    verdict = judge(by, oracle)
    culprit = bisect(module, pipeline, lambda made: verdict(made) is None, **running)
    wrong = verdict(culprit.bad)
    has_tokens = reads_tokens(oracle.module)
    flip = first_flip(culprit.bad, oracle) if has_tokens else None
    name = wrong.function if wrong else "forward"
    text = reproducer_text(
        Pipeline((culprit.step,)), culprit.before, str(wrong), {"by": by, **(data or {})}
    )
    what = "" if isinstance(wrong, Flip) else str(wrong)
    where = blame(culprit.good, culprit.bad, name, oracle)
    return Finding(culprit, what, where, flip, has_tokens, text)


def _ordinal(n: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(n % 10 if n % 100 not in (11, 12, 13) else 0, "th")
    return f"the {n}{ending}"
