"""The native library's products: equal in every format, at any size, however rows come."""

import pytest
import torch

from elidir.backends.cpu.alone import Alone, address
from elidir.backends.cpu.native import tape
from elidir.backends.cpu.native.records import FORMATS, Code, Record
from elidir.frontends.gguf import Storage, dequantize
from elidir.ir import ElidirError

pytestmark = pytest.mark.usefixtures("compiler")

BLOCK_BYTES = {"q4_0": 18, "q4_1": 20, "q8_0": 34}
SIZES = [(1, 1), (5, 7), (33, 31), (96, 64), (577, 129)]


@pytest.fixture
def compiler() -> None:
    """The kernels can be built here: `make` needs a C++ compiler anyway."""
    assert tape.available()


def product(
    held: torch.Tensor, kind: str, x: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return x W^T + b for a weight in a format."""
    out = torch.empty(*x.shape[:-1], held.shape[0])
    fields = {"format": FORMATS[kind], "inner": x.shape[-1], "bias": address(bias)}
    Alone(Code.LINEAR, (held, bias), weight=held.data_ptr(), **fields)([x], [out])
    return out


def blocks(kind: str, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random blocks of a format, and the weight that they stand for."""
    count = columns // 32
    raw = torch.randint(0, 256, (rows, count, BLOCK_BYTES[kind]), dtype=torch.uint8)
    halves = 2 if kind == "q4_1" else 1
    scales = (torch.randn(rows, count, halves) / 16).half()
    raw[..., : 2 * halves] = scales.view(torch.uint8).reshape(rows, count, 2 * halves)
    raw = raw.reshape(rows, -1)
    return raw, dequantize(Storage(kind, raw.numpy(), (rows, columns)))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("outs", "inner"), SIZES)
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_it_equals_torchs_product(rows: int, outs: int, inner: int, kind: str) -> None:
    weight = torch.randn(outs, inner).to(torch.float32 if kind == "f32" else torch.bfloat16)
    bias, x = torch.randn(outs), torch.randn(1, rows, inner)
    found = product(weight, kind, x, bias)
    torch.testing.assert_close(found, torch.nn.functional.linear(x, weight.float(), bias))


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(("outs", "columns"), [(1, 32), (7, 96), (130, 576)])
@pytest.mark.parametrize("kind", BLOCK_BYTES)
def test_a_product_over_blocks_is_that_over_their_values(
    rows: int, outs: int, columns: int, kind: str
) -> None:
    raw, values = blocks(kind, outs, columns)
    x = torch.randn(rows, columns)
    assert torch.equal(product(raw, kind, x), product(values, "f32", x))


@pytest.mark.parametrize("kind", BLOCK_BYTES)
def test_blocks_are_dequantised_to_the_bit(kind: str) -> None:
    raw, values = blocks(kind, 9, 160)
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.empty(9, 160, dtype=dtype)
        Alone(Code.DEQUANTIZE, (raw,), format=FORMATS[kind], weight=raw.data_ptr())([], [out])
        assert torch.equal(out, values.to(dtype))


def test_it_depends_neither_on_how_rows_come_nor_on_threads() -> None:
    weight, x = torch.randn(2000, 300), torch.randn(6, 300)
    whole = product(weight, "f32", x)
    assert torch.equal(whole, torch.cat([product(weight, "f32", row[None]) for row in x]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(whole, product(weight, "f32", x))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("fn", ["silu", "sigmoid", "tanh", "gelu", "gelu_tanh", "exp"])
def test_functions_are_as_exact_as_torchs(fn: str) -> None:
    from elidir.backends.cpu.native.records import FUNCTIONS
    from elidir.backends.reference import UNARY

    x = torch.cat([torch.linspace(-90, 88, 4001), torch.linspace(-1, 1, 999), torch.zeros(1)])
    x = x[None, :]
    out = torch.empty_like(x)
    Alone(Code.UNARY, fn=FUNCTIONS[fn])([x], [out])
    wanted = UNARY[fn](x.double())
    torch.testing.assert_close(out.double(), wanted, rtol=3e-6, atol=3e-7)


def test_an_index_out_of_range_is_told_not_read() -> None:
    table, out = torch.randn(5, 8), torch.zeros(2, 8)
    look_up = Alone(Code.EMBED, (table,), weight=table.data_ptr(), inner=5)
    assert look_up([torch.tensor([4, 0])], [out])
    assert torch.equal(out, table[[4, 0]])
    assert not look_up([torch.tensor([0, 5])], [out])
    assert not look_up([torch.tensor([-1, 0])], [out])


def test_slots_that_are_not_whole_are_refused() -> None:
    with pytest.raises(ElidirError, match="slot"):
        tape.run((Record * 1)(), [0, 0, 0])


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    tape._library.cache_clear()
    tape.available.cache_clear()
    answer = tape.available()
    monkeypatch.undo()
    tape._library.cache_clear()
    tape.available.cache_clear()
    assert not answer
    assert "C++ compiler" in answer.reason
