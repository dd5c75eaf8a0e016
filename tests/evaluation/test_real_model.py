"""SmolLM2 evaluated: the original's figures are transformers', bfloat16 is near, a key is found."""

from pathlib import Path

import pytest
import torch

import elidir
from elidir.frontends import Feeding, Passkey, load, token_windows

TEXT = Path(__file__).parents[2] / "LICENSE"
WINDOW, CONTEXT = 192, 128


@pytest.mark.slow
def test_the_figures_of_a_real_model() -> None:
    half = elidir.compile("smollm2", dtype="bfloat16")
    feeding = Feeding(context=CONTEXT, chunk=48, singles=4)
    found = half.evaluate(
        [Passkey(lengths=(200,), depths=(0.5,), trials=1)],
        TEXT.read_text(),
        window=WINDOW,
        most=1,
        feeding=feeding,
    )
    assert 1e-6 < found.quality.kl.value < 0.01
    assert found.quality.top1.value > 0.9
    assert found.quality.speed.kv_bytes * 2 == found.quality.speed_original.kv_bytes
    assert found.metrics["passkey"].value == found.tasks[0].original.value == 1
    ids = token_windows(TEXT.read_text(), WINDOW, half.tokenizer, most=1)
    with torch.no_grad():
        logits = load("smollm2").model(ids).logits[0, CONTEXT - 1 : -1].double()
    wanted = torch.nn.functional.cross_entropy(logits, ids[0, CONTEXT:]).exp()
    assert found.quality.ppl_original.value == pytest.approx(float(wanted), rel=1e-4)
