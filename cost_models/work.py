"""Work: what an op has to do, whatever the hardware: arithmetic, bytes moved, launches.

Entries are ints or expressions over the module's symbols, so the work of a layer is counted once
and evaluated for every phase. One function per op kind is registered with `@work`; they live in
`op_work.py`. Nothing here knows a target, a rate or a second.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import reduce
from operator import add
from typing import Any, TypeAlias, TypeVar

import sympy

from elidir.cost_models.errors import WorkError
from elidir.cost_models.formats import bits_per_weight, storage_format, stored_bytes
from elidir.ir import (
    KV,
    Dim,
    DType,
    Entry,
    Mask,
    Op,
    Tensor,
    TokenSet,
    Value,
    Weight,
    as_dim,
    nearest,
    product,
    resolve,
    symbol,
)


class Store(Enum):
    """What bytes are: parameters, cached keys and values, or values on their way."""

    WEIGHTS = "weights"
    KV = "kv"
    ACTIVATIONS = "activations"


@dataclass(frozen=True, order=True)
class Arithmetic:
    """A class of arithmetic: `unit` is matrix (products) or vector (elementwise), and its dtype."""

    unit: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.unit}.{self.dtype}"


@dataclass(frozen=True)
class Work:
    """Flops by arithmetic (a multiply-add is two), bytes by store, and kernel launches."""

    flops: Mapping[Arithmetic, Dim] = field(default_factory=dict)
    read: Mapping[Store, Dim] = field(default_factory=dict)
    written: Mapping[Store, Dim] = field(default_factory=dict)
    launches: Dim = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            _merge(self.flops, other.flops),
            _merge(self.read, other.read),
            _merge(self.written, other.written),
            self.launches + other.launches,
        )

    def __mul__(self, n: Dim) -> "Work":
        """Return `n` times the work."""
        return self._map(lambda dim: dim * n)

    def evaluate(self, bindings: Mapping[str, int]) -> "Work":
        """Return the work in numbers; raises `WorkError` if a symbol has no value in `bindings`."""
        return self._evaluate({symbol(k): sympy.Integer(v) for k, v in bindings.items()})

    def _evaluate(self, values: dict[sympy.Symbol, sympy.Integer]) -> "Work":
        return self._map(lambda dim: dim if isinstance(dim, int) else _number(dim, values))

    def _map(self, fn: Callable[[Dim], Dim]) -> "Work":
        return Work(
            {k: fn(v) for k, v in self.flops.items()},
            {k: fn(v) for k, v in self.read.items()},
            {k: fn(v) for k, v in self.written.items()},
            fn(self.launches),
        )

    @property
    def total_flops(self) -> Dim:
        """All flops, whatever their arithmetic."""
        return reduce(add, self.flops.values(), 0)

    @property
    def total_bytes(self) -> Dim:
        """All bytes, read and written."""
        return reduce(add, [*self.read.values(), *self.written.values()], 0)


_Key = TypeVar("_Key")


def _merge(a: Mapping[_Key, Dim], b: Mapping[_Key, Dim]) -> dict[_Key, Dim]:
    return {**a, **{k: a[k] + v if k in a else v for k, v in b.items()}}


def _number(dim: sympy.Expr, values: dict[sympy.Symbol, sympy.Integer]) -> int:
    number = dim.xreplace(values)
    if free := sorted(s.name for s in number.free_symbols):
        raise WorkError(f"the symbol {free[0]} has no value; give bindings={{'{free[0]}': ..}}")
    return int(number)


# ---- in what precision


@dataclass(frozen=True)
class Precision:
    """What to count in: the dtype of floats, and that of products with weights; None: as typed.

    Weights that are stored in fewer bits are read so, as the backends do.
    """

    floats: DType | None = None
    products: DType | None = None

    @staticmethod
    def of(dtype: str | None) -> "Precision":
        """Return the precision that a dtype's name asks for: `i8` means int8 products, f16 else."""
        if dtype is None:
            return Precision()
        names = {d.value: d for d in DType if d.is_float} | {"i8": DType.I8}
        if dtype not in names:
            raise WorkError(f"unknown dtype '{dtype}'{nearest(dtype, names)}")
        kind = names[dtype]
        return Precision(kind) if kind.is_float else Precision(DType.F16, kind)

    def held(self, dtype: DType) -> DType:
        """Return the dtype in which a value of `dtype` is held."""
        return self.floats if self.floats and dtype.is_float else dtype


