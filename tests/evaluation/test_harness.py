"""What lm-eval is told: log-likelihoods as transformers alone would give them, and text.

lm-eval is not needed. A stand-in for the two names that `elidir.harness` imports of it shows that
its class passes requests on as they are.
"""

import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import elidir
from elidir.frontends import Harness
from elidir.ir import ElidirError
from tests.evaluation.models import exact, model
from tests.zoo import LENGTH_LIMIT

START = 1


@dataclass(frozen=True)
class Alphabet:
    """A tokenizer of letters, whose texts begin with a token unless they say it themselves."""

    begins: bool = True
    template: str = "{% for m in messages %}{{ m.content }}{% endfor %}"
    text: str = "alphabet"

    def encode(self, text: str) -> list[int]:
        return [START] * self.begins + [START if c == "^" else ord(c) - 28 for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i + 28) for i in ids if i >= 4)


@pytest.fixture(params=[True, False], ids=["begins", "plain"])
def harness(request: pytest.FixtureRequest) -> Harness:
    """The tiny Llama behind each kind of tokenizer, its steps so small that they are many."""
    return Harness(exact().language_model(), Alphabet(request.param), chunk=3)


def by_hand(ids: list[int], known: int) -> tuple[float, bool]:
    """Log-likelihood of what follows the first tokens, by transformers."""
    with torch.no_grad():
        scores = model()(torch.tensor([ids])).logits[0, known - 1 : -1].double()
    said = torch.tensor(ids[known:])
    logs = scores.log_softmax(-1).gather(-1, said[:, None])
    return float(logs.sum()), bool((scores.argmax(-1) == said).all())


PAIRS = [
    ("THE SKY IS", " BLUE"),
    ("THE SKY IS", " A LONG WAY OFF AND BLUE"),
    ("ANOTHER", " ONE"),
    ("THE SKY IS", "N"),
    ("THE SKY IS ", "BLUE"),
    ("", "NOTHING BEFORE"),
    ("  ", "SPACE BEFORE"),
]


def test_continuations_are_scored_behind_their_context(harness: Harness) -> None:
    for (context, more), (score, greedy) in zip(PAIRS, harness.loglikelihoods(PAIRS), strict=True):
        known = len(context.rstrip())
        begun = harness.tokenizer.begins or not known
        ids = [START] * begun + Alphabet(False).encode(context + more)
        wanted, best = by_hand(ids, known + begun)
        assert score == pytest.approx(wanted, abs=1e-4)
        assert greedy == best


@pytest.mark.parametrize("scorer", ["h2o", "knorm"])
def test_a_cache_that_evicts_scores_each_continuation_behind_the_same_context(scorer: str) -> None:
    text = f"lossless, evict-kv{{keep=0.5 at_least=4 force=true scorer={scorer}}}"
    compiled = elidir.compile(model(), pipeline=text)
    harness = Harness(compiled.language_model(), Alphabet(), chunk=1)
    pairs = [("THE SKY IS OVER THE LAND", more) for more in (" BLUE", " RED AND", " BLUE")]
    together = harness.loglikelihoods(pairs)
    assert together == [harness.loglikelihoods([pair])[0] for pair in pairs]
    assert together[0] == together[2] != together[1]


def test_what_greedy_decoding_says_is_greedy(harness: Harness) -> None:
    said = harness.until("THE SKY", {"max_gen_toks": 3})
    ids = harness.tokenizer.encode("THE SKY")
    made = exact().generate([ids], max_new_tokens=3, do_sample=False)[0, len(ids) :].tolist()
    assert said == harness.tokenizer.decode(made)
    if all(i >= 4 for i in made):
        ((_, greedy),) = harness.loglikelihoods([("THE SKY", said)])
        assert greedy


def test_a_text_is_not_begun_twice() -> None:
    begins, plain = (Harness(exact().language_model(), Alphabet(b)) for b in (True, False))
    assert begins.loglikelihoods([("^THE", " SKY")]) == plain.loglikelihoods([("^THE", " SKY")])


@pytest.mark.parametrize("length", [1, 5, LENGTH_LIMIT, LENGTH_LIMIT + 1, 3 * LENGTH_LIMIT - 5])
def test_a_whole_text_is_predicted_once(harness: Harness, length: int) -> None:
    text = ("THE QUICK BROWN FOX JUMPS. " * 20)[:length]
    ids = [START, *Alphabet(False).encode(text)]
    wanted = 0.0
    for begin in range(1, len(ids), LENGTH_LIMIT):
        end = min(begin + LENGTH_LIMIT, len(ids))
        start = max(0, end - 1 - LENGTH_LIMIT)
        wanted += by_hand(ids[start:end], begin - start)[0]
    assert harness.rolling(text) == pytest.approx(wanted, abs=1e-3)


