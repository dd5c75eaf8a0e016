"""Dimensions: integers, or sympy expressions over the named symbols of a module.

Symbols are made here and nowhere else, always integer and nonnegative, so that two of one name are
equal. `parse_dim` reads what `format_dim` writes, and that prints to the same text again; the
parser is our own because `sympify` evaluates code and reads S, N, E, I, O and Q as other things.
"""

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import sympy

from elidir.ir.errors import ElidirError, ParseError

Dim: TypeAlias = int | sympy.Expr


NAME = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
_FUNCTIONS = ("ceildiv", "max", "min")


@cache
def symbol(name: str) -> sympy.Symbol:
    """Return the one symbol of this name; raises `ElidirError` if text could not name it."""
    if not NAME.fullmatch(name) or name in _FUNCTIONS:
        raise ElidirError(f"'{name}' cannot name a symbol; use letters, digits, '_' and '.'")
    return sympy.Symbol(name, integer=True, nonnegative=True)


@dataclass(frozen=True)
class Symbol:
    """Bounds of a symbol (inclusive; `hi` None is unbounded) and where it came from.

    `usual` is what a cost model takes it for where nobody says.
    """

    lo: int
    hi: int | None
    origin: str = ""
    usual: int | None = None

    def __str__(self) -> str:
        note = "" if self.usual is None else f" usual={self.usual}"
        note += f" origin={json.dumps(self.origin)}" if self.origin else ""
        return f"[{self.lo}, {'inf' if self.hi is None else self.hi}]{note}"


def as_dim(expr: Any) -> Dim:
    """Return an int where the expression is a number, else the expression."""
    if isinstance(expr, int):
        return expr
    return int(expr) if expr.is_Integer else expr


def ceildiv(a: Dim, b: Dim) -> Dim:
    """Return a / b rounded up."""
    return as_dim(sympy.ceiling(sympy.sympify(a) / b))


def free_symbols(dim: Dim) -> set[str]:
    """Return the names of the symbols in a dimension."""
    return set() if isinstance(dim, int) else {s.name for s in dim.free_symbols}


def evaluate(dim: Dim, bindings: dict[str, int]) -> int:
    """Return the value of a dimension under `bindings` (symbol name to size).

    Raises `ElidirError` if a symbol has no binding or the value is no integer.
    """
    if isinstance(dim, int):
        return dim
    value = dim.xreplace({symbol(k): sympy.Integer(v) for k, v in bindings.items()})
    if not value.is_Integer and not value.free_symbols:
        value = value.doit()  # sympy may leave max(1, 2) standing inside what it rebuilt
    if not value.is_Integer:
        known = ", ".join(f"{k}={v}" for k, v in bindings.items()) or "nothing"
        raise ElidirError(f"{format_dim(dim)} has no value under {known}; bind all its symbols")
    return int(value)


def product(dims: tuple[Dim, ...]) -> Dim:
    """Return the number of elements of a shape."""
    total: Dim = math.prod(d for d in dims if isinstance(d, int))
    for dim in dims:
        total = total if isinstance(dim, int) else total * dim
    return as_dim(total)


# ---- text


def format_dim(dim: Dim) -> str:
    """Return the text of a dimension, which `parse_dim` reads back to an equal one.

    Where sympy simplifies as it rebuilds (`max(T, min(1, 2))`), the text is of the simpler form.
    """
    return str(int(dim)) if isinstance(dim, int) else _stable(dim)


@cache
def _stable(e: Any) -> str:
    text = _format(e)
    again = parse_dim(text)
    return text if again == e else format_dim(again)


@cache
def _format(e: Any) -> str:
    if e.is_Symbol:
        return str(e.name)
    if e.is_Integer:
        return str(int(e))
    if e.is_Add:
        text = " + ".join(_format(a) for a in _ordered(e))
        return text.replace("+ -", "- ")
    if e.is_Mul:
        return _format_product(e)
    if e.is_Pow and e.exp.is_Integer and e.exp > 0:
        return "*".join([_factor(e.base)] * int(e.exp))
    return _format_call(e)


def _format_product(e: Any) -> str:
    number, rest = e.as_coeff_Mul()
    if not number.is_Integer:
        raise ParseError(f"dimension '{e}' is not an integer expression; use // for division")
    body = "*".join(_factor(a) for a in sympy.Mul.make_args(rest))
    if number == -1:
        return f"-{body}"
    return f"{number}*{body}" if number != 1 else body


