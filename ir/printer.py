"""The text of a module: `format_module` for the whole, `fold_module` for reading.

The full text parses back to a module that prints to the same bytes. The folded text shows a run of
layers that share a body as one line, and their weights likewise; it is for people, not for parsing.
"""

import json
import re
from collections.abc import Iterable
from enum import Enum
from typing import Any

from elidir.ir.module import Entry, Module
from elidir.ir.op import Body, Field, Kind, Op, Region, Value, Weight, fields_of
from elidir.ir.ops.structure import Layer
from elidir.ir.symbols import format_dim


def format_module(module: Module) -> str:
    """Return the full text of a module."""
    return Printer(module).text()


def fold_module(module: Module) -> str:
    """Return the text with runs of layers, and their weights, each folded into one line."""
    return Printer(module, folded=True).text()


class Printer:
    """Prints one module and remembers the line of each op, for messages."""

    def __init__(self, module: Module, *, folded: bool = False) -> None:
        self.module, self.folded = module, folded
        self.lines: list[str] = []
        self.line_of: dict[Op, int] = {}
        self.bodies = _unique_names(module.bodies)
        self.names: dict[Value, str] = {}

    def text(self) -> str:
        """Return the text, ending in a newline."""
        module = self.module
        self.lines = [f"module @{module.name} stage={module.stage.value} {{"]
        self.lines += [f"  sym {name} in {s}" for name, s in module.symbols.items()]
        self.lines += self._weights()
        for body in module.bodies:
            weights = ", ".join(f"@{w.name}: {w.type}" for w in body.weights)
            self._region(f"body @{self.bodies[body]}", f" weights({weights})", "yield", body.region)
        for function in module.functions.values():
            self._region(f"func @{function.name}", "", "return", function.region)
        return "\n".join([*self.lines, "}", ""])

    def _weights(self) -> Iterable[str]:
        lines = [f"  weight @{n}: {_entry(e)}" for n, e in self.module.weights.items()]
        return _fold_weights(lines) if self.folded else lines

    def _region(self, head: str, tail: str, end: str, region: Region) -> None:
        self.names = _name_values(region)
        params = ", ".join(f"{self.names[p]}: {p.type}" for p in region.params)
        self.lines.append(f"  {head}({params}){tail} {{")
        for run in _runs(region.ops) if self.folded else ((o,) for o in region.ops):
            self._op(run)
        results = ", ".join(map(self._name, region.results))
        self.lines += [f"    {end} {results}".rstrip(), "  }"]

    def _op(self, run: tuple[Op, ...]) -> None:
        op = run[0]
        for o in run:
            self.line_of[o] = len(self.lines) + 1
        results = ", ".join(self.names[r] for r in run[-1].results)
        types = ", ".join(str(r.type) for r in op.results) or "()"
        text = f"{op.kind}{f' x{len(run)}' if len(run) > 1 else ''} {self._fields(op)}".rstrip()
        head = f"{results} = {text}" if results else text
        loc = f"  # {' '.join(op.loc.split())}" if op.loc else ""
        self.lines.append(f"    {head} : {types}{loc}")

    def _fields(self, op: Op) -> str:
        fields = fields_of(type(op))
        reads = [f for f in fields if f.kind is not Kind.ATTRIBUTE]
        parts = [self._read(f, getattr(op, f.name)) for f in reads]
        attrs = [f for f in fields if f.kind is Kind.ATTRIBUTE]
        text = ", ".join(p for p in parts if p)
        pairs = " ".join(filter(None, (_pair(f, getattr(op, f.name)) for f in attrs)))
        return f"{text} {{{pairs}}}".lstrip() if pairs else text

    def _read(self, f: Field, item: Any) -> str:
        if item is None:
            return ""
        text = self._reference(item)
        return f"{f.name}={text}" if f.optional else text

    def _reference(self, item: Any) -> str:
        if isinstance(item, tuple):
            return f"[{', '.join(map(self._reference, item))}]"
        if isinstance(item, Value):
            return self._name(item)
        if isinstance(item, Weight):
            return f"@{item.name}"
        if isinstance(item, Body):
            return f"@{self.bodies.get(item, item.name)}"
        return _literal(item)

    def _name(self, value: Value) -> str:
        """Return a value's name; one that the region does not define is marked, for messages."""
        return self.names.get(value) or f"%{value.name}<undefined>"


