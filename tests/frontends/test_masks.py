"""Masks written in many ways are one predicate over positions, and look-alikes stay what they are.

Each model is one plain attention whose scores are masked as the test spells it. What the mask is
must show in the raised ops, and the numbers must be eager's.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from elidir.ir import MaskWindow
from tests.frontends.plain import SIZES, Raised, Spelled, raise_plain, softmax

LIMIT = 64
NEVER = float("-inf")

Mask = Callable[[Tensor], Tensor]


def slots(scores: Tensor) -> Tensor:
    """The slots of the tokens, 0 to T - 1."""
    return torch.arange(scores.shape[-1], device=scores.device)


def masked(mask: Mask, **options: int) -> Raised:
    """Raise a plain attention under a mask; the numbers must be eager's."""
    raised = raise_plain(Spelled(mask, **options))
    assert raised.error <= 1e-5
    assert raised.kinds["attention"] == 1
    return raised


def masks(raised: Raised) -> set[str]:
    """The kinds of masks and biases of a raised program."""
    return {k for k in raised.kinds if k.startswith(("mask.", "bias."))}


# ---- causal


class Triangle(nn.Module):
    """A stored triangle of what may not be seen."""

    def __init__(self, dtype: torch.dtype = torch.bool) -> None:
        super().__init__()
        future = torch.triu(torch.ones(LIMIT, LIMIT), diagonal=1).to(dtype)
        self.register_buffer("future", future, persistent=False)

    def forward(self, scores: Tensor) -> Tensor:
        length = scores.shape[-1]
        return scores.masked_fill(self.future[:length, :length] == 1, NEVER)


def as_bool(scores: Tensor) -> Tensor:
    t = slots(scores)
    return scores.masked_fill(t[None, :] > t[:, None], NEVER)


def as_addend(scores: Tensor) -> Tensor:
    t = slots(scores)
    return scores + torch.where(t[None, :] > t[:, None], -1e9, 0.0)


def as_where(scores: Tensor) -> Tensor:
    t = slots(scores)
    return torch.where(t[:, None] >= t, scores, torch.finfo(scores.dtype).min)


def as_lower_triangle(scores: Tensor) -> Tensor:
    length = scores.shape[-1]
    return scores.masked_fill(torch.tril(scores.new_ones(length, length)) == 0, -1e30)


def as_upper_triangle(scores: Tensor) -> Tensor:
    length = scores.shape[-1]
    return scores + torch.triu(torch.full((length, length), NEVER), diagonal=1)


def as_product(scores: Tensor) -> Tensor:
    t = slots(scores)
    seen = (t[:, None] >= t).to(scores.dtype)
    return scores + (1.0 - seen) * torch.finfo(scores.dtype).min


SPELLINGS = [as_bool, as_addend, as_where, as_lower_triangle, as_upper_triangle, as_product]
STORED = [Triangle, lambda: Triangle(torch.float32)]


@pytest.mark.parametrize("mask", SPELLINGS)
def test_causal_in_any_spelling(mask: Mask) -> None:
    assert masks(masked(mask)) == {"mask.causal"}


@pytest.mark.parametrize("make", STORED, ids=["bool", "float"])
def test_a_stored_triangle_is_causal(make: Callable[[], Mask]) -> None:
    assert masks(masked(make(), limit=LIMIT)) == {"mask.causal"}


def test_no_mask_sees_everything() -> None:
    assert masks(masked(lambda scores: scores)) == set()


# ---- windows


def window_by_distance(scores: Tensor, width: int) -> Tensor:
    t = slots(scores)
    far = t[:, None] - t[None, :]
    return scores.masked_fill((far < 0) | (far >= width), NEVER)


def window_by_triangles(scores: Tensor, width: int) -> Tensor:
    length = scores.shape[-1]
    ones = scores.new_ones(length, length)
    band = torch.tril(ones) - torch.tril(ones, diagonal=-width)
    return scores.masked_fill(band == 0, NEVER)


def window_by_addends(scores: Tensor, width: int) -> Tensor:
    t = slots(scores)
    late = torch.where(t[None, :] <= t[:, None], 0.0, -1e9)
    near = torch.where(t[None, :] > t[:, None] - width, 0.0, -1e9)
    return scores + torch.maximum(late + near, torch.tensor(-1e9))


WINDOWS = [window_by_distance, window_by_triangles, window_by_addends]


@pytest.mark.parametrize("spelling", WINDOWS)
@pytest.mark.parametrize("width", [1, 5])
def test_a_window_in_any_spelling(spelling: Callable[[Tensor, int], Tensor], width: int) -> None:
    raised = masked(lambda scores: spelling(scores, width))
    window = raised.one("mask.window")
    assert isinstance(window, MaskWindow)
    assert (window.before, window.after) == (width - 1, 0)
    assert masks(raised) - {"mask.valid"} == {"mask.causal", "mask.window", "mask.and"}


