"""Quality: how near a compiled model is to the original on some text, with intervals and speed.

`measure_quality` makes a `Quality` of two models and some text. It is data first: the same figures
go to JSON, to text and to a small table of HTML. How the text is fed is in `scoring`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from elidir.backends.runtime import LanguageModel
from elidir.frontends.evaluation.errors import EvaluationError
from elidir.frontends.evaluation.intervals import Estimate, bootstrap, number
from elidir.frontends.evaluation.scoring import Clock, Feeding, Notify, Window, quiet, score
from elidir.frontends.evaluation.tables import Row, html, plain
from elidir.frontends.evaluation.texts import token_windows


@dataclass(frozen=True)
class Speed:
    """What one model took to read the text: medians of steps, and bytes of the cache at its end.

    Args:
        prefill_seconds: of the context of one window (of `batch` windows).
        token_seconds: of a token that is fed alone; None if none was.
        kv_bytes: keys and values of whole windows.
    """

    prefill_seconds: float
    token_seconds: float | None
    kv_bytes: int

    @classmethod
    def of(cls, clock: Clock) -> "Speed":
        """Return what a clock has seen."""
        return cls(clock.prefill, clock.step, clock.kv_bytes)


@dataclass(frozen=True)
class Quality:
    """A compiled model beside the original, on the same text in one run.

    Args:
        kl: KL(original || compiled) of the next token, in nats, the mean over scored tokens.
        top1: share of scored tokens where both hold the same token most likely.
        ppl: perplexity of the compiled model.
        ppl_original: perplexity of the original.
        ppl_ratio: the first through the second.
        by_window: what each window gave; the intervals resample these.
        window: tokens of a window.
        context: of these, prefilled and not scored.
        chunk: tokens of a step after that.
        singles: tokens fed one by one at the end.
        speed: of the compiled model.
        speed_original: of the original.
    """

    kl: Estimate
    top1: Estimate
    ppl: Estimate
    ppl_original: Estimate
    ppl_ratio: Estimate
    by_window: tuple[Window, ...]
    window: int
    context: int
    chunk: int
    singles: int
    speed: Speed
    speed_original: Speed

    @property
    def scored(self) -> int:
        """Tokens that were scored."""
        return len(self.by_window) * (self.window - self.context)

    @property
    def metrics(self) -> dict[str, Estimate]:
        """The figures that a bound may name."""
        return {name: getattr(self, name) for name in METRICS}

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain data."""
        estimates = (*METRICS, "ppl_original")
        return {
            **{name: getattr(self, name).to_dict() for name in estimates},
            "windows": len(self.by_window),
            "scored_tokens": self.scored,
            "feeding": {n: getattr(self, n) for n in ("window", "context", "chunk", "singles")},
            "speed": asdict(self.speed),
            "speed_original": asdict(self.speed_original),
            "speed_ratio": self._ratios(),
            "by_window": [asdict(w) for w in self.by_window],
        }

    def to_json(self) -> str:
        """Return all figures as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def _ratios(self) -> dict[str, float | None]:
        """Return the compiled model's speed figures through the original's."""
        pairs = {n: (v, asdict(self.speed_original)[n]) for n, v in asdict(self.speed).items()}
        return {n: a / b if a is not None and b else None for n, (a, b) in pairs.items()}

    def rows(self) -> Iterator[Row]:
        """Yield the table: what, the original's, the compiled model's, and the comparison."""
        yield "KL to the original, nats", "", "", str(self.kl)
        yield "same most likely token", "", "", str(self.top1)
        ratio = f"x{self.ppl_ratio}"
        yield "perplexity", number(self.ppl_original.value), number(self.ppl.value), ratio
        old, new, ratios = asdict(self.speed_original), asdict(self.speed), self._ratios()
        for name, (label, unit, scale) in _SPEEDS.items():
            cells = (f"{number(x * scale)} {unit}" if x else "" for x in (old[name], new[name]))
            share = ratios[name]
            yield label.format(self), *cells, f"x{share:.2f}" if share else ""

    @property
    def note(self) -> str:
        """What was scored, and how, in a sentence."""
        return (
            f"{self.scored} tokens scored in {len(self.by_window)} windows of {self.window}: "
            f"{self.context} prefilled, then steps of {self.chunk} over the cache, the last "
            f"{self.singles} one by one; intervals of 95 % by resampling windows"
        )

    def to_text(self) -> str:
        """Return the figures as a plain table."""
        return plain(self.rows(), [self.note])

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        """Return a small table for a notebook."""
        return html(self.rows(), [self.note])


METRICS = ("kl", "top1", "ppl", "ppl_ratio")
_SPEEDS = {
    "prefill_seconds": ("prefill of {0.context} tokens", "ms", 1e3),
    "token_seconds": ("a single token", "ms", 1e3),
    "kv_bytes": ("cache of {0.window} tokens", "MB", 1e-6),
}


# ---- measuring


def measure_quality(
    dense: LanguageModel,
    compiled: LanguageModel,
    texts: Any,
    *,
    tokenizer: Any = None,
    window: int | None = None,
    most: int | None = None,
    feeding: Feeding | None = None,
    batch: int = 1,
    seed: int = 0,
    notify: Notify = quiet,
) -> Quality:
    """Return how near a compiled model is to the original on some texts.

    The texts are cut into windows. Of each, a context is prefilled; what follows is fed over the
    cache, the last tokens one by one, and each of its tokens is scored by what both models said
    of it before. So what a pass did to the cache is seen.

    Args:
        dense: the original.
        compiled: what is compared with it.
        texts: a text, a path, or token ids; or several of them.
        tokenizer: for texts that are not token ids.
        window: tokens of a window; None for 1,024, or as many as there are.
        most: windows at most, spread over the texts; None for all.
        feeding: see `Feeding`.
        batch: windows read at a time.
        seed: of the intervals.
        notify: is told of the progress.

    Raises:
        EvaluationError: texts, sizes or a model that cannot be scored; before any step.
    """
    if dense.encodes:
        raise EvaluationError("an encoder-decoder has no text to score; use tasks that generate")
    fed = feeding or Feeding()
    for name, value in (("batch", batch), ("windows", most)):
        if value is not None and value < 1:
            raise EvaluationError(f"{name} is {value}; it must be 1 or more")
    ids = token_windows(texts, window, tokenizer, positions=dense.max_positions, most=most)
    length = ids.shape[1]
    fed.check(length)
    found, clocks = score((dense, compiled), ids, fed, batch=batch, notify=notify)
    return summarise(found, clocks, fed, length, seed)


def summarise(
    found: Sequence[Window],
    clocks: tuple[Clock, Clock],
    feeding: Feeding,
    length: int,
    seed: int = 0,
) -> Quality:
    """Return the figures of some windows, with intervals."""
    nll, nll_compiled = [w.nll for w in found], [w.nll_compiled for w in found]
    rise = [b - a for a, b in zip(nll, nll_compiled, strict=True)]
    return Quality(
        kl=bootstrap([w.kl for w in found], seed),
        top1=bootstrap([w.top1 for w in found], seed),
        ppl=bootstrap(nll_compiled, seed, _perplexity),
        ppl_original=bootstrap(nll, seed, _perplexity),
        ppl_ratio=bootstrap(rise, seed, _perplexity),
        by_window=tuple(found),
        window=length,
        context=feeding.prefilled(length),
        chunk=feeding.chunk,
        singles=min(feeding.singles, length - 1 - feeding.prefilled(length)),
        speed_original=Speed.of(clocks[0]),
        speed=Speed.of(clocks[1]),
    )


def _perplexity(nll: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(nll.mean(-1)))
