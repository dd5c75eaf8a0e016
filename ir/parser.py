"""Parses the text that the printer writes.

One op a line, so the parser is a cursor over lines; within a line it splits at commas outside
brackets and quotes. The fields of each op kind say how to read its operands and attributes. A line
that starts with `//` is a comment; `#` starts the location of an op.
"""

import json
import re
import types
import typing
from collections.abc import Collection
from dataclasses import MISSING
from enum import Enum
from functools import cache
from typing import Any

import sympy

from elidir.ir.errors import ElidirError, ParseError, nearest
from elidir.ir.module import DERIVATIONS, Derived, Entry, Function, Module, Stage
from elidir.ir.op import OPS, Body, Field, Kind, Op, Region, Value, Weight, fields_of
from elidir.ir.symbols import Dim, Symbol, parse_dim, symbol
from elidir.ir.types import KV, KV_MARKS, DType, Mask, Tensor, TokenSet, Type

_SYMBOL = re.compile(r'([\w.]+) in \[(\d+), (\d+|inf)\](?: usual=(\d+))?(?: origin=(".*"))?')
_BOOLS = {"true": True, "false": False}


def parse_module(text: str) -> Module:
    """Parse the text of one module; raises `ParseError` with the line."""
    return _ModuleParser(text).module()


def split(text: str, separator: str = ",") -> list[str]:
    """Split at `separator` outside brackets and quotes; blank text gives no parts."""
    parts, depth, start = [], 0, 0
    for match in _outside(separator, "[][(){}<>]|").finditer(text):
        c = match[0]
        if len(c) > 1:
            continue
        depth += (c in "([{<") - (c in ")]}>")
        if depth == 0 and c == separator:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    tail = text[start:].strip()
    return [*parts, tail] if tail or parts else []


@cache
def _outside(mark: str, others: str = "") -> re.Pattern[str]:
    """Return a pattern that takes a quoted string whole, so that nothing inside it matches."""
    return re.compile(rf'"(?:[^"\\]|\\.)*"|{others}{re.escape(mark)}')


def _cut(text: str, mark: str) -> tuple[str, str]:
    """Cut at the first `mark` outside quotes; without one, the second part is blank."""
    for match in _outside(mark).finditer(text):
        if match[0] == mark:
            return text[: match.start()], text[match.end() :]
    return text, ""


@cache
def parse_type(text: str) -> Type:
    """Parse one type, such as `f32[B, T, 576]`, `mask[B, N, S]` or `kv<B, 3, S, 64, 64, f32>`."""
    text = text.strip()
    if match := re.fullmatch(r"mask\[(.*)\]", text):
        return _parse_mask(_dims(match[1]))
    if match := re.fullmatch(r"kv<(.*)>", text):
        return _parse_kv(split(match[1]))
    if match := re.fullmatch(r"tokens<(.*)>", text):
        return _parse_tokens(_dims(match[1]))
    if match := re.fullmatch(r"(\w+)\[(.*)\]", text):
        return Tensor(_dims(match[2]), _dtype(match[1]))
    raise ParseError(
        f"'{text}' is not a type; write it as f32[B, T, 576], mask[..], kv<..> or tokens<..>"
    )


def _parse_mask(dims: tuple[Dim, ...]) -> Mask:
    if len(dims) != 3:
        raise ParseError("a mask type is mask[batch, queries, keys]")
    return Mask((dims[0], dims[1], dims[2]))


def _parse_kv(parts: list[str]) -> KV:
    marks = parts[6:]
    if len(parts) < 6 or marks != [m for m in KV_MARKS if m in marks]:
        raise ParseError(
            "a kv type is kv<batch, heads, length, key_dim, value_dim, dtype[, rotated][, placed]"
            "[, scored]>"
        )
    batch, heads, length, key_dim, value_dim = map(parse_dim, parts[:5])
    flags = dict.fromkeys(marks, True)
    return KV(batch, heads, length, key_dim, value_dim, _dtype(parts[5]), **flags)


def _parse_tokens(dims: tuple[Dim, ...]) -> TokenSet:
    if len(dims) != 3:
        raise ParseError("a token set is tokens<batch, length, of>")
    return TokenSet(*dims)


