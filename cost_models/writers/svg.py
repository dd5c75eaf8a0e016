"""A little SVG: elements as text, scales from values to places, and ticks.

Just what the plots of a report need, so that they need no library and take their colours from the
page. A number that is not finite is an error here, since a browser would only draw nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

LETTER = 6.2
"""The mean width of a letter at the size that the page's plots are written in."""


def element(name: str, *inside: str, **attributes: object) -> str:
    """Return an element; `class_` is class, other underscores are dashes, inside is SVG text."""
    written = "".join(f' {_name(k)}="{_value(v)}"' for k, v in attributes.items() if v != "")
    body = "".join(inside)
    return f"<{name}{written}>{body}</{name}>" if body else f"<{name}{written}/>"


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _value(value: object) -> str:
    if not isinstance(value, float):
        return escape(str(value))
    if not math.isfinite(value):
        raise ValueError(f"{value} has no place in a picture")
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> str:
    """Return words that begin, end or have their middle at a place."""
    return element("text", escape(words), x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str = "") -> str:
    """Return a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rect(box: "Box", class_: str, tip: str = "") -> str:
    """Return a rectangle; the tip is shown where the pointer rests."""
    place = {"x": box.x, "y": box.y, "width": max(box.width, 0.0), "height": box.height}
    return element("rect", title(tip), class_=class_, **place)


def path(points: Iterable[tuple[float, float]], class_: str, *, closed: bool = False) -> str:
    """Return lines through points."""
    places = " L".join(f"{_value(float(x))} {_value(float(y))}" for x, y in points)
    return element("path", d=f"M{places}{'Z' if closed else ''}", class_=class_)


def title(words: str) -> str:
    """Return what is shown where the pointer rests."""
    return element("title", escape(words)) if words else ""


def picture(width: float, height: float, label: str, *inside: str) -> str:
    """Return the whole picture; the label is for who does not see it."""
    box = f"0 0 {_value(width)} {_value(height)}"
    return element("svg", title(label), *inside, viewBox=box, role="img", class_="plot")


def width_of(words: str) -> float:
    """Return about how wide words are."""
    return LETTER * len(words)


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: "Box") -> bool:
        """Whether two rectangles have a place in common."""
        apart_x = self.x + self.width < other.x or other.x + other.width < self.x
        apart_y = self.y + self.height < other.y or other.y + other.height < self.y
        return not (apart_x or apart_y)

    def within(self, other: "Box") -> bool:
        """Whether all of it lies in another one."""
        ends = (other.x + other.width - self.x - self.width, self.x - other.x, self.y - other.y)
        return min(*ends, other.y + other.height - self.y - self.height) >= 0


@dataclass(frozen=True)
class Scale:
    """From values `lo..hi` to places `start..end`, evenly or by their logarithms."""

    lo: float
    hi: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value; what lies outside is put at the edge."""
        at, lo, hi = (self._even(v) for v in (min(max(value, self.lo), self.hi), self.lo, self.hi))
        return self.start + (self.end - self.start) * ((at - lo) / (hi - lo) if hi > lo else 0.0)

    def _even(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values inside, at most so many."""
        return _decades(self.lo, self.hi, most) if self.log else _steps(self.lo, self.hi, most)


def _decades(lo: float, hi: float, most: int) -> list[float]:
    first, last = math.ceil(math.log10(lo) - 1e-9), math.floor(math.log10(hi) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / most))
    return [10.0**n for n in range(first, last + 1, stride)]


def _steps(lo: float, hi: float, most: int) -> list[float]:
    if hi <= lo:
        return [lo]
    rough = (hi - lo) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= rough * 0.999)
    first = math.ceil(lo / step - 1e-9)
    return [step * n for n in range(first, math.floor(hi / step + 1e-9) + 1)]


def around(values: Iterable[float], room: float = 1.0) -> tuple[float, float]:
    """Return whole decades that hold all positive values, with room on both sides as a factor."""
    found = [v for v in values if v > 0]
    if not found:
        return 1.0, 10.0
    lo, hi = math.floor(math.log10(min(found) / room)), math.ceil(math.log10(max(found) * room))
    return 10.0**lo, 10.0 ** max(hi, lo + 1)