def test_a_context_that_is_too_long_keeps_its_end(harness: Harness) -> None:
    context = ("A LONG WAY OFF. " * 20)[: 2 * LENGTH_LIMIT] + "END"
    ((score, _),) = harness.loglikelihoods([(context, "ING")])
    ids = Alphabet(False).encode(context + "ING")[-LENGTH_LIMIT - 1 :]
    assert score == pytest.approx(by_hand(ids, LENGTH_LIMIT - 2)[0], abs=1e-4)
    assert len(harness.until(context, {"max_gen_toks": 9})) <= 9


def test_text_ends_before_a_stop_string(harness: Harness) -> None:
    whole = harness.until("THE SKY", {"max_gen_toks": 40})
    assert len(whole) > 8
    stop = whole[5:7]
    cut = harness.until("THE SKY", {"max_gen_toks": 40, "until": [stop, "@@"], "temperature": 0.0})
    assert cut == whole[: whole.index(stop)]
    assert harness.until("THE SKY", {"max_gen_toks": 40, "until": stop}) == cut


SAMPLED = {"max_gen_toks": 5, "do_sample": True}


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda h: h.loglikelihoods([("A", "B" * 200)]), "more than the model's 128 positions"),
        (lambda h: h.until("A", {"max_gen_toks": 500}), "give a smaller max_gen_toks"),
        (lambda h: h.until("A", SAMPLED | {"top_q": 1}), "did you mean 'top_"),
    ],
)
def test_mistakes(harness: Harness, ask: Any, says: str) -> None:
    with pytest.raises(ElidirError, match=says):
        ask(harness)


# ---- lm-eval's class


class Model:
    """What `lm_eval.api.model.LM` is to its subclasses."""

    def __init__(self) -> None:
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *args: None)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules with the names that `elidir.harness` imports."""
    names = ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry")
    made = {name: types.ModuleType(name) for name in names}
    made["lm_eval.api.model"].LM = Model
    made["lm_eval.api.registry"].register_model = lambda name: lambda cls: cls
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "elidir.harness", raising=False)
    yield
    sys.modules.pop("elidir.harness", None)


@pytest.mark.usefixtures("stand_in")
def test_the_class_answers_requests_in_order() -> None:
    from elidir.harness import ElidirLM

    compiled = elidir.Compiled.of(exact().program, Alphabet())
    made = ElidirLM(compiled, batch_size=1, device="cpu")
    harness = Harness(compiled.language_model(), Alphabet())
    asked = [types.SimpleNamespace(args=pair) for pair in PAIRS]
    assert made.loglikelihood(asked) == harness.loglikelihoods(PAIRS)
    texts = [types.SimpleNamespace(args=(text,)) for text in ("ONE", "TWO AND")]
    assert made.loglikelihood_rolling(texts) == [harness.rolling("ONE"), harness.rolling("TWO AND")]
    options = {"until": ["."], "max_gen_toks": 5}
    asked = [types.SimpleNamespace(args=("THE SKY", options))]
    assert made.generate_until(asked) == [harness.until("THE SKY", options)]


@pytest.mark.usefixtures("stand_in")
def test_the_class_knows_its_chat_template() -> None:
    from elidir.harness import ElidirLM

    tokenizer = elidir.frontends.Tokenizer("{}", "{{ messages[0].content }}!", {})
    made = ElidirLM(elidir.Compiled.of(exact().program, tokenizer))
    assert made.apply_chat_template([{"role": "user", "content": "HI"}]) == "HI!"
    assert made.chat_template(True) == tokenizer.template
    assert made.tokenizer_name.startswith("elidir-")


@pytest.mark.usefixtures("stand_in")
def test_what_the_class_needs() -> None:
    from elidir.harness import ElidirLM

    for given, says in (
        ({}, "give ElidirLM a compiled model, or the name"),
        ({"compiled": exact(), "model": "smollm2"}, "give ElidirLM a compiled model, or the name"),
        ({"compiled": exact()}, "no tokenizer"),
        ({"model": "smolm2"}, "did you mean 'smollm2'"),
    ):
        with pytest.raises(ElidirError, match=says):
            ElidirLM(**given)


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "elidir.harness", raising=False)
    with pytest.raises(ElidirError, match=r"pip install 'elidir\[eval\]'"):
        __import__("elidir.harness")
