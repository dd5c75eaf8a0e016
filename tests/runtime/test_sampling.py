"""Choosing tokens: each function equals the processor of transformers on the same scores.

And the order of the warpers, which `generate` must keep, equals the one transformers builds.
"""

import pytest
import torch
from torch import Tensor
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from elidir.backends.runtime import (
    draw,
    forbid,
    greedy,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    temper,
)

VOCABULARY = 1000


def scores(seed: int = 0, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(4, VOCABULARY, generator=generator)


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature(temperature: float) -> None:
    same(temper(scores(), temperature), TemperatureLogitsWarper(temperature)(None, scores()))


@pytest.mark.parametrize("k", [1, 7, 50, VOCABULARY, 5 * VOCABULARY])
def test_top_k(k: int) -> None:
    same(keep_top_k(scores(), k), TopKLogitsWarper(k)(None, scores()))


def test_top_k_keeps_ties() -> None:
    tied = torch.tensor([[3.0, 2.0, 2.0, 1.0]])
    same(keep_top_k(tied, 2), TopKLogitsWarper(2)(None, tied))
    assert torch.isfinite(keep_top_k(tied, 2)).sum() == 3


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.1, 3.0, 20.0])
def test_top_p(p: float, spread: float) -> None:
    given = scores(spread=spread)
    same(keep_top_p(given, p), TopPLogitsWarper(p)(None, given))


@pytest.mark.parametrize("k", [1, 20, 124, 126, 500])
def test_top_p_after_top_k_sorts_fewer_and_finds_the_same(k: int) -> None:
    given = keep_top_k(scores(spread=1.0), k)
    same(keep_top_p(given, 0.7), TopPLogitsWarper(0.7)(None, given))


def test_repetition_penalty() -> None:
    history = torch.randint(0, VOCABULARY, (4, 30))
    wanted = RepetitionPenaltyLogitsProcessor(1.7)(history, scores())
    same(penalize_repetition(scores(), history, 1.7), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_greedy_takes_the_first_of_the_best(dtype: torch.dtype) -> None:
    given = torch.tensor([[0, 3, 1, 3], [-5, -7, -5, -6]], dtype=dtype)
    assert greedy(given).tolist() == [1, 0]
    same(greedy(scores().to(dtype)), scores().to(dtype).argmax(-1))


def test_forbidden_tokens_are_never_chosen() -> None:
    best = greedy(scores())
    ruled_out = forbid(scores(), best)
    assert not set(greedy(ruled_out).tolist()) & set(best.tolist())
    assert int(torch.isinf(ruled_out).sum()) == 4 * len(set(best.tolist()))


def test_nothing_writes_to_its_arguments() -> None:
    given, history = scores(), torch.zeros(4, 2, dtype=torch.int64)
    temper(given, 0.5), keep_top_k(given, 3), keep_top_p(given, 0.5), forbid(given, history[0])
    penalize_repetition(given, history, 2.0)
    same(given, scores())


def test_draws_follow_the_probabilities_and_the_generator() -> None:
    law = torch.tensor([0.6, 0.3, 0.1])
    many = law.log().expand(20000, -1)
    drawn = draw(many, torch.Generator().manual_seed(1))
    frequencies = torch.bincount(drawn, minlength=3) / len(drawn)
    # Five standard deviations of the largest of the three.
    torch.testing.assert_close(frequencies, law, rtol=0, atol=5 * 0.5 / 20000**0.5)
    same(drawn, draw(many, torch.Generator().manual_seed(1)))
    assert not torch.equal(drawn, draw(many, torch.Generator().manual_seed(2)))
