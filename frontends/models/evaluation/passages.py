"""Question answering over passages: SQuAD and HotpotQA, with passages that do not help.

An answer counts if one of the known answers is in what the model says, word for word. Questions,
distractors and the order of passages are drawn from a seed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from elidir.frontends.evaluation import sources
from elidir.frontends.evaluation.errors import EvaluationError
from elidir.frontends.evaluation.sources import Asked
from elidir.frontends.evaluation.tasks import Encode, Question, Task, at_least, task

ROOM = 32
"""Tokens for an answer, which is a few words."""


@dataclass(frozen=True)
class Answering(Task):
    """Questions about passages.

    Args:
        asked: how many questions, drawn from the data set.
        distractors: passages of the same source that do not hold the answer.
        seed: of what is drawn, and of the order of passages.
    """

    asked: int = 100
    distractors: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the options; raises `EvaluationError`."""
        at_least("questions", self.asked, 1)
        at_least("distractors", self.distractors, 0)

    def pool(self) -> Sequence[Asked]:
        """Return all questions of the data set."""
        raise NotImplementedError(f"the task '{self.name}' has no pool")

    def prepare(self) -> None:
        """Read the data set."""
        self.pool()

    def questions(self, encode: Encode, positions: int | None) -> list[Question]:
        """Return the questions; each is checked to fit the model's positions."""
        rng = random.Random(self.seed)
        usable = [a for a in self.pool() if len(self._others(a)) >= self.distractors]
        if len(usable) < self.asked:
            raise EvaluationError(
                f"{self.name} has {len(usable)} questions with {self.distractors} distractors, "
                f"not {self.asked}; ask fewer, or with fewer distractors"
            )
        found = [self._question(a, rng) for a in rng.sample(usable, self.asked)]
        if positions is not None:
            self._check(max(len(encode(q.prompt, q.lead)) for q in found), positions)
        return found

    def _check(self, longest: int, positions: int) -> None:
        if longest + ROOM > positions:
            raise EvaluationError(
                f"{self.name} with {self.distractors} distractors has a prompt of {longest} tokens "
                f"and {ROOM} for the answer, more than the model's {positions} positions; give "
                "fewer distractors"
            )

    @staticmethod
    def _others(asked: Asked) -> list[str]:
        return [p for p in asked.near if p not in asked.passages]

    def _question(self, asked: Asked, rng: random.Random) -> Question:
        passages = [*asked.passages, *rng.sample(self._others(asked), self.distractors)]
        rng.shuffle(passages)
        text = "\n\n".join(passages)
        prompt = f"Read the text and answer the question.\n\n{text}\n\nQuestion: {asked.question}"
        return Question(prompt, "\nAnswer:", asked.answers, ROOM)


@task
@dataclass(frozen=True)
class Squad(Answering):
    """SQuAD 2.0, the questions that have an answer, which stands in one passage."""

    name = "squad"

    def pool(self) -> Sequence[Asked]:
        """Return SQuAD's."""
        return sources.squad()


@task
@dataclass(frozen=True)
class Hotpot(Answering):
    """HotpotQA, whose answers need two passages; up to eight distractors come with each."""

    name = "hotpot"

    def pool(self) -> Sequence[Asked]:
        """Return HotpotQA's."""
        return sources.hotpot()