def _dims(text: str) -> tuple[Dim, ...]:
    return tuple(parse_dim(p) for p in split(text))


def _dtype(text: str) -> DType:
    try:
        return DType(text)
    except ValueError:
        raise ParseError(
            f"unknown dtype '{text}'{nearest(text, [d.value for d in DType])}"
        ) from None


class _ModuleParser:
    """Reads the lines of one module, top to bottom."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.at = 0
        self.symbols: dict[str, Symbol] = {}
        self.weights: dict[str, Entry] = {}
        self.bodies: dict[str, Body] = {}
        self.functions: dict[str, Function] = {}

    def module(self) -> Module:
        try:
            name, stage = self._header()
            while (line := self._next()) != "}":
                self._item(line)
            self._end()
            return Module(name, self.functions, self.symbols, self.weights, stage)
        except ElidirError as error:
            at = ", ".join(filter(None, (f"line {self.at}", error.at)))
            raise ParseError(error.message, at=at) from None

    def _next(self) -> str:
        while self.at < len(self.lines):
            line = self.lines[self.at].strip()
            self.at += 1
            if line and not line.startswith("//"):
                return line
        raise ParseError("the module ends early; every '{' needs its '}'")

    def _end(self) -> None:
        rest = (line.strip() for line in self.lines[self.at :])
        if any(line and not line.startswith("//") for line in rest):
            raise ParseError("text follows the '}' of the module; one text holds one module")

    def _header(self) -> tuple[str, Stage]:
        match = re.fullmatch(r"module @([\w.\-]+) stage=(\w+) \{", self._next())
        if not match or match[2] not in {s.value for s in Stage}:
            stages = "|".join(s.value for s in Stage)
            raise ParseError(f"a module starts with 'module @name stage={stages} {{'")
        return match[1], Stage(match[2])

    def _item(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "sym":
            self._symbol(rest)
        elif word == "weight":
            self._weight(rest)
        elif word in ("body", "func"):
            self._function(word, rest)
        else:
            raise ParseError(f"expected sym, weight, body or func, found '{word}'")

    def _symbol(self, text: str) -> None:
        match = _SYMBOL.fullmatch(text)
        if not match:
            raise ParseError(f"expected 'sym N in [lo, hi]', found 'sym {text}'")
        name, lo, hi, usual, origin = match.groups()
        self._new(name, self.symbols, "symbol ")
        symbol(name)
        bounds = int(lo), None if hi == "inf" else int(hi), _string(origin or '""')
        self.symbols[name] = Symbol(*bounds, None if usual is None else int(usual))

    def _new(self, name: str, table: Collection[str], what: str = "@") -> None:
        if name in table:
            raise ParseError(f"{what}{name} is defined twice; rename one of the two")

    def _weight(self, text: str) -> None:
        match = re.fullmatch(r"@(\S+): (\w+\[.*?\])(?: = (.*))?((?: \w+=\S+)*)", text)
        if not match:
            raise ParseError(f"expected 'weight @name: type', found 'weight {text}'")
        self._new(match[1], self.weights)
        extra = dict(pair.split("=", 1) for pair in match[4].split())
        if unknown := set(extra) - {"format", "sha"}:
            raise ParseError(f"a weight has no '{min(unknown)}'; known: format, sha")
        tensor = _tensor(match[2])
        expr = _derived(match[3]) if match[3] else None
        entry = Entry(tensor, extra.get("format", ""), extra.get("sha", ""), expr)
        self.weights[match[1]] = entry

    def _function(self, word: str, text: str) -> None:
        match = re.fullmatch(r"@([\w.\-]+)\((.*?)\)(?: weights\((.*)\))? \{", text)
        if not match:
            raise ParseError(f"expected '{word} @name(%x: type) {{', found '{text}'")
        self._new(match[1], self.bodies if word == "body" else self.functions)
        weights = tuple(_body_weight(p) for p in split(match[3] or ""))
        known = {w.name: w.type for w in weights} if word == "body" else None
        region = _RegionParser(self, known).region(match[2])
        if word == "body":
            self.bodies[match[1]] = Body(match[1], region, weights)
        else:
            self.functions[match[1]] = Function(match[1], region)


def _tensor(text: str) -> Tensor:
    parsed = parse_type(text)
    if not isinstance(parsed, Tensor):
        raise ParseError(f"a weight is a tensor, not {text}")
    return parsed


def _body_weight(text: str) -> Weight:
    name, _, kind = text.partition(": ")
    return Weight(name.removeprefix("@"), _tensor(kind))


def _derived(text: str) -> Derived:
    match = re.fullmatch(r"(\w+)\((.*?)(?:; axis=(-?\d+))?\)", text)
    if not match or match[1] not in DERIVATIONS:
        raise ParseError(f"'{text}' is no derived weight; known: {', '.join(sorted(DERIVATIONS))}")
    args = [a[1:] if a.startswith("@") else _number(a) for a in split(match[2])]
    return Derived(match[1], tuple(args), int(match[3] or 0))


class _RegionParser:
    """Reads one region: its ops up to `yield` or `return`, then the closing brace."""

    def __init__(self, parent: _ModuleParser, weights: dict[str, Tensor] | None) -> None:
        self.parent, self.weights = parent, weights
        self.values: dict[str, Value] = {}

    def region(self, params: str) -> Region:
        declared = tuple(self._param(p) for p in split(params))
        ops: list[Op] = []
        while not re.match(r"(yield|return)\b", line := self.parent._next()):
            ops.append(self._op(line))
        results = tuple(self._value(r) for r in split(line.partition(" ")[2]))
        if self.parent._next() != "}":
            raise ParseError("a region ends with '}' after its yield or return")
        return Region(declared, tuple(ops), results)

    def _param(self, text: str) -> Value:
        name, _, kind = text.partition(": ")
        if not name.startswith("%"):
            raise ParseError(f"'{text}' is no parameter; write it as '%name: type'")
        return self._define(name, Value(parse_type(kind), name.removeprefix("%")))

    def _define(self, name: str, value: Value) -> Value:
        if name in self.values:
            raise ParseError(f"{name} is defined twice")
        self.values[name] = value
        return value

    def _value(self, name: str) -> Value:
        if not name.startswith("%"):
            raise ParseError(f"'{name}' is no value; write it as %name")
        if name not in self.values:
            raise ParseError(f"{name} is used before it is defined{nearest(name, self.values)}")
        return self.values[name]

    def _op(self, line: str) -> Op:
        line, loc = _cut(line, "  # ")
        match = re.fullmatch(r"(?:(%\S.*?) = )?([\w.]+) ?(.*?) : ([^:]*)", line)
        if not match:
            raise ParseError(f"expected '%x = op operands {{attributes}} : type', found '{line}'")
        if match[2] not in OPS:
            raise ParseError(f"unknown op '{match[2]}'{nearest(match[2], OPS)}")
        names = split(match[1] or "")
        hints = tuple(n.removeprefix("%") for n in names)
        op = OPS[match[2]](**self._fields(OPS[match[2]], match[3]), loc=loc.strip(), names=hints)
        self._check_types(op, match[4])
        if len(names) != len(op.results):
            raise ParseError(f"{op.kind} has {len(op.results)} results, but {len(names)} names")
        for name, value in zip(names, op.results, strict=True):
            self._define(name, value)
        return op

    def _check_types(self, op: Op, text: str) -> None:
        declared = [parse_type(t) for t in split(text.replace("()", ""))]
        found = [r.type for r in op.results]
        if declared != found and list(map(str, declared)) != list(map(str, found)):
            types_ = ", ".join(map(str, found))
            raise ParseError(f"{op.kind} gives {types_}, but the text says {text.strip()}")

    def _fields(self, cls: type[Op], text: str) -> dict[str, Any]:
        reads, attributes = _cut_attributes(text)
        parts = split(reads)
        fields = fields_of(cls)
        out: dict[str, Any] = {}
        for f in (f for f in fields if f.kind is not Kind.ATTRIBUTE and not f.optional):
            if not parts:
                raise ParseError(f"{cls.kind} needs the operand '{f.name}'")
            out[f.name] = self._read(f, parts.pop(0))
        by_name = {f.name: f for f in fields}
        for part in [*parts, *attributes]:
            name, _, item = part.partition("=")
            if name not in by_name:
                raise ParseError(f"{cls.kind} has no '{name}'{nearest(name, by_name)}")
            out[name] = self._read(by_name[name], item)
        if missing := [f.name for f in fields if f.default is MISSING and f.name not in out]:
            raise ParseError(f"{cls.kind} needs the attribute '{missing[0]}'")
        return out

    def _read(self, f: Field, text: str) -> Any:
        if f.kind is Kind.ATTRIBUTE:
            return parse_attribute(f.annotation, text, f"attribute '{f.name}'")
        if f.kind is Kind.BODY:
            return self._body(text)
        read = self._weight if f.kind in (Kind.WEIGHT, Kind.WEIGHTS) else self._value
        if f.kind in (Kind.OPERANDS, Kind.WEIGHTS):
            return tuple(map(read, _items(text, "[]")))
        if f.annotation is not Value and f.kind is Kind.OPERAND and not text.startswith("%"):
            return _number(text)
        return read(text)

    def _body(self, text: str) -> Body:
        name = text.removeprefix("@")
        if name not in self.parent.bodies:
            raise ParseError(f"there is no body @{name} above{nearest(name, self.parent.bodies)}")
        return self.parent.bodies[name]

    def _weight(self, text: str) -> Weight:
        if not text.startswith("@"):
            raise ParseError(f"'{text}' is no weight; write it as @name")
        name = text[1:]
        if self.weights is not None:
            if name not in self.weights:
                hint = nearest(name, self.weights)
                raise ParseError(f"@{name} is not among the body's weights; list it there{hint}")
            return Weight(name, self.weights[name])
        if name not in self.parent.weights:
            hint = nearest(name, self.parent.weights)
            raise ParseError(f"@{name} is not in the weight table{hint}")
        return Weight(name, self.parent.weights[name].type)


def _cut_attributes(text: str) -> tuple[str, list[str]]:
    """Split `operands {a=1 b=2}` into the operands and the list of `name=value`."""
    reads, pairs = _cut(text, "{")
    return reads.strip(), split(pairs.rstrip().removesuffix("}"), " ")


def _items(text: str, brackets: str) -> list[str]:
    if text[:1] != brackets[0] or text[-1:] != brackets[1]:
        raise ParseError(f"'{text}' is no list; write it as {brackets[0]}..{brackets[1]}")
    return split(text[1:-1])


def _number(text: str) -> int | float:
    if text in _BOOLS:
        return _BOOLS[text]
    try:
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
    except ValueError:
        raise ParseError(f"'{text}' is neither a value, a weight nor a number") from None


def parse_attribute(annotation: Any, text: str, what: str) -> Any:
    """Parse an attribute by its annotation; raises `ParseError` naming `what`."""
    if text == "none":
        return None
    if typing.get_origin(annotation) is tuple:
        inner = typing.get_args(annotation)[0]
        return tuple(parse_attribute(inner, p, what) for p in _items(text, "()"))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _parse_union(typing.get_args(annotation), text)
    try:
        return _parse_plain(annotation, text)
    except (KeyError, ValueError):
        hint = nearest(text, _choices(annotation))
        raise ParseError(f"{what}: '{text}' is no {annotation.__name__}{hint}") from None


def _choices(annotation: type) -> list[str]:
    if annotation is bool:
        return list(_BOOLS)
    return [str(e.value) for e in annotation] if issubclass(annotation, Enum) else []


def _parse_union(options: tuple[Any, ...], text: str) -> Any:
    if sympy.Expr in options:
        return parse_dim(text)
    return parse_type(text) if Tensor in options else _number(text)


def _string(text: str) -> str:
    try:
        item = json.loads(text)
    except ValueError:
        item = None
    if not isinstance(item, str):
        raise ParseError(f"{text} is no string; put it in double quotes, escaped as in JSON")
    return item


def _parse_plain(annotation: Any, text: str) -> Any:
    if annotation is bool:
        return _BOOLS[text]
    if annotation is str:
        return _string(text)
    if issubclass(annotation, Enum):
        return annotation(text)
    return annotation(text)
