"""Whether a rewritten module can pay on a target: its cost model, before and after.

A pass that could only lose there leaves the module as it was and says so, with the break-even: the
length from which it pays. Nothing is decided about quality here, and nothing is rewritten.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from elidir.cost_models import Target, load_target, waterfall
from elidir.ir import Module

LONG = 4096
LONGEST = 1 << 17
WORDS, ANSWER = 64, 128
"""Tokens of a question about a picture, and of a usual answer."""


@dataclass(frozen=True)
class Gain:
    """Seconds of reading a prompt and of one token after it, before and after a pass."""

    target: Target
    prompt: int
    prefill: tuple[float, float]
    decode: tuple[float, float]

    @classmethod
    def of(cls, before: Module, after: Module, target: str, prompt: int) -> "Gain":
        """Cost both modules; the prompt is no longer than they take."""
        found = load_target(target)
        prompt = min(prompt, *(_bound(m, prompt) for m in (before, after)))
        old, new = waterfall([("", before), ("", after)], [found], prompt=prompt)
        prefill = (old.prefill_seconds, new.prefill_seconds)
        return cls(found, prompt, prefill, (old.decode_seconds, new.decode_seconds))

    @property
    def pays(self) -> bool:
        """Whether either is faster."""
        return any(new < old for old, new in (self.prefill, self.decode))

    @property
    def decodes_faster(self) -> bool:
        """Whether a token behind the prompt is."""
        return self.decode[1] < self.decode[0]

    def __str__(self) -> str:
        old, new = (f"{seconds * 1e3:.3g}" for seconds in self.prefill)
        return (
            f"the cost model of {self.target.name} sees no gain: prefill of {self.prompt} tokens "
            f"goes from {old} to {new} ms"
        )


def decoding_loss(before: Module, after: Module, target: str) -> str:
    """Return that no token is decoded faster behind a usual prompt, and behind which, or ""."""
    gain = Gain.of(before, after, target, LONG)
    if gain.decodes_faster:
        return ""
    longer = (Gain.of(before, after, target, n) for n in _lengths(before, after, gain.prompt))
    even = next((g.prompt for g in longer if g.decodes_faster), None)
    last = min(_bound(m, LONGEST) for m in (before, after))
    where = f"nor behind {last:,}" if even is None else f"it breaks even behind {even:,}"
    old, new = (f"{seconds * 1e3:.3g}" for seconds in gain.decode)
    return (
        f"the cost model of {gain.target.name} sees no gain: a token behind {gain.prompt:,} goes "
        f"from {old} to {new} ms; {where}"
    )


def reading_loss(before: Module, after: Module, target: str, prompt: int) -> str:
    """Return that no call is faster over a usual number of tokens, and over which, or ""."""
    gain = Gain.of(before, after, target, prompt)
    if gain.pays:
        return ""
    longer = (Gain.of(before, after, target, n) for n in _lengths(before, after, gain.prompt))
    even = next((g.prompt for g in longer if g.pays), None)
    return f"{gain}; {f'it breaks even at {even:,}' if even else 'nor is there at any length'}"


@dataclass(frozen=True)
class Answered:
    """Seconds of a picture's question up to the first token, and of each later one, both ways."""

    target: Target
    first: tuple[float, float]
    later: tuple[float, float]

    @classmethod
    def of(
        cls, seen: tuple[Module, Module], reader: Module, tokens: tuple[int, int], target: str
    ) -> "Answered":
        """Cost what makes the features of one picture, and what reads so many, both ways."""
        found = load_target(target)
        words = min(WORDS, _bound(reader, LONGEST) - tokens[0])
        sights = waterfall([("", m) for m in seen], [found])
        reads = [waterfall([("", reader)], [found], prompt=words + n)[0] for n in tokens]
        first, less = (
            s.prefill_seconds + r.prefill_seconds for s, r in zip(sights, reads, strict=True)
        )
        later, fewer = (r.decode_seconds for r in reads)
        return cls(found, (first, less), (later, fewer))

    @property
    def even(self) -> int | None:
        """After how many later tokens it breaks even, None for never."""
        lost, won = self.first[1] - self.first[0], self.later[0] - self.later[1]
        if lost <= 0:
            return 0
        return ceil(lost / won) if won > 0 else None


def picture_loss(
    seen: tuple[Module, Module],
    reader: Module,
    tokens: tuple[int, int],
    target: str,
    *,
    compact: bool,
) -> str:
    """Return that no usual answer about a picture comes sooner, and which would, or "".

    Args:
        seen: from pixels to features, before and after.
        reader: the language model that reads them.
        tokens: how many features of a picture there are, before and after.
        target: its name.
        compact: whether positions are counted anew over those that are left.
    """
    most = _bound(reader, LONGEST)
    if most <= tokens[0]:  # without the pass no question about a picture is read at all
        return _unread(most, tokens, compact=compact)
    gain = Answered.of(seen, reader, tokens, target)
    if gain.even is not None and gain.even < ANSWER:
        return ""
    (first, less), (later, fewer) = (
        (f"{s * 1e3:.3g}" for s in pair) for pair in (gain.first, gain.later)
    )
    where = "at no length of the answer" if gain.even is None else f"after {gain.even:,} tokens"
    return (
        f"the cost model of {gain.target.name} sees no gain: the first token behind a picture goes "
        f"from {first} to {less} ms, each later one from {later} to {fewer}; "
        f"it breaks even {where}"
    )


def _unread(most: int, tokens: tuple[int, int], *, compact: bool) -> str:
    """Return that tokens of a picture leave no position for a question, or "" if they do."""
    whole, left = tokens
    if compact and left < most:
        return ""
    needed = left if compact else whole
    remedy = "give a smaller rate" if compact else f"positions=compact counts {left:,} anew"
    return f"no question is read behind {needed:,} positions of {most:,}; {remedy}"


def _lengths(before: Module, after: Module, start: int) -> Iterator[int]:
    """Yield longer and longer prompts, up to the longest."""
    last = min(_bound(m, LONGEST) for m in (before, after))
    while start < last:
        start = min(2 * start, last)
        yield start


def _bound(module: Module, prompt: int) -> int:
    """Return the longest prompt that leaves the module room for one more token."""
    length = module["forward"].region.params[0].type.dims[1:2]
    if length and isinstance(length[0], int):
        return length[0]
    bounds = [module.symbols[str(d)].hi for d in length if str(d) in module.symbols]
    return max(1, min([prompt, *(b - 1 for b in bounds if b is not None)]))
