"""The rules of a module, stage by stage: a stage is what its verifier accepts.

`verify` raises one `VerifyError` for the first broken rule, naming the op, the line of the printed
text and the place in the model that the op came from. Result types are inferred when an op is made,
so what is checked here is what an op alone cannot see: dominance, tables, state and stages.
"""

import re
from collections.abc import Callable, Iterator

from elidir.ir.errors import IRTypeError, VerifyError, nearest
from elidir.ir.module import DERIVATIONS, Derived, Module, Stage, resolve
from elidir.ir.op import Op, Region, Value, Weight
from elidir.ir.ops.state import KvAppend, KvEvict, KvRead
from elidir.ir.ops.structure import Layer
from elidir.ir.printer import Printer
from elidir.ir.symbols import Dim, free_symbols
from elidir.ir.types import KV

Finding = tuple[Op | None, str]


def verify(module: Module) -> None:
    """Check every rule of the module's stage; raises `VerifyError` for the first that is broken."""
    for rule in (*COMMON, *STAGES[module.stage]):
        for op, message in rule(module):
            raise VerifyError(message, at=_place(module, op))


def _place(module: Module, op: Op | None) -> str:
    if op is None:
        return f"module @{module.name}"
    printer = Printer(module)
    printer.text()
    loc = f", {op.loc}" if op.loc else ""
    return f"{op.kind}, line {printer.line_of[op]}{loc}"


# ---- rules


def _names(module: Module) -> Iterator[Finding]:
    plain = [module.name, *module.functions, *(b.name for b in module.bodies)]
    for name in plain:
        if not re.fullmatch(r"[\w.\-]+", name):
            yield (
                None,
                f"'{name}' cannot be printed; name it with letters, digits, '_', '.' and '-'",
            )
    for name in [*module.weights, *(w.name for b in module.bodies for w in b.weights)]:
        if not re.fullmatch(r'[^\s,:;=(){}<>"\[\]@%]+', name):
            yield None, f"weight '{name}' cannot be printed; rename it without spaces and brackets"
    for name, function in module.functions.items():
        if name != function.name:
            yield None, f"function @{function.name} is in the table as @{name}; use one name"


def _nesting(module: Module) -> Iterator[Finding]:
    for layer in module.layers():
        if any(isinstance(op, Layer) for op in layer.body.region.ops):
            yield layer, f"@{layer.body.name} calls a layer itself; inline it, bodies are flat"


def _dominance(module: Module) -> Iterator[Finding]:
    for name, region in module.regions():
        yield from _undefined(name, region)


def _undefined(name: str, region: Region) -> Iterator[Finding]:
    known = set(region.params)
    if len(known) < len(region.params):
        yield None, f"{name} has one value as two parameters; make a new value for each"
    for op in region.ops:
        if missing := [v for v in op.operands() if v not in known]:
            yield op, f"{missing[0]!r} is not defined before its use in {name}"
        if twice := [r for r in op.results if r in known]:
            yield op, f"{twice[0]!r} is defined twice in {name}; clone the op"
        known.update(op.results)
    if missing := [r for r in region.results if r not in known]:
        yield None, f"{name} yields {missing[0]!r}, which it does not define"


def _own_rules(module: Module) -> Iterator[Finding]:
    for op in module.ops():
        try:
            op.verify()
        except IRTypeError as error:
            yield op, str(error)


def _bounds(module: Module) -> Iterator[Finding]:
    for name, bounds in module.symbols.items():
        if bounds.lo < 0 or (bounds.hi is not None and bounds.hi < bounds.lo):
            yield None, f"symbol {name} in {bounds} has no value; make the bounds 0 <= lo <= hi"
        usual = bounds.lo if bounds.usual is None else bounds.usual
        if usual < bounds.lo or (bounds.hi is not None and usual > bounds.hi):
            yield None, f"symbol {name} in {bounds} is usual outside of its bounds; move either"


def _symbols(module: Module) -> Iterator[Finding]:
    places = ((n, op, dim) for n, region in module.regions() for op, dim in _dims(region))
    for name, op, dim in places:
        for unknown in sorted(free_symbols(dim) - set(module.symbols)):
            hint = nearest(unknown, module.symbols)
            yield op, f"{name} uses the undeclared symbol {unknown}{hint}"


def _bindings(module: Module) -> Iterator[Finding]:
    """Yield symbols that an op binds a second time, or that are used before."""
    for function in module.functions.values():
        ops = list(_in_order(function.region))
        bound = {name for op in ops for name in op.bound()}
        known = {n for p in function.region.params for n in _symbols_of(p)}
        for op in ops if bound else ():
            twice = sorted(op.bound().keys() & known)
            known.update(op.bound())
            early = sorted({n for r in op.results for n in _symbols_of(r)} & bound - known)
            yield from ((op, f"binds {n}, which @{function.name} knows before") for n in twice)
            yield from ((op, f"has a size of {n} before an op binds it") for n in early)


def _symbols_of(value: Value) -> set[str]:
    return {name for dim in value.type.dims for name in free_symbols(dim)}


