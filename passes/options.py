"""The options of a pass: typed dataclass fields, checked when a pass is made.

Text, YAML and Python all end in `coerce`, which turns plain data (numbers, strings, lists) into
what an annotation asks for, and `plain` turns it back. Nothing here knows a pipeline.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias

from elidir.ir import nearest
from elidir.passes.errors import PipelineError


@dataclass(frozen=True)
class Range:
    """The inclusive range of a numeric option, as in `Annotated[float, Range(ge=0, le=1)]`."""

    ge: float | None = None
    le: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range; NaN lies in none."""
        above = self.ge is None or value >= self.ge
        return above and (self.le is None or value <= self.le)

    def __str__(self) -> str:
        low = "-inf" if self.ge is None else f"{self.ge:g}"
        return f"in [{low}, {'inf' if self.le is None else f'{self.le:g}'}]"


Ratio: TypeAlias = Annotated[float, Range(ge=0, le=1)]


@dataclass(frozen=True)
class Option:
    """One option of a pass: its name, annotation and default (MISSING where it has none)."""

    name: str
    annotation: Any
    default: Any

    def __str__(self) -> str:
        text = f"{self.name}: {describe(self.annotation)}"
        return text if self.default is dataclasses.MISSING else f"{text} = {self.default!r}"


def options_of(cls: type[Any]) -> tuple[Option, ...]:
    """Return the options of a pass class, in the order of its fields."""
    key: Any = cls  # mypy takes the hash of a dataclass for that of its class
    return _options(key)


@cache
def _options(cls: type[Any]) -> tuple[Option, ...]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return tuple(Option(f.name, hints[f.name], f.default) for f in dataclasses.fields(cls))


def check_names(cls: type[Any], name: str, given: typing.Iterable[str]) -> None:
    """Raise `PipelineError` if `cls` lacks a given option, or needs one that is not given."""
    options = {o.name: o for o in options_of(cls)}
    given = set(given)
    for wrong in sorted(given - set(options)):
        hint = nearest(wrong, options) if options else ""
        closest = hint if hint.endswith("?") else ";"
        raise PipelineError(f"pass '{name}' has no option '{wrong}'{closest} {_table(options)}")
    needed = {n for n, o in options.items() if o.default is dataclasses.MISSING}
    for missing in sorted(needed - given):
        raise PipelineError(f"pass '{name}' needs the option '{missing}'; {_table(options)}")


def check_value(name: str, option: Option, value: Any) -> Any:
    """Return an option's value as its annotation asks; raises `PipelineError` if it cannot be."""
    try:
        return coerce(option.annotation, value)
    except ValueError as error:
        raise PipelineError(
            f"option '{option.name}' of pass '{name}' is {value!r}, {error}; give {option}"
        ) from None


def _table(options: dict[str, Option]) -> str:
    if not options:
        return "it takes none"
    return f"its options are {'; '.join(map(str, options.values()))}"


# ---- annotations


def describe(hint: Any) -> str:
    """Return an annotation as a user reads it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return " ".join([describe(args[0]), *(str(a) for a in args[1:] if isinstance(a, Range))])
    if origin is Literal:
        return " | ".join(map(str, args))
    if _is_union(origin):
        return " | ".join(map(describe, args))
    if origin is tuple:
        return f"({', '.join('..' if a is ... else describe(a) for a in args)})"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " | ".join(str(m.value) for m in hint)
    return "none" if hint is type(None) else str(getattr(hint, "__name__", hint))


def coerce(hint: Any, value: Any) -> Any:
    """Return plain data as the annotation asks; raises `ValueError` saying what does not fit."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _in_range(coerce(args[0], value), args[1:])
    if origin is Literal:
        return _one_of(args, value)
    if _is_union(origin):
        return _first_of(args, value)
    if origin is tuple:
        return _tuple(args, value)
    return _simple(hint, value)


def _is_union(origin: Any) -> bool:
    return origin in (typing.Union, types.UnionType)


def _in_range(value: Any, extras: tuple[Any, ...]) -> Any:
    for limits in (e for e in extras if isinstance(e, Range)):
        items = value if isinstance(value, tuple) else (value,)
        if not all(limits.holds(v) for v in items if v is not None):
            raise _OutOfRangeError(f"which is not {limits}")
    return value


class _OutOfRangeError(ValueError):
    """A number of the right kind that lies outside of its limits."""


def _one_of(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return value
    raise ValueError(f"which is none of these{nearest(str(value), map(str, choices))}")


def _first_of(hints: tuple[Any, ...], value: Any) -> Any:
    """Return a value as the first alternative that it fits; else say what comes nearest to one."""
    problems = []
    for hint in hints:
        try:
            return coerce(hint, value)
        except ValueError as error:
            problems += [] if hint is type(None) else [error]
    near = (e for e in problems if isinstance(e, _OutOfRangeError) or str(e).endswith("?"))
    some = problems[0] if len(problems) == 1 else ValueError("which is none of these")
    raise next(near, some)


def _tuple(hints: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("which is not a list")
    if len(hints) == 2 and hints[1] is ...:
        return tuple(coerce(hints[0], v) for v in value)
    if len(hints) != len(value):
        raise ValueError(f"which has {len(value)} items, not {len(hints)}")
    return tuple(coerce(h, v) for h, v in zip(hints, value, strict=True))


def _simple(hint: Any, value: Any) -> Any:
    if hint is type(None) and value is None:
        return None
    if isinstance(hint, type) and issubclass(hint, Enum):
        return value if isinstance(value, hint) else hint(_one_of(_values(hint), value))
    if hint is float and type(value) is int:
        return float(value)
    if hint in (bool, int, float, str) and type(value) is hint and value == value:
        return value
    raise ValueError(f"which is not {'a number' if hint is float else describe(hint)}")


def _values(enum: type[Enum]) -> tuple[Any, ...]:
    return tuple(m.value for m in enum)


def plain(value: Any) -> Any:
    """Return an option's value as plain data: numbers, strings, None, and lists of them."""
    if isinstance(value, Enum):
        return value.value
    return [plain(v) for v in value] if isinstance(value, tuple) else value
