"""Rotary embeddings written in many ways are one `rope` op, with the layout that they turn in.

Each model is one plain attention whose queries and keys are turned as the test spells it. What does
not turn pairs of channels must stay arithmetic, and the numbers must be eager's in either case.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from elidir.ir import Rope, RopeLayout, RopeTable
from tests.frontends.plain import SIZE, Raised, Spelled, raise_plain
from tests.frontends.test_masks import as_bool

LIMIT = 64
BASE = 10000.0

Turn = Callable[[Tensor], Tensor]


def rates(width: int) -> Tensor:
    """The inverse frequencies of `width` channels."""
    return BASE ** -(torch.arange(0, width, 2).float() / width)


def angles(length: int, width: int, *, stretch: float = 1.0) -> Tensor:
    """Angles f32[length, width / 2]."""
    return torch.arange(length).float()[:, None] / stretch * rates(width)[None, :]


def half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel i with channel i + D/2, as Llama does."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same in Hugging Face's spelling, the tables repeated."""
    cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat([-second, first], -1) * sin


def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel 2i with channel 2i + 1, as GPT-J does."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)


def every_two(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same in GPT-J's own spelling, the tables repeated."""
    cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
    return x * cos + turned * sin


def complex_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same as a product of complex numbers, as Meta's Llama does."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)


HALF = [half, rotate_half]
INTERLEAVED = [interleaved, every_two, complex_pairs]
SPELLINGS = [
    *((f, RopeLayout.HALF) for f in HALF),
    *((f, RopeLayout.INTERLEAVED) for f in INTERLEAVED),
]


def turned(turn: Turn, *, parts: tuple[nn.Module, ...] = ()) -> Raised:
    """Raise a causal attention with turned queries and keys; the numbers must be eager's."""
    raised = raise_plain(Spelled(as_bool, turn, parts=parts, limit=LIMIT))
    assert raised.error <= 1e-5
    assert raised.kinds["attention"] == 1
    return raised


def ropes(raised: Raised) -> list[Rope]:
    """The rotations of queries and keys; there must be both."""
    found = [op for op in raised.ops if isinstance(op, Rope)]
    assert len(found) == 2
    return found


@pytest.mark.parametrize(
    ("spelling", "layout"), SPELLINGS, ids=lambda p: getattr(p, "__name__", "")
)
def test_angles_at_run_time(spelling: Callable[..., Tensor], layout: RopeLayout) -> None:
    def turn(x: Tensor) -> Tensor:
        turns = angles(x.shape[2], SIZE)
        return spelling(x, turns.cos(), turns.sin())

    raised = turned(turn)
    assert {rope.layout for rope in ropes(raised)} == {layout}
    assert not raised.kinds["cos"]
    assert not raised.kinds["opaque"]


class Tables(nn.Module):
    """Cosines and sines of every position, stored."""

    def __init__(self, spelling: Callable[..., Tensor]) -> None:
        super().__init__()
        self.spelling = spelling
        self.register_buffer("cos", angles(LIMIT, SIZE).cos(), persistent=False)
        self.register_buffer("sin", angles(LIMIT, SIZE).sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[2]
        return self.spelling(x, self.cos[:length], self.sin[:length])


@pytest.mark.parametrize(
    ("spelling", "layout"), SPELLINGS, ids=lambda p: getattr(p, "__name__", "")
)
def test_stored_tables(spelling: Callable[..., Tensor], layout: RopeLayout) -> None:
    tables = Tables(spelling)
    raised = turned(tables, parts=(tables,))
    assert {rope.layout for rope in ropes(raised)} == {layout}


@pytest.mark.parametrize("spelling", [half, interleaved])
def test_the_first_channels_only(spelling: Callable[..., Tensor]) -> None:
    def turn(x: Tensor) -> Tensor:
        turns = angles(x.shape[2], SIZE // 2)
        first = spelling(x[..., : SIZE // 2], turns.cos(), turns.sin())
        return torch.cat([first, x[..., SIZE // 2 :]], -1)

    for rope in ropes(turned(turn)):
        assert rope.result.type.dims[-1] == SIZE
        assert rope.cos.type.dims[-1] == SIZE // 4


def test_the_last_channels_only() -> None:
    """As in latent attention: the unturned channels come first."""

    def turn(x: Tensor) -> Tensor:
        turns = angles(x.shape[2], SIZE // 2)
        last = half(x[..., SIZE // 2 :], turns.cos(), turns.sin())
        return torch.cat([x[..., : SIZE // 2], last], -1)

    ropes(turned(turn))


def test_stretched_positions_and_scaled_tables() -> None:
    def turn(x: Tensor) -> Tensor:
        turns = angles(x.shape[2], SIZE, stretch=4.0)
        return half(x, turns.cos() * 1.25, turns.sin() * 1.25)

    raised = turned(turn)
    assert len(ropes(raised)) == 2
    for table in raised.ops:
        assert not isinstance(table, RopeTable) or math.isclose(table.scale, 1.25, rel_tol=1e-5)


def test_the_other_direction() -> None:
    """Turning by minus the angle is a rotation too."""

    def turn(x: Tensor) -> Tensor:
        turns = angles(x.shape[2], SIZE)
        return half(x, turns.cos(), -turns.sin())

    turned(turn)


def test_before_heads_are_moved_forward() -> None:
    """Tables that broadcast over heads in the third place: x is [B, T, H, D] when it is turned."""

    def turn(x: Tensor) -> Tensor:
        turns = angles(x.shape[2], SIZE)[:, None, :]
        return half(x.transpose(1, 2), turns.cos(), turns.sin()).transpose(1, 2)

    ropes(turned(turn))


# ---- what is no rotation


def test_a_mirror_is_no_rotation() -> None:
    def turn(x: Tensor) -> Tensor:
        turns = angles(x.shape[2], SIZE)
        first, second = x.chunk(2, -1)
        cos, sin = turns.cos(), turns.sin()
        return torch.cat([first * cos + second * sin, first * sin - second * cos], -1)

    assert not turned(turn).kinds["rope"]


def test_decay_is_no_rotation() -> None:
    def turn(x: Tensor) -> Tensor:
        places = torch.arange(x.shape[2]).float()[:, None]
        return x * torch.exp(-places / 50)

    assert not turned(turn).kinds["rope"]


def test_angles_of_the_tokens_are_no_positions() -> None:
    """Channels turned by what the token says, not by where it stands."""

    def turn(x: Tensor) -> Tensor:
        turns = x[..., : SIZE // 2]
        return half(x, turns.cos(), turns.sin())

    assert not turned(turn).kinds["rope"]