@pytest.mark.parametrize("spelling", WINDOWS)
def test_a_window_wider_than_any_probe(spelling: Callable[[Tensor, int], Tensor]) -> None:
    raised = masked(lambda scores: spelling(scores, 4096), limit=8192)
    window = raised.one("mask.window")
    assert isinstance(window, MaskWindow)
    assert (window.before, window.after) == (4095, 0)


def test_a_window_on_both_sides() -> None:
    def near(scores: Tensor) -> Tensor:
        t = slots(scores)
        return scores.masked_fill((t[:, None] - t[None, :]).abs() > 3, NEVER)

    raised = masked(near)
    window = raised.one("mask.window")
    assert isinstance(window, MaskWindow)
    assert (window.before, window.after) == (3, 3)
    assert masks(raised) == {"mask.window"}


# ---- what is no predicate over distances


def in_chunks(scores: Tensor, size: int) -> Tensor:
    t = slots(scores)
    apart = t[:, None] // size != t[None, :] // size
    return scores.masked_fill(apart | (t[None, :] > t[:, None]), NEVER)


@pytest.mark.parametrize("size", [4, 16])
def test_chunks_are_no_window(size: int) -> None:
    raised = masked(lambda scores: in_chunks(scores, size))
    assert "mask.window" not in masks(raised)


def test_chunks_longer_than_a_probe_are_not_taken_for_causal() -> None:
    """At any length below 40 such chunks look causal; at 50 they must still be right."""
    model = Spelled(lambda scores: in_chunks(scores, 40))
    raised = raise_plain(model, sizes=[*SIZES, (1, 50)])
    assert raised.error <= 1e-5


def test_a_prefix_that_all_see_is_not_causal() -> None:
    def prefix(scores: Tensor) -> Tensor:
        t = slots(scores)
        return scores.masked_fill((t[None, :] > t[:, None]) & (t[None, :] >= 3), NEVER)

    raised = masked(prefix)
    assert masks(raised) <= {"mask.dense"}


def test_strides_are_no_window() -> None:
    def strided(scores: Tensor) -> Tensor:
        t = slots(scores)
        far = t[:, None] - t[None, :]
        return scores.masked_fill((far < 0) | (far % 2 == 1), NEVER)

    assert "mask.window" not in masks(masked(strided))


def test_a_bias_by_distance_stays_a_bias() -> None:
    def distant(scores: Tensor) -> Tensor:
        t = slots(scores)
        far = (t[:, None] - t[None, :]).float()
        return scores.masked_fill(far < 0, NEVER) - 0.01 * far**2

    assert masks(masked(distant)) <= {"mask.causal", "mask.dense"}


def test_slopes_by_distance_are_alibi() -> None:
    def alibi(scores: Tensor) -> Tensor:
        t = slots(scores)
        slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
        far = (t[None, :] - t[:, None]).float()
        return (scores + slopes[:, None, None] * far).masked_fill(far > 0, NEVER)

    assert masks(masked(alibi)) == {"mask.causal", "bias.alibi"}


# ---- attention look-alikes


def squared_relu(scores: Tensor) -> Tensor:
    return torch.relu(scores).square() / scores.shape[-1]


def one_more(scores: Tensor) -> Tensor:
    weights = scores.exp()
    return weights / (1.0 + weights.sum(-1, keepdim=True))


def over_queries(scores: Tensor) -> Tensor:
    return scores.softmax(-2)


NORMALISERS = [torch.sigmoid, squared_relu, one_more, over_queries]


@pytest.mark.parametrize("normalise", NORMALISERS, ids=lambda f: f.__name__)
def test_another_normaliser_is_no_attention(normalise: Mask) -> None:
    raised = raise_plain(Spelled(normalise=normalise))
    assert raised.error <= 1e-5
    assert not raised.kinds["attention"]


def test_a_softmax_that_reads_the_keys_is_no_mask() -> None:
    """Scores scaled by what the tokens say are no attention of ours."""

    def scaled(scores: Tensor) -> Tensor:
        return softmax(scores * scores.mean(-1, keepdim=True))

    raised = raise_plain(Spelled(normalise=scaled))
    assert raised.error <= 1e-5
    assert not raised.kinds["attention"]


def test_a_scale_and_a_softcap_are_attention() -> None:
    def capped(scores: Tensor) -> Tensor:
        return softmax(as_bool(5.0 * torch.tanh(0.5 * scores / 5.0)))

    raised = raise_plain(Spelled(normalise=capped))
    attention = raised.one("attention")
    assert raised.error <= 1e-5
    assert attention.attributes()["softcap"] == 5.0
    assert math.isclose(attention.attributes()["scale"], 0.5 / math.sqrt(8))
