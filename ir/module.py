"""Modules: functions, the symbols of their dimensions, and a table of weights.

A module is data and holds no arrays: a weight is its type, storage format and content hash, or an
expression over other weights that a backend evaluates at load. Passes return new modules.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from elidir.ir.errors import ElidirError, nearest
from elidir.ir.op import Body, Op, Region
from elidir.ir.ops.structure import Layer
from elidir.ir.symbols import Symbol
from elidir.ir.types import Tensor


class Stage(Enum):
    """How far a module has come: as captured, or with an incremental `@step`."""

    RAISED = "raised"
    GRAPH = "graph"


@dataclass(frozen=True)
class Derived:
    """A weight made of others, or of numbers, when it is loaded.

    `args` are names of weights or numbers; `axis` is that of `concat`. Beside alias, concat,
    transpose, add and mul:

    - `literal(3, 17)`: the numbers themselves, in the shape of the entry; -1 where they end.
    - `columns(@w, @c)`: the columns of w [out, in] that c lists; -1 stands for one of zeros.
    - `quantize_scale(@w, @c)`: max |w| / 127 of each row, columns that c lists left out; 1 if none.
    - `quantize(@w, @c)`: w in such steps, i8; the columns that c lists are zeros. c may be missing.
    """

    fn: str
    args: tuple[str | float, ...]
    axis: int = 0

    def __str__(self) -> str:
        args = ", ".join(f"@{a}" if isinstance(a, str) else repr(a) for a in self.args)
        axis = f"; axis={self.axis}" if self.fn == "concat" else ""
        return f"{self.fn}({args}{axis})"

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the weights that it reads."""
        return tuple(a for a in self.args if isinstance(a, str))


DERIVATIONS = frozenset(
    "add alias columns concat literal mul quantize quantize_scale transpose".split()
)


@dataclass(frozen=True)
class Entry:
    """One weight: its type, storage format ("" is its dtype), and its hash or its expression."""

    type: Tensor
    format: str = ""
    sha: str = ""
    expr: Derived | None = None


@dataclass(frozen=True, eq=False)
class Function:
    """A named region; its results are what it returns, named for the caller."""

    name: str
    region: Region


@dataclass(frozen=True, eq=False)
class Module:
    """A program: functions over one table of symbols and one table of weights."""

    name: str
    functions: dict[str, Function]
    symbols: dict[str, Symbol] = field(default_factory=dict)
    weights: dict[str, Entry] = field(default_factory=dict)
    stage: Stage = Stage.RAISED

    def __str__(self) -> str:
        from elidir.ir.printer import format_module

        return format_module(self)

    def __getitem__(self, name: str) -> Function:
        """Return a function; raises `ElidirError` if there is none of this name."""
        if name not in self.functions:
            raise ElidirError(f"module has no function @{name}{nearest(name, self.functions)}")
        return self.functions[name]

    @property
    def bodies(self) -> tuple[Body, ...]:
        """The distinct bodies of the layers, in order of first use."""
        seen = {id(layer.body): layer.body for layer in self.layers()}
        return tuple(seen.values())

    def layers(self) -> Iterator[Layer]:
        """Yield every layer op of every function."""
        for function in self.functions.values():
            yield from (o for o in function.region.ops if isinstance(o, Layer))

    def regions(self) -> Iterator[tuple[str, Region]]:
        """Yield each body and each function once, with its printed name."""
        for body in self.bodies:
            yield f"@{body.name}", body.region
        for function in self.functions.values():
            yield f"@{function.name}", function.region

    def ops(self) -> Iterator[Op]:
        """Yield every op once, those of a shared body once too."""
        for _, region in self.regions():
            yield from region.ops

    def with_function(self, function: Function) -> "Module":
        """Return a module with one function added or replaced."""
        return replace(self, functions=self.functions | {function.name: function})


def resolve(scope: str, name: str) -> str:
    """Return the full name of a weight that a body in `scope` calls `name`."""
    return f"{scope}.{name}" if scope else name
