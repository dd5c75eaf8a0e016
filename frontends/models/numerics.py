"""Numerics: whether passes keep what a module computes, found by running it on the reference.

`Feed` makes inputs for functions, `random_weights` a store for a module without arrays, `Oracle`
compares a module with the one that passes began from, and `Numerics` is the instrument that asks
it after each exact pass. Only the reference backend runs here; speed does not matter.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from elidir.backends import WeightStore, lower, torch_dtype
from elidir.backends.reference import FunctionalKV, PlacedFunctionalKV
from elidir.ir import (
    KV,
    Dim,
    DType,
    Embed,
    Entry,
    Function,
    Mask,
    Module,
    Symbol,
    Value,
    evaluate,
    format_dim,
)
from elidir.passes import Instrument, Invariant, Pass, PassResult, Pipeline

TOLERANCE = 1e-6
"""Of the greatest value, in float64: above what reordered sums do, below what a mistake does."""

USUAL = {"B": 2, "T": 5, "N": 5, "R": 5}
MOST_IDS = 16
LACKED = 2
"""So many of the known tokens placed states do not hold, so that some can come back."""


# ---- what a module is run on


@dataclass(frozen=True, eq=False)
class Feed:
    """Inputs for the functions of a module: the tokens of a text whose first `cached` are known.

    Args:
        module: whose functions are fed.
        ids: i64[B, T] tokens; None draws a few.
        cached: tokens that `@step` finds in its (random) caches.
        seed: of all that is drawn.
    """

    module: Module
    ids: torch.Tensor | None = None
    cached: int = 0
    seed: int = 0

    def __call__(self, function: Function) -> list[Any]:
        """Return an input for each parameter; the same for the same names and types."""
        return [self._input(p) for p in function.region.params]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """A size for each symbol."""
        made = dict(USUAL)
        if self.ids is not None:
            rows, length = self.ids.shape
            made |= {"B": rows, "T": length, "N": length, "R": length}
        made["S"] = self.cached
        lacking = max(0, self.cached - LACKED)
        made |= dict.fromkeys(map(format_dim, _placed(self.module)), lacking)
        others = {n: s for n, s in self.module.symbols.items() if n not in made}
        return made | {name: _within(symbol) for name, symbol in others.items()}

    def _input(self, param: Value) -> Any:
        generator = _generator(param.name, self.seed)
        shape = [evaluate(d, self.sizes) for d in param.type.dims]
        if isinstance(param.type, KV):
            return self._filled(param.type, shape, generator)
        if isinstance(param.type, Mask):
            return _causal(shape, self.cached)
        dtype = param.type.dtype
        if dtype is DType.BOOL:
            return torch.ones(shape, dtype=torch.bool)
        if dtype.is_float:
            return torch.randn(shape, generator=generator).to(torch_dtype(dtype))
        return self._integers(param.name, shape, generator)

    def _filled(self, kv: KV, shape: list[int], generator: torch.Generator) -> FunctionalKV:
        """Return a state of random tokens; a placed one has the first of the session."""
        *rows, key_dim, value_dim = shape
        dtype, drawn = torch_dtype(kv.dtype), {"generator": generator}
        k, v = (torch.randn(*rows, width, **drawn).to(dtype) for width in (key_dim, value_dim))
        if not kv.placed:
            return FunctionalKV(k, v)
        numbers = torch.arange(k.shape[2]).expand(len(k), -1)
        return PlacedFunctionalKV(k, v, numbers, self.cached)

    def _integers(self, name: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
        """Return tokens, or positions in order."""
        if name == "ids":
            top = self._least_table
            drawn = torch.randint(0, top, shape, generator=generator)
            return drawn if self.ids is None else self.ids
        start = self.cached if name == "pos" and "S" in self.module.symbols else 0
        counted = torch.arange(shape[-1] if shape else 1) + start
        return counted.expand(shape) if shape else counted[0]

    @cached_property
    def _least_table(self) -> int:
        rows = [o.table.type.dims[0] for o in self.module.ops() if isinstance(o, Embed)]
        return min([MOST_IDS, *(r for r in rows if isinstance(r, int))])


def _within(symbol: Symbol) -> int:
    usual = USUAL["N"]
    return max(symbol.lo, usual if symbol.hi is None else min(usual, symbol.hi))


def _causal(shape: list[int], cached: int) -> torch.Tensor:
    """Each token sees the cached ones, itself and those before it."""
    return torch.ones(shape, dtype=torch.bool).tril(cached)


def _placed(module: Module) -> set[Dim]:
    """Return how many tokens placed states hold."""
    params = (p.type for f in module.functions.values() for p in f.region.params)
    return {kind.length for kind in params if isinstance(kind, KV) and kind.placed}


def random_weights(module: Module, seed: int = 0) -> WeightStore:
    """Return a store with an array for each stored weight of a module, drawn by its name."""
    stored = {n: e for n, e in module.weights.items() if e.expr is None}
    return WeightStore({name: _drawn(name, entry, seed) for name, entry in stored.items()})


def _drawn(name: str, entry: Entry, seed: int) -> torch.Tensor:
    shape, dtype = [int(d) for d in entry.type.dims], entry.type.dtype
    if not dtype.is_float:
        return torch.ones(shape, dtype=torch_dtype(dtype))
    drawn = torch.randn(shape, generator=_generator(name, seed), dtype=torch.float64)
    scaled = drawn / max(1, shape[-1]) ** 0.5 if len(shape) > 1 else 1 + drawn / 10
    return scaled.to(torch_dtype(dtype))


def _generator(name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)


# ---- comparing


@dataclass(frozen=True)
class Difference:
    """A result that is not what it was: how far off, of the greatest value that it had."""

    function: str
    result: int
    error: float

    def __str__(self) -> str:
        what = f"result {self.result} of @{self.function}"
        return f"{what} is off by {self.error:.2g} of its greatest value"


@dataclass(frozen=True, eq=False)
class Oracle:
    """Knows what a module computes, and compares others with it.

    Args:
        module: what is right.
        store: its weights.
        feed: inputs of its functions, and of those that passes add.
        tolerance: the error that is allowed, of each result's greatest value.
        dtype: floats that it runs in.
    """

    module: Module
    store: WeightStore
    feed: Feed
    tolerance: float = TOLERANCE
    dtype: DType | None = DType.F64

    @classmethod
    def of(cls, module: Module) -> "Oracle":
        """Return the oracle of a module without arrays: random weights and inputs."""
        return cls(module, random_weights(module), Feed(module, cached=_cached(module)))

    @cached_property
    def wanted(self) -> dict[str, list[Any]]:
        """The results of each function."""
        return self._run(self.module)

    @property
    def ids(self) -> torch.Tensor:
        """The tokens that `@forward` is run on."""
        region = self.module["forward"].region
        inputs = zip(region.params, self.feed(self.module["forward"]), strict=True)
        return next(value for param, value in inputs if param.name == "ids")

    @cached_property
    def _held(self) -> dict[Function, Any]:
        """Programs of the right module: while they live, the weights that others share do too."""
        return {}

    def difference(self, module: Module) -> Difference | None:
        """Return the first result that differs, None if none does.

        A `@step` that passes added must give the logits of `@forward`, having seen the same tokens.
        """
        pairs = (
            (name, at, distance(a, b))
            for name, found, wanted in self.compared(module)
            for at, (a, b) in enumerate(zip(found, wanted, strict=False))
        )
        return next((Difference(*p) for p in pairs if not p[2] <= self.tolerance), None)

    def compared(self, module: Module) -> Iterator[tuple[str, list[Any], list[Any]]]:
        """Yield each function of a module with what it gives, and what it must give."""
        for name, found in self._run(module).items():
            yield name, found, self._oracle(name)

    def _oracle(self, name: str) -> list[Any]:
        """Return what a function must give; a new `@step` the logits of `@forward`."""
        return self.wanted.get(name) or self.wanted.get("forward", [])[:1]

    def _run(self, module: Module) -> dict[str, list[Any]]:
        return {name: self._results(f, module) for name, f in module.functions.items()}

    def _results(self, function: Function, module: Module) -> list[torch.Tensor]:
        flat: list[torch.Tensor] = []
        for result in self.run(function, module, self.inputs(function)):
            flat += [result] if isinstance(result, torch.Tensor) else result.read()
        return flat

    def run(self, function: Function, module: Module, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Return what a function gives for some inputs, with the weights of a module."""
        program = lower(function, module, self.store, (), self.dtype)
        if module is self.module:
            self._held[function] = program
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.feed.seed)  # some modules draw numbers themselves
            return tuple(program(*inputs))

    def inputs(self, function: Function) -> list[Any]:
        """Return what a function is run on."""
        if self.dtype is None:
            return self.feed(function)
        dtype = torch_dtype(self.dtype)
        return [_converted(item, dtype) for item in self.feed(function)]


