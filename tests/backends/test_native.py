"""The native bfloat16 kernel equals float32 arithmetic rounded once, at any size."""

import pytest
import torch

from elidir.backends.cpu import native
from elidir.ir import ElidirError

pytestmark = pytest.mark.usefixtures("compiler")


@pytest.fixture
def compiler() -> None:
    """The kernels can be built here: `make` needs a C++ compiler anyway."""
    assert native.available()


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize(("outs", "inner"), [(1, 1), (5, 7), (33, 31), (96, 64), (577, 129)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_equals_float32_rounded(rows: int, outs: int, inner: int, with_bias: bool) -> None:
    weight = torch.randn(outs, inner).bfloat16()
    bias = torch.randn(outs).bfloat16() if with_bias else None
    x = torch.randn(1, rows, inner).bfloat16()
    found = native.RowMajor(weight, bias)(x)
    wide = None if bias is None else bias.float()
    wanted = torch.nn.functional.linear(x.float(), weight.float(), wide)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=2**-7, atol=1e-3)


def test_it_does_not_depend_on_how_rows_come() -> None:
    weight, x = torch.randn(200, 300).bfloat16(), torch.randn(3, 300).bfloat16()
    run = native.RowMajor(weight, None)
    assert torch.equal(run(x), torch.cat([run(row[None]) for row in x]))


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    native._library.cache_clear()
    answer = native.available()
    monkeypatch.undo()
    native._library.cache_clear()
    assert not answer
    assert "C++ compiler" in answer.reason


def test_rows_that_do_not_fit_are_refused_not_read() -> None:
    run = native.RowMajor(torch.zeros(4, 6).bfloat16(), None)
    for x in (torch.zeros(1, 6), torch.zeros(1, 5).bfloat16()):
        with pytest.raises(ElidirError, match="rows of 6"):
            run(x)


@pytest.mark.parametrize(
    "weight", [torch.zeros(4, 6), torch.zeros(6, 4).bfloat16().t()], ids=["float32", "strided"]
)
def test_weights_that_do_not_fit_are_refused(weight: torch.Tensor) -> None:
    with pytest.raises(ElidirError, match="contiguous bfloat16"):
        native.RowMajor(weight, None)