@dataclass(frozen=True)
class Sizes:
    """What a work function asks about its op's operands: bytes, kinds of store, arithmetic."""

    weights: Mapping[str, Entry] = field(default_factory=dict)
    scope: str = ""
    precision: Precision = field(default_factory=Precision)
    origins: Mapping[Value, Store] = field(default_factory=dict)

    def bytes_of(self, value: Value) -> Dim:
        """Return the bytes of a value; masks have one byte an entry."""
        kind = value.type
        if isinstance(kind, Tensor):
            return product(kind.dims) * self.precision.held(kind.dtype).bytes
        if isinstance(kind, Mask):
            return product(kind.dims)
        if isinstance(kind, TokenSet):
            return 9 * product((kind.batch, kind.length))  # an index and a bool
        return self.kv_bytes(kind)

    def kv_bytes(self, kind: KV) -> Dim:
        """Return the bytes of a whole cache."""
        row = kind.batch * kind.heads * (kind.key_dim + kind.value_dim)
        return as_dim(kind.length * row * self.precision.held(kind.dtype).bytes)

    def weight_bytes(self, weight: Weight) -> int:
        """Return the bytes of a whole weight in the precision asked for, or fewer as stored."""
        name = resolve(self.scope, weight.name)
        return stored_bytes(Entry(weight.type), self._bits(name, weight.type))

    def _bits(self, name: str, kind: Tensor) -> Any:
        stored = storage_format(name, self.weights) if name in self.weights else kind.dtype.value
        bits = bits_per_weight(stored)
        asked, products = self.precision.floats, self.precision.products
        if asked is None or not kind.dtype.is_float:
            return bits
        asked = products if products is not None and len(kind.dims) > 1 else asked
        return min(bits, bits_per_weight(asked.value))

    def store_of(self, value: Value) -> Store:
        """Return what the bytes of a value are."""
        return self.origins.get(value, Store.ACTIVATIONS)

    # -- parts of a work

    def reads(self, *values: Value | None) -> Work:
        """Return the reading of whole values (those that are None, or caches, are left out)."""
        present = [v for v in values if v is not None and not isinstance(v.type, KV)]
        return sum_work(Work(read={self.store_of(v): self.bytes_of(v)}) for v in present)

    def writes(self, *values: Value) -> Work:
        """Return the writing of whole values."""
        tensors = [v for v in values if not isinstance(v.type, KV)]
        return sum_work(Work(written={Store.ACTIVATIONS: self.bytes_of(v)}) for v in tensors)

    def loads(self, *weights: Weight | None) -> Work:
        """Return the reading of whole weights."""
        sizes = (self.weight_bytes(w) for w in weights if w is not None)
        return Work(read={Store.WEIGHTS: sum(sizes)}) if any(weights) else Work()

    def traffic(self, op: Op) -> Work:
        """Return one launch that reads every operand and weight whole and writes every result."""
        moved = self.reads(*op.operands()) + self.loads(*op.weights()) + self.writes(*op.results)
        return moved + Work(launches=1)

    def vector(self, flops: Dim, like: Value) -> Work:
        """Return elementwise flops in the dtype of a value; integers and masks count as f32."""
        kind = like.type
        dtype = self.precision.held(kind.dtype) if isinstance(kind, Tensor) else DType.F32
        return Work({Arithmetic("vector", (dtype if dtype.is_float else DType.F32).value): flops})

    def matrix(self, flops: Dim, like: Value) -> Work:
        """Return the flops of a product of values, such as attention's."""
        return Work({Arithmetic("matrix", self.precision.held(like.tensor.dtype).value): flops})

    def product(self, flops: Dim, x: Value) -> Work:
        """Return the flops of a product of a value with weights."""
        if self.precision.products is None:
            return self.matrix(flops, x)
        return Work({Arithmetic("matrix", self.precision.products.value): flops})


def sum_work(parts: Any) -> Work:
    """Return the sum of works."""
    return reduce(add, parts, Work())


# ---- the registry

WorkFn: TypeAlias = Callable[[Any, Sizes], Work]
WORK: dict[type[Op], WorkFn] = {}
_Fn = TypeVar("_Fn", bound=WorkFn)


def work(*kinds: type[Op]) -> Callable[[_Fn], _Fn]:
    """Register the function that counts the work of these op kinds; a second one raises."""

    def register(fn: _Fn) -> _Fn:
        for kind in kinds:
            if kind in WORK:
                raise WorkError(f"the work of '{kind.kind}' is registered twice; drop one of them")
            WORK[kind] = fn
        return fn

    return register


def is_modelled(op: Op) -> bool:
    """Whether the arithmetic of an op is known; if not, only its operands and results count."""
    return type(op) in WORK


def work_of(op: Op, sizes: Sizes) -> Work:
    """Return the work of one op; of one that is not modelled, the bytes of its operands alone."""
    fn = WORK.get(type(op))
    return fn(op, sizes) if fn else sizes.traffic(op)
