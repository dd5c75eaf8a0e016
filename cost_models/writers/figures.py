"""Figures as people read them: a few digits and a unit, in powers of a thousand.

Every form of the report writes numbers with these. What is None is unknown, and is never shown as
zero.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any

from elidir.cost_models.roofline import Confidence


def seconds(value: float) -> str:
    """Return a time with its unit: `1.23 s`, `45.6 ms`, `7.89 us`."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1000 else f"{value:.0f} s"
    return f"{value * 1e9:.3g} ns"


def size(value: float) -> str:
    """Return bytes with their unit."""
    return f"{_scaled(value)}B"


def count(value: float) -> str:
    """Return a number with its prefix."""
    return _scaled(value).rstrip()


def rate(unit: str) -> Callable[[float], str]:
    """Return what writes numbers of a unit: `11.8 TFLOP/s`."""
    return lambda value: f"{_scaled(value)}{unit}"


def digits(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def share(value: float) -> str:
    """Return a fraction in percent."""
    return f"{value:.1%}"


def times(value: float) -> str:
    """Return a ratio."""
    return f"x{value:.2f}"


def joules(value: float) -> str:
    """Return an energy."""
    return f"{_scaled(value)}J" if value >= 1 else f"{value:.3g} J"


def known(write: Callable[[Any], str], unknown: str = "unknown") -> Callable[[Any], str]:
    """Return what writes a value that may be None."""
    return lambda value: unknown if value is None else write(value)


def word(value: Any) -> str:
    """Return the name of a bound or confidence, yes or no, or the text itself."""
    if isinstance(value, Confidence):
        return value.name.lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return str(value)


def _scaled(value: float) -> str:
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g} "


# ---- units of a target's numbers, which are in the names of their fields

_UNITS = {
    "gb_per_s": "GB/s",
    "tflop_per_s": "TFLOP/s",
    "us": "us",
    "gb": "GB",
    "w": "W",
    "efficiency": "of the peak",
    "p": "(exponent)",
}


def unit_of(field: str) -> str:
    """Return the unit that the name of a field says."""
    ends = (u for end, u in _UNITS.items() if field.rpartition(".")[2].endswith(f"_{end}"))
    return next(ends, _UNITS.get(field.rpartition(".")[2], ""))
