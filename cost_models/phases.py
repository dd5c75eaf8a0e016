"""What a module has to do in each phase: prefill, one decoded token, or a whole forward.

A function is walked once into lines of symbolic work, one for each op kind of each group of layers
that share a body and the formats of their weights; a phase is a function and sizes for its symbols.
Nothing here knows a target.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import sympy

from elidir.cost_models.errors import WorkError
from elidir.cost_models.formats import storage_format
from elidir.cost_models.op_work import VIEWS
from elidir.cost_models.work import Precision, Sizes, Store, Work, is_modelled, work_of
from elidir.ir import (
    KV,
    Const,
    Dim,
    Function,
    KvRead,
    Layer,
    Module,
    Op,
    Region,
    Symbol,
    Value,
    format_dim,
    free_symbols,
    resolve,
    symbol,
)

LARGEST = 1 << 62


@dataclass(frozen=True)
class Phase:
    """A function of the module at the sizes in `bindings`, of which nobody gave the `guessed`."""

    name: str
    function: Function
    bindings: Mapping[str, int]
    guessed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Line:
    """The ops of one kind in `count` layers of one body (or outside of the layers)."""

    path: str
    kind: str
    count: int
    works: tuple[Work, ...]
    modelled: bool = True
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What is asked of the model: rows, tokens of the prompt and new ones, and the context.

    `context` is how many tokens are cached when a decoded token is costed; the prompt by default.
    `bindings` gives values to symbols beyond B, T, N, S and R; else they are what is usual of them,
    or as long as the prompt.
    """

    batch: int = 1
    prompt: int = 512
    new: int = 128
    context: int | None = None
    bindings: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that there is something to do."""
        for name in ("batch", "prompt"):
            if getattr(self, name) < 1:
                raise WorkError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.new < 0 or (self.context or 0) < 0:
            raise WorkError("new and context must not be negative; leave them out if in doubt")

    @property
    def cached(self) -> int:
        """The tokens in the cache when a decoded token is costed."""
        return self.prompt if self.context is None else self.context


def has_cache(module: Module) -> bool:
    """Whether the module decodes with a cache; else each new token runs the whole forward."""
    return "step" in module.functions


def prefill(module: Module, request: Request) -> Phase:
    """Return the phase that reads the prompt; without `@step`, a forward over it."""
    if not has_cache(module):
        return _forward("forward", module, request, request.prompt)
    function = _reader(module, request.prompt)
    return _step("prefill", module, request, function, new=request.prompt, cached=0)


def decode(module: Module, request: Request, cached: int) -> Phase:
    """Return the phase that makes one token after `cached` others."""
    if not has_cache(module):
        return _forward("decode without a cache", module, request, cached + 1)
    return _step("decode", module, request, module["step"], new=1, cached=cached)


def _reader(module: Module, prompt: int) -> Function:
    """Return what reads a prompt: `@prefill` if it takes one of this length, else `@step`."""
    function = module.functions.get("prefill")
    if function is None or prompt < module.symbols[_tokens(function)].lo:
        return module["step"]
    return function


def _tokens(function: Function) -> str:
    return format_dim(function.region.params[0].type.dims[1])


def _step(
    name: str, module: Module, request: Request, function: Function, *, new: int, cached: int
) -> Phase:
    held = _held(module, request, cached)
    coming = _coming(module, held, cached)
    sizes = {"S": cached, "R": 1, **held, **coming, **_axes(function, request.batch, new)}
    found = _phase(name, module, function, request, sizes)
    assumed = {n for n, size in coming.items() if size and n not in request.bindings}
    return replace(found, guessed=found.guessed | assumed)


def _coming(module: Module, held: Mapping[str, int], cached: int) -> dict[str, int]:
    """Return how many tokens come back into placed states: as is usual, but no more than lack."""
    usual = _usual_counts(module)
    pairs = [(name, n) for name, to in _placed(module["step"], {}) for n in free_symbols(to)]
    return {n: min(usual[n], cached - held[name]) for name, n in pairs if n in usual}


def _usual_counts(module: Module) -> dict[str, int]:
    """Return what symbols that ops bind usually are."""
    return {n: s.usual for n, s in module.symbols.items() if s.usual is not None}


def _held(module: Module, request: Request, cached: int) -> dict[str, int]:
    """Return how much each placed state holds after `cached` tokens.

    Of the prompt it is what reading it leaves, and then what each decoded token does to that.
    """
    prompt = min(cached, request.cached)
    reader, step = _reader(module, prompt), module["step"]
    usual = _usual_counts(module)
    known = {n: request.bindings.get(n, size) for n, size in usual.items()}
    first, later = _placed(reader, dict.fromkeys(usual, 0)), _placed(step, known)
    held = _after(first, _tokens(reader))({name: 0 for name, _ in first}, 0, prompt)
    grown = _after(later, _tokens(step))
    for past in range(prompt, cached):
        held = grown(held, past, 1)
    return held


@cache
def _after(
    lengths: tuple[tuple[str, Dim], ...], new: str
) -> Callable[[dict[str, int], int, int], dict[str, int]]:
    """Return what gives the tokens that placed states hold after a step, by those before it.

    It takes these, the tokens cached before the step, and its new ones; none holds more than those.
    """
    symbols = [symbol(n) for n in (*(name for name, _ in lengths), "S", new)]
    known = {"Min": min, "Max": max, "ceiling": math.ceil}
    sizes = [sympy.sympify(length) for _, length in lengths]
    run = sympy.lambdify(symbols, sizes, modules=[known], dummify=True)

    def after(held: dict[str, int], past: int, count: int) -> dict[str, int]:
        found = run(*(held[name] for name, _ in lengths), past, count)
        pairs = zip(lengths, found, strict=True)
        return {name: min(int(size), past + count) for (name, _), size in pairs}

    return after


def _placed(function: Function, known: Mapping[str, int]) -> tuple[tuple[str, Dim], ...]:
    """Return the lengths of the placed states, before by its name, and after at known sizes."""
    given = {symbol(n): sympy.Integer(size) for n, size in known.items()}
    states = [
        [v.type for v in values if isinstance(v.type, KV)]
        for values in (function.region.params, function.region.results)
    ]
    pairs = [(a, b) for a, b in zip(*states, strict=True) if a.placed]
    grown = {format_dim(a.length): sympy.sympify(b.length).xreplace(given) for a, b in pairs}
    return tuple(grown.items())


def _forward(name: str, module: Module, request: Request, length: int) -> Phase:
    function = module["forward"]
    return _phase(name, module, function, request, _axes(function, request.batch, length))


def _axes(function: Function, *sizes: int) -> dict[str, int]:
    """Return the sizes of batch and tokens by the names that the first parameter gives them."""
    dims = function.region.params[0].type.dims
    pairs = zip(dims, sizes, strict=False)
    return {format_dim(d): n for d, n in pairs if not isinstance(d, int) and d.is_Symbol}


def _phase(
    name: str, module: Module, function: Function, request: Request, sizes: Mapping[str, int]
) -> Phase:
    others = {name: _usual(bounds, request.prompt) for name, bounds in module.symbols.items()}
    bindings = {**others, **sizes, **request.bindings}
    for size, value in bindings.items():
        bounds = module.symbols.get(size)
        highest = LARGEST if bounds is None or bounds.hi is None else bounds.hi
        if bounds and not bounds.lo <= value <= highest:
            raise WorkError(
                f"{size} = {value} is outside of what the model takes, [{bounds.lo}, {highest}]; "
                "give a batch, prompt and context within it"
            )
    given = {*sizes, *request.bindings}
    guessed = {n for n, s in module.symbols.items() if n not in given and s.lo != s.hi}
    return Phase(name, function, bindings, frozenset(guessed))


def _usual(bounds: Symbol, length: int) -> int:
    """Return the value of a symbol that nobody gave: the usual, or the prompt's length."""
    if bounds.usual is not None:
        return bounds.usual
    return max(bounds.lo, length if bounds.hi is None else min(length, bounds.hi))


