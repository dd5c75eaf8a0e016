"""Values, ops and regions: an immutable SSA form that passes rebuild rather than mutate.

An op kind is one frozen dataclass. Its field annotations say what each field is (operand, weight or
attribute), and from them come the operand list, printer, parser, clone and structural hash. By hand
an op has a docstring that gives its semantics, and `infer`. What an op costs, how it runs and which
backend takes it are registered elsewhere, each beside its like.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, TypeAlias, TypeVar, dataclass_transform

from elidir.ir.errors import ElidirError, IRTypeError
from elidir.ir.types import Tensor, Type


class Value:
    """One SSA value: its type and a name that is a hint for printing. Equal only to itself."""

    __slots__ = ("name", "type")

    def __init__(self, type: Type, name: str = "") -> None:
        self.type = type
        self.name = name

    def __repr__(self) -> str:
        return f"%{self.name or '?'}: {self.type}"

    @property
    def tensor(self) -> Tensor:
        """The type, which must be a tensor; raises `IRTypeError` otherwise."""
        if not isinstance(self.type, Tensor):
            raise IRTypeError(f"{self!r} is not a tensor")
        return self.type


@dataclass(frozen=True)
class Weight:
    """A reference to an entry of the module's weight table, relative to the scope inside a body."""

    name: str
    type: Tensor


Scalar: TypeAlias = int | float
Operand: TypeAlias = Value | int | float


class Kind(Enum):
    """What a field of an op is."""

    OPERAND = "operand"
    OPERANDS = "operands"
    WEIGHT = "weight"
    WEIGHTS = "weights"
    BODY = "body"
    ATTRIBUTE = "attribute"


@dataclass(frozen=True)
class Field:
    """One field of an op kind, as derived from its annotation."""

    name: str
    kind: Kind
    annotation: Any
    optional: bool
    default: Any


@dataclass(frozen=True, eq=False, repr=False)
class Op:
    """Base of every op. `loc` is the module path it came from, `names` hint at its results."""

    kind: ClassVar[str] = ""

    loc: str = field(default="", kw_only=True)
    names: tuple[str, ...] = field(default=(), kw_only=True)
    results: tuple[Value, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        """Infer the result types and make the results."""
        try:
            inferred = self.infer()
        except IRTypeError as error:
            raise IRTypeError(f"{self.kind}: {error}", at=self.loc) from None
        kinds = inferred if isinstance(inferred, tuple) else (inferred,)
        names = self.names + ("",) * (len(kinds) - len(self.names))
        results = tuple(Value(t, n) for t, n in zip(kinds, names, strict=False))
        object.__setattr__(self, "results", results)

    def infer(self) -> Type | tuple[Type, ...]:
        """Return the type of each result; raises `IRTypeError` when the operands do not fit."""
        raise ElidirError(f"op kind '{self.kind}' has no infer; write it beside its fields")

    def verify(self) -> None:
        """Check what `infer` does not need to know; raises `IRTypeError`."""

    def bound(self) -> dict[str, Value]:
        """Return the symbols that the op binds when it runs, each to the size of a set it makes."""
        return {}

    @property
    def result(self) -> Value:
        """The only result."""
        (value,) = self.results
        return value

    def operands(self) -> Iterator[Value]:
        """Yield every value that the op reads, in the order of its fields."""
        for f in fields_of(type(self)):
            if f.kind in (Kind.OPERAND, Kind.OPERANDS):
                item = getattr(self, f.name)
                yield from (v for v in _as_tuple(item) if isinstance(v, Value))

    def weights(self) -> Iterator[Weight]:
        """Yield every weight that the op reads, in the order of its fields."""
        for f in fields_of(type(self)):
            if f.kind in (Kind.WEIGHT, Kind.WEIGHTS):
                yield from _as_tuple(getattr(self, f.name))

    def attributes(self) -> dict[str, Any]:
        """Return the attributes by name."""
        fields = fields_of(type(self))
        return {f.name: getattr(self, f.name) for f in fields if f.kind is Kind.ATTRIBUTE}

    def clone(
        self,
        value: Callable[[Value], Value] = lambda v: v,
        weight: Callable[[Weight], Weight] = lambda w: w,
        /,
        **changes: Any,
    ) -> "Op":
        """Return a copy with operands and weights mapped, fields replaced, types inferred anew."""
        new: dict[str, Any] = {"loc": self.loc, "names": tuple(r.name for r in self.results)}
        for f in fields_of(type(self)):
            item = getattr(self, f.name)
            if f.kind in (Kind.OPERAND, Kind.OPERANDS):
                item = _map(item, Value, value)
            elif f.kind in (Kind.WEIGHT, Kind.WEIGHTS):
                item = _map(item, Weight, weight)
            new[f.name] = item
        return type(self)(**(new | changes))


def _as_tuple(item: Any) -> tuple[Any, ...]:
    if item is None:
        return ()
    return item if isinstance(item, tuple) else (item,)


def _map(item: Any, cls: type, fn: Callable[[Any], Any]) -> Any:
    if isinstance(item, tuple):
        return tuple(_map(i, cls, fn) for i in item)
    return fn(item) if isinstance(item, cls) else item


@dataclass(frozen=True, eq=False)
class Region:
    """One block, isolated from above: parameters, ops in order, and the values it yields."""

    params: tuple[Value, ...]
    ops: tuple[Op, ...]
    results: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class Body:
    """A region that several `layer` ops share, with the weights it expects in each one's scope."""

    name: str
    region: Region
    weights: tuple[Weight, ...]


# ---- the registry

OPS: dict[str, type[Op]] = {}
_OpT = TypeVar("_OpT", bound=type)


@dataclass_transform(frozen_default=True, eq_default=False)
def op(kind: str) -> Callable[[_OpT], _OpT]:
    """Declare an op kind under its dotted name; a duplicate raises."""

    def declare(cls: _OpT) -> _OpT:
        if kind in OPS:
            raise ElidirError(f"op kind '{kind}' is declared twice; choose another name")
        cls.kind = kind  # type: ignore[attr-defined]
        OPS[kind] = dataclass(frozen=True, eq=False, repr=False)(cls)
        return cls

    return declare


_FIELDS: dict[type, tuple[Field, ...]] = {}


def fields_of(cls: type[Op]) -> tuple[Field, ...]:
    """Return the declared fields of an op kind, without those of the base class."""
    if cls not in _FIELDS:
        hints = typing.get_type_hints(cls)
        base = {f.name for f in dataclasses.fields(Op)}
        own = [f for f in dataclasses.fields(cls) if f.name not in base]
        _FIELDS[cls] = tuple(_field(f, hints[f.name]) for f in own)
    return _FIELDS[cls]


def _field(f: "dataclasses.Field[Any]", hint: Any) -> Field:
    alternatives = typing.get_args(hint) if _is_union(hint) else (hint,)
    inner = [a for a in alternatives if a is not type(None)]
    optional = len(inner) < len(alternatives)
    annotation = inner[0] if len(inner) == 1 else typing.Union[tuple(inner)]  # noqa: UP007
    return Field(f.name, _kind(inner), annotation, optional, f.default)


def _kind(inner: list[Any]) -> Kind:
    if Value in inner:
        return Kind.OPERAND
    if inner == [Weight]:
        return Kind.WEIGHT
    if inner == [Body]:
        return Kind.BODY
    first = inner[0]
    if typing.get_origin(first) is tuple and typing.get_args(first)[0] is Value:
        return Kind.OPERANDS
    if typing.get_origin(first) is tuple and typing.get_args(first)[0] is Weight:
        return Kind.WEIGHTS
    return Kind.ATTRIBUTE


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
