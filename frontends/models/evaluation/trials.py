"""Asking two models the same questions: who was right, and how fast each was.

Both answer each question in turn, greedily, so that what the machine does besides falls on both.
The answers come through `generate`, over the cache. Tasks are in `tasks`; nothing is printed.
"""

import string
import time
from dataclasses import asdict, dataclass, field, fields, replace
from statistics import median
from typing import Any

from torch import Tensor

from elidir.backends.runtime import Decoder, LanguageModel, Opening, generate
from elidir.frontends.evaluation.errors import EvaluationError
from elidir.frontends.evaluation.intervals import Estimate, bootstrap
from elidir.frontends.evaluation.scoring import Notify, quiet
from elidir.frontends.evaluation.tasks import Encode, Question, Task
from elidir.frontends.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answer:
    """What a model said, whether it was right, and what it took.

    Args:
        text: without the prompt.
        right: whether a known answer is in it.
        tokens: how many it has.
        first_seconds: from the question to the first token.
        token_seconds: of each further token; None if there was none.
        kv_bytes: of the cache at the end.
    """

    text: str
    right: bool
    tokens: int
    first_seconds: float
    token_seconds: float | None
    kv_bytes: int


@dataclass(frozen=True)
class Trial:
    """One question and both answers."""

    group: str
    prompt_tokens: int
    answers: tuple[str, ...]
    original: Answer
    compiled: Answer


