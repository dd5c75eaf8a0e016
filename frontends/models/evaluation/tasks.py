"""Tasks: questions with known answers, made from a seed to lengths and depths that are asked for.

A task is a frozen dataclass whose fields are its options; `questions` makes its items. What asks
the models, and keeps the time, is in `trials`; the tasks themselves are in `hidden` and `passages`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from elidir.frontends.evaluation.errors import EvaluationError
from elidir.ir import nearest

Encode = Callable[[str, str], list[int]]
"""Gives the ids that a model reads: of a question, and of the words that its answer begins with."""


@dataclass(frozen=True)
class Question:
    """A prompt whose answer is known.

    Args:
        prompt: as a user would ask.
        lead: what the answer begins with, for a model without a chat template.
        answers: one of these must be in what the model says.
        new_tokens: tokens of the answer at most.
        group: what figures are given for apart, such as a length and a depth.
    """

    prompt: str
    lead: str
    answers: tuple[str, ...]
    new_tokens: int
    group: str = ""


@dataclass(frozen=True)
class Task:
    """Base of every task; the fields of a subclass are its options."""

    name: ClassVar[str]

    def prepare(self) -> None:
        """Read the data that it needs; raises `EvaluationError` if that is not installed."""

    def questions(self, encode: Encode, positions: int | None) -> list[Question]:
        """Return the questions; raises `EvaluationError` if the model is too short for them."""
        raise NotImplementedError(f"the task '{self.name}' has no questions")


_TASKS: dict[str, type[Task]] = {}
T = TypeVar("T", bound=type[Task])


def task(cls: T) -> T:
    """Enter a task under its name; raises if the name is taken."""
    if cls.name in _TASKS:
        raise EvaluationError(f"the task name '{cls.name}' is taken; choose another")
    _TASKS[cls.name] = cls
    return cls


def tasks() -> Mapping[str, type[Task]]:
    """Return every task by name."""
    from elidir.frontends.evaluation import hidden, passages  # noqa: F401 - they enter their own

    return dict(_TASKS)


def task_of(name: str, options: Mapping[str, Any]) -> Task:
    """Return a task with those of some options that it has.

    Raises:
        EvaluationError: there is no such task, or an option is out of range.
    """
    known = tasks()
    if name not in known:
        raise EvaluationError(f"no task '{name}'{nearest(name, known)}")
    own = {f.name for f in fields(known[name])}
    return known[name](**{k: v for k, v in options.items() if k in own and v is not None})


def at_least(name: str, value: int, least: int) -> None:
    """Raise `EvaluationError` for an option that is too small."""
    if value < least:
        raise EvaluationError(f"{name} is {value}; it must be {least} or more")