def _pair(f: Field, item: Any) -> str:
    """Return `name=value`, or nothing for the default; 0, 0.0 and -0.0 are three values."""
    text = format_attribute(f, item)
    if item == f.default and text == format_attribute(f, f.default):
        return ""
    return f"{f.name}={text}"


def format_attribute(f: Field, item: Any) -> str:
    """Return the text of an attribute value."""
    if f.annotation is float and item is not None:
        item = float(item)
    text = _literal(item)
    return f"({text})" if " " in text and hasattr(item, "free_symbols") else text


def _literal(item: Any) -> str:
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, Enum):
        return str(item.value)
    if isinstance(item, str):
        return json.dumps(item)
    if isinstance(item, tuple):
        return f"({', '.join(map(_literal, item))})"
    if item is None:
        return "none"
    return repr(item) if isinstance(item, int | float) else _symbolic(item)


def _symbolic(item: Any) -> str:
    return format_dim(item) if hasattr(item, "free_symbols") else str(item)


def _entry(entry: Entry) -> str:
    if entry.expr is not None:
        return f"{entry.type} = {entry.expr}"
    extra = f" format={entry.format}" if entry.format else ""
    return f"{entry.type}{extra}" + (f" sha={entry.sha}" if entry.sha else "")


# ---- names


def _unique_names(bodies: Iterable[Body]) -> dict[Body, str]:
    taken: set[str] = set()
    return {body: _claim(body.name, taken) for body in bodies}


def _name_values(region: Region) -> dict[Value, str]:
    """Name every value of a region: its hint made unique, or the next number."""
    taken: set[str] = set()
    names: dict[Value, str] = {}
    values = [*region.params, *(r for o in region.ops for r in o.results)]
    hints = [re.sub(r"[^\w.\-]+", "_", v.name) for v in values]
    taken_hints = set(hints)
    for value, hint in zip(values, hints, strict=True):
        base = "" if hint.isdigit() else hint
        names[value] = "%" + (_claim(base, taken, taken_hints) if base else str(len(names)))
    return names


def _claim(base: str, taken: set[str], reserved: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    """Return `base`, or `base_1`, `base_2`, ..: the first neither taken nor another's own hint."""
    name, n = base, 0
    while name in taken or (n and name in reserved):
        n += 1
        name = f"{base}_{n}"
    taken.add(name)
    return name


# ---- folding


def _runs(ops: tuple[Op, ...]) -> Iterable[tuple[Op, ...]]:
    run: list[Op] = []
    for op in ops:
        if run and not _continues(run[-1], op):
            yield tuple(run)
            run = []
        run.append(op)
    if run:
        yield tuple(run)


def _continues(a: Op, b: Op) -> bool:
    if not isinstance(a, Layer) or not isinstance(b, Layer) or a.body is not b.body:
        return False
    return any(v in a.results for v in b.inputs)


def _fold_weights(lines: list[str]) -> list[str]:
    """Join lines that differ in one number of the name (and in the hash) into one with a range."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for line in lines:
        match = re.search(r"\.(\d+)\.", line.split(":")[0])
        key = _OWN.sub("", _FIRST_NUMBER.sub(r"\1.*.", line)) if match else line
        groups.setdefault(key, []).append((int(match.group(1)) if match else -1, line))
    return [_fold_group(key, group) for key, group in groups.items()]


# What each layer has for itself: hashes, and the numbers of literals.
_OWN = re.compile(r" sha=\S+|(?<= = literal)\(.*\)")
# The first number in each reference to a weight: that of the layer, rather than of an expert in it.
_FIRST_NUMBER = re.compile(r"(@[^\s,:()]*?)\.\d+\.")


def _fold_group(key: str, group: list[tuple[int, str]]) -> str:
    if len(group) == 1:
        return group[0][1]
    numbers = sorted(n for n, _ in group)
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    span = f"{numbers[0]}..{numbers[-1]}" if whole else f"{{{','.join(map(str, numbers))}}}"
    return key.replace(".*.", f".{span}.")
