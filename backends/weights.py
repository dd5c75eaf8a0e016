"""The arrays behind a module's weight table, loaded when a kernel asks for them.

A `WeightStore` holds sources by name: the user's tensors by reference, never written to, or
stored data in a format of its own, which knows how to decode itself. `Weights` is the table of
one module over a store: it evaluates derived entries. Nothing is kept that no kernel keeps: what
is shared (converted, derived and packed copies) is remembered weakly.
"""

import hashlib
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias
from weakref import WeakValueDictionary

import torch

from elidir.backends.derive import derive
from elidir.backends.dtypes import ir_dtype, torch_dtype
from elidir.backends.errors import WeightError
from elidir.ir import Entry, Tensor, Weight, nearest


class Source(Protocol):
    """One stored weight; `format` is "" when it is stored in its own dtype."""

    @property
    def format(self) -> str:
        """The storage format, such as q4_1 or int8."""

    @property
    def sha(self) -> str:
        """The content hash."""

    @property
    def raw(self) -> torch.Tensor | None:
        """The stored bytes of a block format, u8[rows, bytes in a row]; None if it is dense."""

    def load(self) -> torch.Tensor:
        """Return the weight as a dense tensor."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Rows of a weight in the blocks that they are stored in: u8[rows, bytes in a row]."""

    format: str
    raw: torch.Tensor
    shape: tuple[int, int]


Part: TypeAlias = torch.Tensor | Blocks


class TensorSource:
    """A tensor that somebody else owns."""

    format, raw = "", None

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()

    @cached_property
    def sha(self) -> str:
        """The content hash, computed when first asked for."""
        return content_hash(self.tensor)

    def load(self) -> torch.Tensor:
        """Return the tensor itself."""
        return self.tensor


class WeightStore:
    """Sources by full name, and the weak memory of what kernels made of them."""

    def __init__(self, sources: Mapping[str, "torch.Tensor | Source"] | None = None) -> None:
        self._sources: dict[str, Source] = {}
        self._shared: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        for name, source in (sources or {}).items():
            self.add(name, source)

    def add(self, name: str, source: "torch.Tensor | Source") -> None:
        """Add one source; raises `WeightError` if the name is taken."""
        if name in self._sources:
            raise WeightError(f"weight '{name}' is already in the store; give it another name")
        is_tensor = isinstance(source, torch.Tensor)
        self._sources[name] = TensorSource(source) if is_tensor else source

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def source(self, name: str) -> Source:
        """Return the source of a stored weight; raises `WeightError` with the nearest name."""
        if name not in self._sources:
            raise WeightError(f"weight '{name}' is not in the store{nearest(name, self._sources)}")
        return self._sources[name]

    def share(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what is remembered under `key`, or make it; forgotten when nobody holds it."""
        found = self._shared.get(key)
        if found is None:
            found = make()
            self._shared[key] = found
        return found

    def entry(self, name: str) -> Entry:
        """Return the table entry that describes a stored weight (loads it if it is encoded)."""
        source = self.source(name)
        tensor = source.load()
        dtype = ir_dtype(tensor.dtype)
        if dtype is None:
            raise WeightError(f"weight '{name}' is {tensor.dtype}, which the IR has no name for")
        return Entry(Tensor(tuple(tensor.shape), dtype), source.format, source.sha)


class Weights:
    """The weights of one module: its table of entries over a store."""

    def __init__(self, store: WeightStore, entries: Mapping[str, Entry]) -> None:
        self.store, self.entries = store, entries
        self._keys: dict[str, Hashable] = {}

    def load(self, weight: Weight) -> torch.Tensor:
        """Return a weight in its reference's dtype; raises `WeightError` if it does not fit."""
        dtype = torch_dtype(weight.type.dtype)
        tensor = self._converted(self.canonical(weight.name), dtype)
        if tuple(tensor.shape) != weight.type.dims:
            found = list(tensor.shape)
            raise WeightError(f"weight '{weight.name}' has shape {found}, not {weight.type}")
        return tensor

    def prepare(
        self, how: Hashable, weights: Sequence[Weight], make: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        """Return `make(*tensors)`, shared by all kernels that ask for this preparation `how`."""
        names = tuple((self._key(self.canonical(w.name)), w.type.dtype) for w in weights)
        made: torch.Tensor = self.store.share(
            (how, names), lambda: make(*[self.load(w) for w in weights])
        )
        return made

    def parts(self, weight: Weight, formats: Container[str] = ()) -> tuple[Part, ...]:
        """Return a matrix as it is kept, part over part: nothing is joined that is stored apart.

        A part that is stored in one of `formats` comes in its blocks, any other as a tensor.
        """
        name = self.canonical(weight.name)
        entry = self.entries.get(name)
        expr = None if entry is None else entry.expr
        if expr is None:
            source = self.store.source(name)
            if source.format in formats and source.raw is not None:
                rows, columns = weight.type.dims
                return (Blocks(source.format, source.raw, (int(rows), int(columns))),)
        elif expr.fn == "concat" and expr.axis == 0:
            dtype = weight.type.dtype
            types = [(n, self.entries[n].type.dims) for n in expr.sources]
            refs = [Weight(n, Tensor(dims, dtype)) for n, dims in types]
            return tuple(part for ref in refs for part in self.parts(ref, formats))
        return (self.load(weight),)

    def canonical(self, name: str) -> str:
        """Return the name that a chain of aliases leads to."""
        entry = self.entries.get(name)
        while entry is not None and entry.expr is not None and entry.expr.fn == "alias":
            name = entry.expr.sources[0]
            entry = self.entries.get(name)
        return name

    def _converted(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        key = (self._key(name), dtype)
        made: torch.Tensor = self.store.share(key, lambda: self._make(name).to(dtype))
        return made

    def _key(self, name: str) -> Hashable:
        """Return what a weight is: a stored one its name, any other its expression over such.

        Modules of one store may mean different things by the name of a derived weight.
        """
        entry = self.entries.get(name)
        if entry is None or entry.expr is None:
            return name
        if name not in self._keys:
            args = tuple(self._key(a) if isinstance(a, str) else a for a in entry.expr.args)
            self._keys[name] = (entry.expr.fn, entry.expr.axis, entry.type.dims, args)
        return self._keys[name]

    def _make(self, name: str) -> torch.Tensor:
        entry = self.entries.get(name)
        if entry is None or entry.expr is None:
            return self.store.source(name).load().detach()
        args = [self._make(a) if isinstance(a, str) else a for a in entry.expr.args]
        try:
            made = derive(entry.expr, args)
        except WeightError as error:
            raise WeightError(error.message, at=f"@{name}") from None
        return _filled(made, entry.type) if entry.expr.fn == "literal" else made


def _filled(numbers: torch.Tensor, kind: Tensor) -> torch.Tensor:
    """Return the numbers of a literal in the shape of its entry, which ends in -1 where they do."""
    made = torch.full(kind.dims, -1, dtype=numbers.dtype)
    made.view(-1)[: numbers.numel()] = numbers
    return made


# ---- hashes


def content_hash(tensor: torch.Tensor) -> str:
    """Return the first 16 hex digits of the SHA-256 of dtype, shape and bytes."""
    head = f"{tensor.dtype}{list(tensor.shape)}".encode()
    flat = tensor.detach().contiguous().reshape(-1)
    digest = hashlib.sha256(head)
    digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def content_hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the hash of each tensor, on two threads (hashing leaves the interpreter free)."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(tensors, pool.map(content_hash, tensors.values()), strict=True))