def _format_call(e: Any) -> str:
    if isinstance(e, sympy.floor | sympy.ceiling):
        top, bottom = _fraction(e.args[0])
        if isinstance(e, sympy.floor):
            return f"({_format(top)})//{_factor(bottom)}"
        return f"ceildiv({_format(top)}, {_format(bottom)})"
    if isinstance(e, sympy.Max | sympy.Min):
        args = ", ".join(sorted(_format(a) for a in e.args))
        return f"{type(e).__name__.lower()}({args})"
    if isinstance(e, sympy.Mod):
        return f"({_format(e.args[0])})%{_factor(e.args[1])}"
    raise ParseError(f"dimension '{e}' has no text form; build it from + - * // % min max ceildiv")


def _fraction(e: Any) -> tuple[Any, Any]:
    """Return a quotient's two sides, changing nothing that parsing would not restore."""
    parts = [sympy.fraction(a) for a in sympy.Add.make_args(e)]
    if all(bottom.is_Integer for _, bottom in parts):
        bottom = sympy.Integer(sympy.ilcm(1, *(bottom for _, bottom in parts)))
        return e * bottom, bottom
    top, bottom = parts[0] if len(parts) == 1 else sympy.fraction(sympy.together(e))
    return top, bottom


def _ordered(e: Any) -> list[Any]:
    return sorted(e.args, key=lambda a: (a.is_Number, _format(a).startswith("-"), _format(a)))


def _factor(e: Any) -> str:
    text = _format(e)
    return text if e.is_Symbol or (e.is_Integer and e >= 0) else f"({text})"


_TOKEN = re.compile(rf"\s*(?:(\d+)|({NAME.pattern})|(//|[-+*%(),]))", re.ASCII)


@cache
def parse_dim(text: str) -> Dim:
    """Parse one dimension; raises `ParseError` naming the text."""
    tokens, at = [], 0
    text = text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match:
            raise ParseError(f"'{text}' is not a dimension: unexpected '{text[at:]}'")
        tokens.append(match.group().strip())
        at = match.end()
    parser = _DimParser(tokens, text)
    dim = parser.sum()
    parser.expect("")
    return as_dim(dim)


class _DimParser:
    """Recursive descent over: sum = term (+|- term)*; term = atom (*|//|% atom)*."""

    def __init__(self, tokens: list[str], text: str) -> None:
        self.tokens, self.text = [*tokens, ""], text

    def take(self) -> str:
        return self.tokens.pop(0) if len(self.tokens) > 1 else ""

    def expect(self, token: str) -> None:
        found = self.tokens[0]
        if found != token:
            wanted = f"'{token}'" if token else "its end"
            raise ParseError(
                f"'{self.text}' is not a dimension: expected {wanted}, found '{found}'"
            )
        self.take()

    def sum(self) -> Any:
        value = self.term()
        while self.tokens[0] in {"+", "-"}:
            value = value + self.term() if self.take() == "+" else value - self.term()
        return value

    def term(self) -> Any:
        value = self.atom()
        while self.tokens[0] in {"*", "//", "%"}:
            sign, right = self.take(), self.atom()
            value = value * right if sign == "*" else self.divide(sign, value, right)
        return value

    def divide(self, sign: str, top: Any, bottom: Any) -> Any:
        if bottom == 0:
            raise ParseError(f"'{self.text}' is not a dimension: it divides by zero")
        if sign == "%":
            return sympy.Mod(top, bottom)
        return sympy.floor(top / bottom) if sign == "//" else sympy.ceiling(top / bottom)

    def atom(self) -> Any:
        token = self.take()
        if token.isdigit():
            return sympy.Integer(token)
        if token == "-":
            return -self.atom()
        if token == "(":
            value = self.sum()
            self.expect(")")
            return value
        if token in _FUNCTIONS:
            return self.call(token)
        if NAME.fullmatch(token):
            return symbol(token)
        raise ParseError(f"'{self.text}' is not a dimension: unexpected '{token or 'end'}'")

    def call(self, name: str) -> Any:
        self.expect("(")
        args = [self.sum()]
        while self.tokens[0] == ",":
            self.take()
            args.append(self.sum())
        self.expect(")")
        if name == "ceildiv" and len(args) != 2:
            raise ParseError(f"'{self.text}' is not a dimension: ceildiv takes two arguments")
        if name == "ceildiv":
            return self.divide(name, *args)
        return sympy.Min(*args) if name == "min" else sympy.Max(*args)