def _in_order(region: Region) -> Iterator[Op]:
    """Yield all ops, those of a layer's body before the layer."""
    for op in region.ops:
        if isinstance(op, Layer):
            yield from op.body.region.ops
        yield op


def _dims(region: Region) -> Iterator[tuple[Op | None, Dim]]:
    """Yield the dimensions of parameters, of results and in attributes, numbers left out."""
    yield from ((None, d) for p in region.params for d in _symbolic(p.type.dims))
    for op in region.ops:
        yield from ((op, d) for r in op.results for d in _symbolic(r.type.dims))
        yield from ((op, d) for item in op.attributes().values() for d in _symbolic(item))


def _symbolic(item: object) -> list[Dim]:
    items = item if isinstance(item, tuple) else (item,)
    return [i for i in items if hasattr(i, "free_symbols")]


def _weights(module: Module) -> Iterator[Finding]:
    for function in module.functions.values():
        reads = ((op, w) for op in function.region.ops for w in op.weights())
        yield from ((op, m) for op, w in reads if (m := _missing(module, "", w)))
    for layer in module.layers():
        found = (_missing(module, layer.scope, w) for w in layer.body.weights)
        yield from ((layer, message) for message in found if message)


def _missing(module: Module, scope: str, weight: Weight) -> str:
    name = resolve(scope, weight.name)
    if name not in module.weights:
        return f"@{name} is not in the weight table{nearest(name, module.weights)}"
    found = module.weights[name].type
    return "" if found == weight.type else f"@{name} is {found}, used as {weight.type}"


def _body_weights(module: Module) -> Iterator[Finding]:
    for body in module.bodies:
        reads = ((op, w) for op in body.region.ops for w in op.weights())
        missing = ((op, w) for op, w in reads if w not in body.weights)
        yield from ((op, f"@{w.name} is not listed by body @{body.name}") for op, w in missing)


def _derived(module: Module) -> Iterator[Finding]:
    whole: set[str] = set()
    for name, entry in module.weights.items():
        if missing := [s for s in _sources(entry.expr) if s not in module.weights]:
            yield None, f"@{name} is made of @{missing[0]}, which is not in the table"
        if entry.expr and entry.expr.fn not in DERIVATIONS:
            hint = nearest(entry.expr.fn, DERIVATIONS)
            yield None, f"@{name} is made by the unknown derivation '{entry.expr.fn}'{hint}"
        if _is_cyclic(module, name, whole):
            yield None, f"@{name} is made of itself; a derived weight is made of others"


def _is_cyclic(module: Module, name: str, whole: set[str], above: tuple[str, ...] = ()) -> bool:
    if name in whole or name not in module.weights:
        return False
    expr = module.weights[name].expr
    inner = (*above, name)
    if name in above or any(_is_cyclic(module, s, whole, inner) for s in _sources(expr)):
        return True
    whole.add(name)
    return False


def _sources(expr: Derived | None) -> tuple[str, ...]:
    return expr.sources if expr else ()


def _linear_state(module: Module) -> Iterator[Finding]:
    for name, region in module.regions():
        yield from _late_uses(name, region)


def _late_uses(name: str, region: Region) -> Iterator[Finding]:
    consumed: set[Value] = set()
    for op in region.ops:
        takes = _consumed_by(op)
        if len(set(takes)) < len(takes):
            yield op, f"{takes[0]!r} in {name} is consumed twice; state has one owner"
        if late := [v for v in op.operands() if v in consumed]:
            yield op, f"{late[0]!r} in {name} is used after it was consumed; use what it became"
        consumed.update(takes)
    if late := [r for r in region.results if r in consumed]:
        yield None, f"{name} yields {late[0]!r} after it was consumed; yield what it became"


def _consumed_by(op: Op) -> list[Value]:
    """Return the state that an op consumes; a layer consumes what its body appends to or yields."""
    if isinstance(op, KvAppend | KvEvict):
        return [op.kv]
    if not isinstance(op, Layer):
        return []
    region = op.body.region
    taken = {v for inner in region.ops for v in _consumed_by(inner)} | set(region.results)
    pairs = zip(region.params, op.inputs, strict=True)
    return [v for param, v in pairs if isinstance(v.type, KV) and param in taken]


def _no_state(module: Module) -> Iterator[Finding]:
    for op in module.ops():
        if isinstance(op, KvAppend | KvEvict | KvRead):
            yield op, "state ops belong to a later stage; run incrementalize first"


def _has(function: str) -> Callable[[Module], Iterator[Finding]]:
    def rule(module: Module) -> Iterator[Finding]:
        if function not in module.functions:
            yield None, f"a module of stage {module.stage.value} needs a function @{function}"

    return rule


COMMON = (
    _names,
    _nesting,
    _dominance,
    _own_rules,
    _bindings,
    _bounds,
    _symbols,
    _body_weights,
    _weights,
    _derived,
    _linear_state,
)
STAGES: dict[Stage, tuple[Callable[[Module], Iterator[Finding]], ...]] = {
    Stage.RAISED: (_has("forward"), _no_state),
    Stage.GRAPH: (_has("step"),),
}