def _cached(module: Module) -> int:
    """Tokens to find in the caches: none if a pass may add a `@step` to compare with `@forward`."""
    return 3 if "step" in module.functions else 0


def _converted(item: Any, dtype: torch.dtype) -> Any:
    if isinstance(item, FunctionalKV):
        return replace(item, k=item.k.to(dtype), v=item.v.to(dtype))
    return item.to(dtype) if item.is_floating_point() else item


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the greatest error, of the greatest value wanted; inf where it is no number there."""
    if found.shape != wanted.shape:
        return float("inf")
    a, b = found.double(), wanted.double()
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    finite = b[b.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    error = float((a - b)[~same].abs().nan_to_num(float("inf")).max())
    return error / scale if scale else error


# ---- the instrument


@dataclass
class Numerics(Instrument):
    """Runs the module after each exact pass; `rows` holds (pass, difference) in order.

    A pass that promises less than exactness sets a new standard for those after it.
    """

    oracle: Oracle
    rows: list[tuple[str, Difference | None]] = field(default_factory=list)

    def enter(self, pipeline: Pipeline, module: Module) -> None:
        """Run the input."""
        self._expect(module)

    def after(self, step: Pass, module: Module, result: PassResult) -> None:
        """Compare what the pass made, if it made something."""
        if result.module is module:
            return
        if step.invariant is not Invariant.EXACT:
            self._expect(result.module)
            return
        difference = self.oracle.difference(result.module)
        self.rows.append((str(step), difference))
        if difference is not None or set(result.module.functions) != set(module.functions):
            self._expect(result.module)

    @property
    def first(self) -> tuple[str, Difference] | None:
        """The first pass that changed a result, and how."""
        return next(((name, d) for name, d in self.rows if d is not None), None)

    def _expect(self, module: Module) -> None:
        old = self.oracle
        feed = replace(old.feed, module=module)
        self.oracle = Oracle(module, old.store, feed, old.tolerance, old.dtype)
        _ = self.oracle.wanted
