"""Bounds: what they read, what they refuse before any work, and what a missed one says."""

from pathlib import Path
from typing import Any

import pytest
import torch

import elidir
from elidir.evaluate import Demand
from elidir.frontends import Bound, Estimate, Quality, QualityError, check_bounds, read_bounds
from elidir.frontends.calibration import bundled_text
from elidir.ir import ElidirError
from tests.evaluation.models import Flatten, flattened, model, text
from tests.zoo import NAMED


def test_several_are_read() -> None:
    wanted = (Bound("kl", "<=", 0.02), Bound("top1", ">=", 0.9), Bound("ppl_ratio", "<=", 1.03))
    assert read_bounds("kl<=0.02,top1 >= 0.9,  ppl_ratio<=1.03,") == wanted
    assert read_bounds("passkey>=1", ["passkey"]) == (Bound("passkey", ">=", 1.0),)
    assert ", ".join(map(str, wanted)) == "kl<=0.02, top1>=0.9, ppl_ratio<=1.03"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the bound is empty"),
        ("kl", "'kl' is no bound; write one as kl<=0.02"),
        ("kl<0.02", "is no bound"),
        ("kl<=0.02 top1>=0.9", "is no bound"),
        ("kld<=0.02", "no metric 'kld'; did you mean 'kl'?"),
        ("top-1>=0.9", "did you mean 'top1'?"),
        ("passkey>=0.9", "no metric 'passkey'"),
        ("kl>=0.02", "of kl less is better; write kl<=0.02"),
        ("top1<=0.9", "of top1 more is better; write top1>=0.9"),
        ("top1>=90", "must be a number, from 0 to 1"),
        ("kl<=-1", "must be a number, 0 or more"),
        ("kl<=nan", "must be a number"),
        ("kl<=low", "must be a number"),
    ],
)
def test_mistakes(text: str, says: str) -> None:
    with pytest.raises(ElidirError) as error:
        read_bounds(text)
    assert says in str(error.value)


def test_what_is_missed_is_said_with_the_figures() -> None:
    found = {"kl": Estimate(0.03, 0.02, 0.04), "top1": Estimate(0.95), "ppl": Estimate(20.0)}
    check_bounds(read_bounds("kl<=0.03, top1>=0.95"), found, "it")
    with pytest.raises(QualityError) as error:
        check_bounds(read_bounds("kl<=0.02, top1>=0.9, ppl<=19"), found, "the pipeline p", 7)
    assert str(error.value) == (
        "the pipeline p: kl<=0.02 is missed, kl is 0.03 (0.02 to 0.04); ppl<=19 is missed, ppl is "
        "20; choose a milder pipeline or a wider bound"
    )
    assert error.value.measured == 7


def test_what_is_no_number_is_missed() -> None:
    with pytest.raises(QualityError):
        check_bounds(read_bounds("kl<=1"), {"kl": Estimate(float("nan"))}, "it")


# ---- while compiling


def test_compile_takes_what_is_good_enough() -> None:
    bounds = "kl<=1e-9, top1>=1, ppl_ratio<=1"
    made = elidir.compile(model(), quality=bounds, quality_texts=text())
    assert isinstance(made, elidir.Compiled)


def test_compile_refuses_with_figures_what_is_not() -> None:
    with pytest.raises(QualityError, match=r"flatten.*: kl<=0.001 is missed, kl is 0\.\d+ \(") as e:
        elidir.compile(
            model(), pipeline=[Flatten()], quality="kl<=0.001, top1>=0.9", quality_texts=text()
        )
    assert "top1" not in str(e.value)
    assert isinstance(e.value.measured, Quality)
    assert e.value.measured.kl.value > 0.001


def test_it_is_measured_on_the_calibration_text_if_on_no_other() -> None:
    with pytest.raises(QualityError) as e:
        elidir.compile(model(), pipeline=[Flatten()], quality="kl<=0", calibration=text())
    wanted = flattened().quality(text(), most=8)
    assert e.value.measured.by_window == wanted.by_window


def test_a_named_model_is_measured_on_the_bundled_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elidir.cache.compile_named", lambda *args, **options: None)
    seen = []
    monkeypatch.setattr(Demand, "check", lambda self, made: seen.append(self.texts))
    elidir.compile("smollm2", quality="kl<=0.1")
    elidir.compile("smollm2", quality="kl<=0.1", calibration=Path("seen.safetensors"))
    elidir.compile("smollm2", quality="kl<=0.1", calibration=["given"])
    assert seen == [bundled_text(), bundled_text(), ["given"]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"quality": "kld<=0.1", "quality_texts": "x"}, "did you mean 'kl'"),
        ({"quality": "kl<=0.1"}, "give quality_texts="),
        ({"quality": "kl<=0.1", "calibration": [{"input_ids": [1]}]}, "give quality_texts="),
    ],
)
def test_compile_refuses_a_wrong_demand_before_it_captures(
    options: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elidir.compiler.Compiled", lambda *args: pytest.fail("captured"))
    with pytest.raises(ElidirError, match=says):
        elidir.compile(model(), **options)


def test_quality_is_asked_of_language_models() -> None:
    with pytest.raises(ElidirError, match="is measured on a language model"):
        elidir.compile(quality="kl<=0.1", quality_texts=text())(torch.relu)
    with pytest.raises(ElidirError, match="cannot generate"):
        elidir.compile(NAMED["vit"].factory(), quality="kl<=0.1", quality_texts=text())
