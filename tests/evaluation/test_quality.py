"""Quality on text: equal to what transformers alone would say, however the text is fed.

The compiled model is a tiny Llama whose scores a pass has multiplied by a number, so that every
figure can be computed without elidir.
"""

import json
from typing import Any

import pytest
import torch

import elidir
from elidir.frontends import Feeding, Quality, token_windows
from tests.evaluation.models import Flatten, by_hand, exact, flattened, model, text

WINDOW = 32


def measured(compiled: elidir.Compiled, **options: Any) -> Quality:
    options = {"window": WINDOW, "feeding": Feeding(chunk=5, singles=3)} | options
    return compiled.quality(text(), **options)


def close(found: float, wanted: Any) -> None:
    assert found == pytest.approx(float(wanted), abs=1e-5)


def test_the_figures_are_those_of_transformers() -> None:
    found = measured(flattened())
    ids = token_windows(text(), WINDOW)
    kl, _, nll, nll_flat = by_hand(ids, WINDOW // 2).mean((1, 2))
    close(found.kl.value, kl)
    assert found.top1.value == 1
    close(found.ppl_original.value / nll.exp(), 1)
    close(found.ppl.value / nll_flat.exp(), 1)
    close(found.ppl_ratio.value / (nll_flat - nll).exp(), 1)
    assert found.scored == ids.shape[0] * WINDOW // 2
    for window, wanted in zip(found.by_window, by_hand(ids, WINDOW // 2).mean(2).T, strict=True):
        close(window.kl, wanted[0])
        close(window.nll_compiled, wanted[3])


def test_a_model_is_like_itself() -> None:
    found = measured(exact())
    assert (found.kl.value, found.top1.value, found.ppl_ratio.value) == (0, 1, 1)


@pytest.mark.parametrize(
    "feeding",
    [
        Feeding(),
        Feeding(chunk=1, singles=0),
        Feeding(chunk=7, singles=0),
        Feeding(chunk=1000, singles=1000),
        Feeding(context=WINDOW // 2, chunk=4, singles=15),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 4])
def test_how_it_is_fed_does_not_matter(feeding: Feeding, batch: int) -> None:
    wanted, found = (
        measured(flattened(), feeding=f, batch=b) for f, b in [(None, 1), (feeding, batch)]
    )
    assert len(found.by_window) == len(wanted.by_window)
    for a, b in zip(found.by_window, wanted.by_window, strict=True):
        close(a.kl, b.kl)
        close(a.nll, b.nll)
        close(a.nll_compiled, b.nll_compiled)


@pytest.mark.parametrize("context", [1, 20, WINDOW - 1])
def test_only_what_follows_the_context_is_scored(context: int) -> None:
    found = measured(flattened(), feeding=Feeding(context=context, chunk=6, singles=2))
    ids = token_windows(text(), WINDOW)
    close(found.kl.value, by_hand(ids, context)[0].mean())
    assert found.scored == len(ids) * (WINDOW - context)


def test_every_token_is_read_once_and_the_last_by_none() -> None:
    for length in (2, 3, 17, 64):
        for feeding in (Feeding(), Feeding(chunk=3, singles=4), Feeding(context=1, singles=0)):
            steps = feeding.steps(length, feeding.chunk)
            read = [t for begin, end in steps for t in range(begin, end)]
            assert read == list(range(length - 1))
            assert steps[0] == (0, feeding.prefilled(length))


def test_without_a_cache_the_figures_are_the_same() -> None:
    fixed = elidir.compile(model(), pipeline=[Flatten()], static=(2, WINDOW))
    assert "step" not in fixed.program.module.functions
    found = measured(fixed, batch=2, most=4)
    wanted = measured(flattened(), most=4)
    for a, b in zip(found.by_window, wanted.by_window, strict=True):
        close(a.kl, b.kl)
        close(a.nll_compiled, b.nll_compiled)


def test_intervals_hold_the_figure_and_repeat_with_the_seed() -> None:
    one, two, other = (measured(flattened(), seed=s).kl for s in (1, 1, 2))
    assert one == two
    assert (one.low, one.high) != (other.low, other.high)
    assert one.low < one.value < one.high


def test_a_single_window_has_no_interval() -> None:
    found = measured(flattened(), most=1)
    assert len(found.by_window) == 1
    assert found.kl.low is found.kl.high is None


def test_the_original_keeps_its_dtype_and_shares_weights() -> None:
    half = elidir.compile(model(), dtype=torch.bfloat16)
    found = measured(half)
    assert 1e-7 < found.kl.value < 1e-2
    assert found.speed.kv_bytes * 2 == found.speed_original.kv_bytes
    close(found.ppl_original.value, measured(exact()).ppl_original.value)


# ---- how it shows


def test_json_text_and_html_say_the_same() -> None:
    found = measured(flattened())
    data = json.loads(found.to_json())
    assert data["kl"]["value"] == found.kl.value
    assert data["windows"] == len(data["by_window"]) == len(found.by_window)
    assert data["feeding"] == {"window": WINDOW, "context": WINDOW // 2, "chunk": 5, "singles": 3}
    assert set(data["speed"]) == set(data["speed_ratio"])
    for shown in (found.to_text(), str(found), found._repr_html_()):
        assert f"{found.kl.value:.3g}" in shown
        assert "tokens scored" in shown
    assert found._repr_html_().count("<tr>") == 7
