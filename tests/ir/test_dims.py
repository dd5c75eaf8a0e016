"""Dimensions: their text, what text is refused, and their values.

The text of a dimension reads back to an equal one, floors, ceilings and remainders included.
Nothing here makes an op.
"""

import math

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from elidir import ir
from elidir.ir import ElidirError, ParseError, symbol
from tests.strategies import dims

B, S, N, T = symbol("B"), symbol("S"), symbol("N"), symbol("T")


def test_a_maximum_of_numbers_that_sympy_leaves_standing_has_a_value() -> None:
    dim = sympy.Min(B, sympy.Max(1, 2, evaluate=False))
    assert ir.evaluate(dim, {"B": 3}) == 2


@settings(max_examples=100)
@given(dims())
def test_text_reads_back_to_the_same_text_and_values(dim: ir.Dim) -> None:
    text = ir.format_dim(dim)
    again = ir.parse_dim(text)
    assert ir.format_dim(again) == text
    for sizes in ({"B": 2, "N": 5, "S": 0, "T": 7}, {"B": 3, "N": 1, "S": 11, "T": 64}):
        assert ir.evaluate(again, sizes) == ir.evaluate(dim, sizes)


PLAIN = [
    (0, "0"),
    (-3, "-3"),
    (S + N, "N + S"),
    (S - 1, "S - 1"),
    (-S + N, "N - S"),
    (-2 * S, "-2*S"),
    (T**2, "T*T"),
    (2 * B * (S + N), "2*B*(N + S)"),
    (T // 2, "(T)//2"),
    ((T + 1) // 2 - 1, None),
    ((2 * T + S) // 6, None),
    (T // (N + 1), "(T)//(N + 1)"),
    ((B * T + B) // N, None),
    (-(T // 2), "-((T)//2)"),
    (ir.ceildiv(T, 4), "ceildiv(T, 4)"),
    (ir.ceildiv(T + S, N), None),
    (T % 4 + 1, "(T)%4 + 1"),
    (sympy.Max(T, 2 * S), "max(2*S, T)"),
    (sympy.Min(T, S, 8), "min(8, S, T)"),
    (ir.ceildiv(sympy.Min(T, 9), 2) * 3, "3*(ceildiv(min(9, T), 2))"),
]


@pytest.mark.parametrize(("dim", "text"), PLAIN, ids=lambda item: str(item))
def test_plain_dims_are_exact(dim: ir.Dim, text: str | None) -> None:
    written = ir.format_dim(dim)
    assert ir.parse_dim(written) == dim
    assert text is None or written == text


@pytest.mark.parametrize("name", ["S", "N", "E", "I", "O", "Q", "pi", "beta", "lambda"])
def test_symbols_are_never_constants_of_sympy(name: str) -> None:
    assert ir.parse_dim(name) is symbol(name)


@pytest.mark.parametrize("name", ["max", "ceildiv", "2x", "a-b", "", "é"])
def test_a_symbol_that_text_cannot_name_is_refused(name: str) -> None:
    with pytest.raises(ElidirError, match="cannot name a symbol"):
        symbol(name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "unexpected 'end'"),
        ("T +", "unexpected 'end'"),
        ("T T", "expected its end, found 'T'"),
        ("(T", "expected '\\)', found ''"),
        ("T & 2", "unexpected"),
        ("T//0", "divides by zero"),
        ("T%(2 - 2)", "divides by zero"),
        ("ceildiv(T)", "two arguments"),
        ("max", "expected '\\('"),
        ("__import__('os')", "unexpected"),
    ],
)
def test_bad_text_is_refused(text: str, says: str) -> None:
    with pytest.raises(ParseError, match=says):
        ir.parse_dim(text)


@given(st.integers(-50, 50), st.integers(1, 9))
def test_floor_and_ceiling_are_those_of_integers(value: int, by: int) -> None:
    assert ir.evaluate(ir.parse_dim(f"(T - 50)//{by}"), {"T": value + 50}) == value // by
    assert ir.evaluate(ir.ceildiv(T - 50, by), {"T": value + 50}) == math.ceil(value / by)


def test_a_fraction_has_no_text() -> None:
    with pytest.raises(ParseError, match="use // for division"):
        ir.format_dim(T / 2)


def test_an_unbound_symbol_has_no_value() -> None:
    with pytest.raises(ElidirError, match=r"N \+ S has no value under N=2; bind all"):
        ir.evaluate(S + N, {"N": 2})


def test_product_of_a_shape() -> None:
    assert ir.product(()) == 1
    assert ir.product((2, B, 3)) == 6 * B
    assert ir.free_symbols(ir.product((B, T, 3))) == {"B", "T"}


def test_text_is_of_the_form_that_parsing_gives() -> None:
    """Sympy leaves max(T, min(1, 2)) here, and makes max(1, T) of it when it rebuilds."""
    nested = sympy.Max(T, sympy.Min(2, sympy.Max(T, 1)))
    text = ir.format_dim(nested)
    assert ir.format_dim(ir.parse_dim(text)) == text
