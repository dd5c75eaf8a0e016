"""Sizes of export as dimensions over our symbols, and numbers that are computed from sizes.

Export writes sizes with functions of its own, and leaves a maximum standing where the bounds of its
sizes settle it. A number such as 1 / T is no dimension: it becomes arithmetic on tensors without
axes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy

from elidir.ir import Dim, ElidirError, as_dim, symbol


class RaiseError(ElidirError):
    """A captured graph is beyond what the IR can say."""


@dataclass(frozen=True)
class Sizes:
    """Our symbol, with its bounds, for each of export's: (name, least, most or None)."""

    symbols: Mapping[str, tuple[str, int, int | None]]

    def dim(self, expr: Any) -> Dim:
        """Return an expression of export as a dimension.

        Raises:
            RaiseError: it has a size that is none of the inputs'.
        """
        return as_dim(self._expr(expr))

    def _expr(self, expr: Any) -> Any:
        if expr.is_Symbol:
            return self._symbol(expr.name)
        if not expr.args:
            return expr
        args, name = [self._expr(a) for a in expr.args], type(expr).__name__
        if name == "FloorDiv":
            return sympy.floor(args[0] / args[1])
        if name in ("Mod", "PythonMod"):
            return sympy.Mod(*args)
        if name in ("Max", "Min"):
            return self._extreme(getattr(sympy, name), args)
        return getattr(sympy, name, expr.func)(*args)

    def _symbol(self, name: str) -> Any:
        if name not in self.symbols:
            raise RaiseError(
                f"the size {name} depends on the data, which elidir does not model; "
                "compile the part of the model before or after it"
            )
        return symbol(self.symbols[name][0])

    def _extreme(self, kind: Callable[..., Any], args: list[Any]) -> Any:
        """Return the largest or smallest, without what the bounds of the sizes rule out."""
        sign = 1 if kind is sympy.Max else -1
        kept = [a for a in args if not any(self._beats(b, a, sign) for b in args if b is not a)]
        return kind(*(kept or args[:1]))

    def _beats(self, a: Any, b: Any, sign: int) -> bool:
        """Whether a >= b (for a minimum, a <= b) at all sizes; never both of two equal ones."""
        least = self._least(sympy.expand(sign * (a - b)))
        return least is not None and least >= 0 and a != b

    def _least(self, expr: Any) -> Any:
        """Return the smallest value of a sum of sizes times numbers, None if it is no such sum."""
        bounds = {symbol(n): (lo, hi) for n, lo, hi in self.symbols.values()}
        total: Any = 0
        for factor, rest in ((t.as_coeff_Mul()) for t in sympy.Add.make_args(expr)):
            if rest == 1:
                total += factor
                continue
            end = bounds.get(rest, (None, None))[0 if factor > 0 else 1]
            if end is None:
                return None
            total += factor * end
        return total
