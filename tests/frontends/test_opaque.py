"""Ops that raising does not know: the model still compiles, is right, and `explain()` names them.

Where such an op may mix tokens there is no cache, and generation runs the whole sequence each time.
"""

import pytest
import torch
from torch import Tensor, nn

import elidir
from tests.frontends.plain import VOCAB, WIDTH, Spelled
from tests.frontends.test_masks import as_bool
from tests.zoo import randomize, tokens


class Spectrum(nn.Module):
    """Mixes channels by a Fourier transform of each token."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x, dim=-1).real


class SpectrumOfTokens(nn.Module):
    """Mixes tokens, later ones too."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x, dim=1).real


class Special(nn.Module):
    """A function that no rule knows, on each number alone."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Listed(nn.Module):
    """A function on each number alone that the token-wise table has."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erfc(x)


class Runs(nn.Module):
    """A running maximum: it mixes tokens, though never a later one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x, dim=1).values


@torch.library.custom_op("elidir_tests::halves", mutates_args=())
def halves(x: Tensor, by: float) -> Tensor:
    """An operator of a third party."""
    return x * by


@halves.register_fake
def _(x: Tensor, by: float) -> Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    """Calls the third party's operator."""

    def forward(self, x: Tensor) -> Tensor:
        return halves(x, 0.5)


class Between(nn.Module):
    """Attention, then a strange part, then a head."""

    def __init__(self, strange: nn.Module) -> None:
        super().__init__()
        self.block = Spelled(as_bool, limit=64)
        self.block.head = nn.Identity()
        self.strange = strange
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.strange(self.block(ids)))


STRANGE = {
    Spectrum: "aten.fft_fft",
    SpectrumOfTokens: "aten.fft_fft",
    Special: "aten.special_bessel_j0",
    Runs: "aten.cummax",
    Custom: "elidir_tests.halves",
}


@pytest.mark.parametrize("kind", STRANGE, ids=lambda k: k.__name__)
def test_an_unknown_op_is_right_named_and_without_a_cache(kind: type[nn.Module]) -> None:
    model = randomize(Between(kind()))
    compiled = elidir.compile(model, example_inputs=(tokens(2, 6),))
    for size in ((1, 9), (3, 2)):
        ids = tokens(*size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(ids), model(ids), rtol=0, atol=1e-5)
    text = compiled.explain()
    (line, *_) = [row for row in text.splitlines() if row.startswith("opaque")]
    assert STRANGE[kind] in line
    assert line.endswith("at strange")
    assert "missed incrementalize" in " ".join(text.split()) or "missed" in text
    assert "the whole sequence for each token" in text
    assert "step" not in compiled.program.module.functions


@pytest.mark.parametrize("kind", [Special, SpectrumOfTokens], ids=lambda k: k.__name__)
def test_generation_without_a_cache_is_greedy_decoding(kind: type[nn.Module]) -> None:
    model = randomize(Between(kind()))
    compiled = elidir.compile(model, example_inputs=(tokens(2, 6),))
    ids = tokens(2, 5)
    found = compiled.generate(ids, max_new_tokens=6)
    for _ in range(6):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, ids)


def test_a_listed_op_on_each_number_keeps_the_cache() -> None:
    model = randomize(Between(Listed()))
    compiled = elidir.compile(model, example_inputs=(tokens(2, 6),))
    ids = tokens(1, 9)
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids), model(ids), rtol=0, atol=1e-5)
    assert "step" in compiled.program.module.functions