@dataclass(frozen=True)
class TaskResult:
    """What came of a task: accuracy of both models, and the speed of one through the other's.

    Args:
        task: its name.
        options: of the task.
        trials: all questions and answers; intervals resample these.
        seed: of the intervals.
    """

    task: str
    options: dict[str, Any]
    trials: tuple[Trial, ...]
    seed: int = 0

    @property
    def original(self) -> Estimate:
        """Share of questions that the original answered rightly."""
        return bootstrap([t.original.right for t in self.trials], self.seed)

    @property
    def compiled(self) -> Estimate:
        """Share of questions that the compiled model answered rightly."""
        return bootstrap([t.compiled.right for t in self.trials], self.seed)

    @property
    def change(self) -> Estimate:
        """The compiled model's share less the original's, question by question."""
        return bootstrap([t.compiled.right - t.original.right for t in self.trials], self.seed)

    @property
    def same(self) -> Estimate:
        """Share of questions to which both said the same words."""
        same = [t.compiled.text == t.original.text for t in self.trials]
        return bootstrap(same, self.seed)

    @property
    def groups(self) -> dict[str, tuple[int, int, int]]:
        """By group: questions, and how many the original and the compiled model had right."""
        names = dict.fromkeys(t.group for t in self.trials if t.group)
        parts = {n: [t for t in self.trials if t.group == n] for n in names}
        return {
            n: (len(p), sum(t.original.right for t in p), sum(t.compiled.right for t in p))
            for n, p in parts.items()
        }

    def ratio(self, what: str) -> Estimate | None:
        """Return the median of the compiled model's figure through the original's."""
        pairs = [(getattr(t.compiled, what), getattr(t.original, what)) for t in self.trials]
        found = [a / b for a, b in pairs if a and b]
        return bootstrap(found, self.seed, _median) if found else None

    def usual(self, what: str) -> tuple[float | None, float | None]:
        """Return the median of a figure for the original and for the compiled model."""
        sides = ([t.original for t in self.trials], [t.compiled for t in self.trials])
        found = [[v for a in side if (v := getattr(a, what)) is not None] for side in sides]
        return tuple(median(f) if f else None for f in found)  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, questions and answers as plain data."""
        shares = ("original", "compiled", "change", "same")
        return {
            "task": self.task,
            "options": self.options,
            "questions": len(self.trials),
            **{name: getattr(self, name).to_dict() for name in shares},
            "groups": {n: dict(zip(_COUNTS, c, strict=True)) for n, c in self.groups.items()},
            "speed": {what: self._speed(what) for what in SPEEDS},
            "trials": [asdict(t) for t in self.trials],
        }

    def _speed(self, what: str) -> dict[str, Any]:
        ratio, (old, new) = self.ratio(what), self.usual(what)
        return {"original": old, "compiled": new, "ratio": ratio and ratio.to_dict()}


SPEEDS = ("first_seconds", "token_seconds", "kv_bytes")
_COUNTS = ("questions", "original", "compiled")


def _median(drawn: Any) -> Any:
    import numpy as np

    return np.median(drawn, axis=-1)


# ---- asking


def encoder(tokenizer: Tokenizer, chat: bool | None = None) -> Encode:
    """Return how questions become ids: through the chat template if there is one, unless told.

    Raises:
        EvaluationError: there is no chat template where one is wanted.
    """
    if chat and not tokenizer.template:
        raise EvaluationError("the model's tokenizer has no chat template; ask it without")
    if chat or (chat is None and tokenizer.template):
        return lambda prompt, lead: tokenizer.encode_chat(prompt)
    return lambda prompt, lead: tokenizer.encode(prompt + lead)


@dataclass(frozen=True)
class Asking:
    """Two models that are asked the questions of a task, in turn."""

    task: Task
    original: LanguageModel
    compiled: LanguageModel
    tokenizer: Tokenizer
    prompts: tuple[tuple[Question, list[int]], ...]

    @classmethod
    def of(
        cls,
        task: Task,
        original: LanguageModel,
        compiled: LanguageModel,
        tokenizer: Tokenizer | None,
        *,
        chat: bool | None = None,
    ) -> "Asking":
        """Make the questions.

        Raises:
            EvaluationError: the model cannot be asked, or the task does not fit it.
        """
        if tokenizer is None:
            raise EvaluationError("the model has no tokenizer, so it cannot be asked questions")
        if original.encodes:
            raise EvaluationError("an encoder-decoder does not go on from a prompt; give a decoder")
        encode = encoder(tokenizer, chat)
        questions = task.questions(encode, original.max_positions)
        prompts = tuple((q, encode(q.prompt, q.lead)) for q in questions)
        return cls(task, original, compiled, tokenizer, prompts)

    def run(self, *, seed: int = 0, notify: Notify = quiet) -> TaskResult:
        """Ask both all questions; `seed` is that of the intervals."""
        self._warm()
        found = []
        for at, (question, ids) in enumerate(self.prompts):
            notify(self.task.name, at, len(self.prompts))
            said = [self._answer(m, ids, question) for m in (self.original, self.compiled)]
            found.append(Trial(question.group, len(ids), question.answers, *said))
        return TaskResult(self.task.name, _options(self.task), tuple(found), seed)

    def _warm(self) -> None:
        """Let both prepare their weights, which would count as the first question's time."""
        for model in (self.original, self.compiled):
            generate(model, [self.prompts[0][1][:8]], max_new_tokens=2, do_sample=False)

    def _answer(self, model: LanguageModel, ids: list[int], question: Question) -> Answer:
        opened: list[Decoder] = []

        def open_(opening: Opening) -> Decoder:
            opened.append(model.open(opening))
            return opened[-1]

        clock, watched = _Clock(), replace(model, open=open_)
        new = question.new_tokens
        out = generate(watched, [ids], max_new_tokens=new, do_sample=False, streamer=clock)
        text = self.tokenizer.decode(out[0, len(ids) :].tolist())
        right = any(contains(text, known) for known in question.answers)
        kv_bytes = opened[0].stats.kv_bytes
        return Answer(text, right, clock.tokens, clock.first, clock.rest, kv_bytes)


def _options(task: Task) -> dict[str, Any]:
    """Return a task's options; of a text its length."""
    given = {f.name: getattr(task, f.name) for f in fields(task)}
    return {k: f"{len(v)} letters" if isinstance(v, str) else v for k, v in given.items()}


@dataclass
class _Clock:
    """A streamer that keeps the time."""

    times: list[float] = field(default_factory=list)

    def put(self, value: Tensor) -> None:
        """Take the prompt, then each token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Take no more."""

    @property
    def tokens(self) -> int:
        """New tokens."""
        return len(self.times) - 1

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[1] - self.times[0]

    @property
    def rest(self) -> float | None:
        """Seconds of each further token, the mean."""
        further = self.tokens - 1
        return (self.times[-1] - self.times[1]) / further if further else None


# ---- judging


def contains(text: str, answer: str) -> bool:
    """Whether an answer is in a text, word for word; case, punctuation and articles do not count.

    An answer that has no word at all is looked for as it is.
    """
    said, wanted = _words(text), _words(answer)
    if not wanted:
        return answer in text
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said)))


def _words(text: str) -> list[str]:
    """Return the words of a text as SQuAD's own measure compares them."""
    plain = "".join(" " if c in _MARKS else c for c in text.lower())
    return [w for w in plain.split() if w not in ("a", "an", "the")]


_MARKS = frozenset(string.punctuation)
