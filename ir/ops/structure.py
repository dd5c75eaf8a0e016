"""Structure: the call of a layer's body, and what raising did not recognise.

An op that computes something elidir knows belongs in one of the other files.
"""

import json
from collections.abc import Iterator
from typing import Any

from elidir.ir.errors import IRTypeError
from elidir.ir.op import Body, Op, Value, Weight, op
from elidir.ir.types import Type


@op("layer")
class Layer(Op):
    """results = body(inputs), the body's weight `@w` being `@<scope>.w` of the module's table."""

    body: Body
    inputs: tuple[Value, ...]
    scope: str

    def infer(self) -> tuple[Type, ...]:
        wanted = tuple(p.type for p in self.body.region.params)
        found = tuple(v.type for v in self.inputs)
        if wanted != found:
            pairs = [f"{w} but got {f}" for w, f in zip(wanted, found, strict=False) if w != f]
            detail = "; ".join(pairs) or f"{len(wanted)} inputs but got {len(found)}"
            raise IRTypeError(f"@{self.body.name} expects {detail}")
        return tuple(v.type for v in self.body.region.results)


@op("opaque")
class Opaque(Op):
    """An ATen op that elidir does not model, run as it is.

    `args` is JSON: the positional arguments, then a dict of keyword arguments. `{"%": i}` stands
    for input i, `{"@": i}` for weight i, `{"dim": text}` for a dimension, `{"dtype": name}` for a
    dtype.
    """

    inputs: tuple[Value, ...]
    refs: tuple[Weight, ...]
    target: str
    args: str
    out: tuple[Type, ...]

    def infer(self) -> tuple[Type, ...]:
        return self.out

    def verify(self) -> None:
        try:
            arguments = json.loads(self.args)
        except ValueError:
            raise IRTypeError(f"the arguments of {self.target} are no JSON: {self.args}") from None
        counts = {"%": len(self.inputs), "@": len(self.refs)}
        for mark, index in _references(arguments):
            if index not in range(counts[mark]):
                raise IRTypeError(f"{self.target} refers to {mark}{index} of {counts[mark]}")


def _references(item: Any) -> Iterator[tuple[str, Any]]:
    """Yield each reference to an input or a weight in the JSON of an opaque op."""
    if isinstance(item, dict):
        yield from (pair for pair in item.items() if pair[0] in ("%", "@"))
        item = list(item.values())
    for inner in item if isinstance(item, list) else ():
        yield from _references(inner)