# ---- the walk


def lines(module: Module, function: Function, precision: Precision) -> list[Line]:
    """Return the work of a function, symbolic, group by group in order of first appearance."""
    top: list[Line] = []
    groups: dict[tuple[object, ...], list[Layer]] = {}
    outside = [op for op in function.region.ops if not isinstance(op, Layer)]
    for op in function.region.ops:
        if isinstance(op, Layer):
            groups.setdefault(_group(op, module), []).append(op)
    for layers in groups.values():
        first = layers[0]
        sizes = _sizes(module, first.scope, first.body.region, precision)
        scopes = tuple(layer.scope for layer in layers)
        top += _by_kind(first.body.region.ops, sizes, path_of(scopes), scopes)
    sizes = _sizes(module, "", function.region, precision)
    return [*top, *_by_kind(outside, sizes, f"@{function.name}", ())]


def _group(layer: Layer, module: Module) -> tuple[object, ...]:
    names = (resolve(layer.scope, w.name) for w in layer.body.weights)
    return (id(layer.body), *(storage_format(n, module.weights) for n in names))


def _by_kind(ops: Iterable[Op], sizes: Sizes, path: str, scopes: tuple[str, ...]) -> Iterator[Line]:
    kinds: dict[str, list[Op]] = {}
    for op in ops:
        if not isinstance(op, VIEWS):
            kinds.setdefault(op.kind, []).append(op)
    for kind, members in kinds.items():
        works = tuple(work_of(op, sizes) for op in members)
        yield Line(path, kind, len(scopes) or 1, works, is_modelled(members[0]), scopes)


def _sizes(module: Module, scope: str, region: Region, precision: Precision) -> Sizes:
    return Sizes(module.weights, scope, precision, _origins(region))


def _origins(region: Region) -> dict[Value, Store]:
    """Say which values are cached keys and values, or weights, seen through views of them."""
    origins: dict[Value, Store] = {}
    for op in region.ops:
        if isinstance(op, VIEWS):
            origins.update((r, store) for r in op.results if (store := _origin(op, origins)))
    return origins


def _origin(op: Op, origins: Mapping[Value, Store]) -> Store | None:
    if isinstance(op, KvRead):
        return Store.KV
    if isinstance(op, Const):
        return Store.WEIGHTS
    return next((origins[v] for v in op.operands() if v in origins), None)


def path_of(scopes: Sequence[str]) -> str:
    """Return one name for several layers: `layers.0..29` where their numbers run on."""
    if len(scopes) == 1:
        return scopes[0]
    parts = [re.fullmatch(r"(.*?)(\d+)(\D*)", s) for s in scopes]
    if not all(parts):
        return f"{scopes[0]} and {len(scopes) - 1} more"
    found = [p for p in parts if p]
    numbers = [int(p[2]) for p in found]
    runs_on = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    if runs_on and len({(p[1], p[3]) for p in found}) == 1:
        return f"{found[0][1]}{numbers[0]}..{numbers[-1]}{found[0][3]}"
    return f"{scopes[0]} and {len(scopes) - 1} more"


def evaluate_lines(items: Iterable[Line], phase: Phase) -> list[Line]:
    """Return the lines in numbers, at the sizes of a phase."""
    at = phase.bindings
    return [replace(i, works=tuple(w.evaluate(at) for w in i.works)) for i in items]


def describe_sizes(phase: Phase) -> str:
    """Return the sizes of a phase for a reader: `B=1, N=1, S=512`."""
    region = phase.function.region
    values = (*region.params, *region.results)
    used = {name for v in values for d in v.type.dims for name in free_symbols(d)}
    return ", ".join(f"{n}={v}" for n, v in phase.bindings.items() if n in used)
