"""The verifier: one case for each rule, and each message names the op, its line and its origin.

A case is a valid module with one thing broken, in text where the parser lets it pass and built by
hand where it does not.
"""

import dataclasses
import re

import pytest

from elidir import ir
from elidir.ir import DType, Tensor, Value, VerifyError, Weight, parse_module, symbol, verify

B, T = symbol("B"), symbol("T")
X = Tensor((B, T, 8), DType.F32)
KV = ir.KV(B, 2, T, 4, 4, DType.F32)
SYMBOLS = {"B": ir.Symbol(1, 64), "T": ir.Symbol(1, None)}
VECTOR = Tensor((8,), DType.F32)


def program(region: ir.Region, name: str = "forward", **fields: object) -> ir.Module:
    """A module of one function."""
    given = {"symbols": SYMBOLS, **fields}
    return ir.Module("m", {name: ir.Function(name, region)}, **given)


def chain(*ops: ir.Op, params: tuple[Value, ...]) -> ir.Region:
    """A region that yields the results of its last op."""
    return ir.Region(params, ops, ops[-1].results if ops else params)


def refused(module: ir.Module, at: str, says: str) -> None:
    """Assert that a module is refused, why, and that the line it names holds the op."""
    with pytest.raises(VerifyError) as caught:
        verify(module)
    assert says in caught.value.message
    kind, line, loc = re.fullmatch(r"([^,]+)(?:, line (\d+))?(, .*)?", caught.value.at).groups("")
    assert at == kind + loc
    if line:
        printed = str(module).splitlines()[int(line) - 1]
        assert f"= {kind} " in printed
        assert printed.endswith(loc.removeprefix(", "))


def test_a_value_from_elsewhere() -> None:
    x, stranger = Value(X, "x"), Value(X, "stranger")
    op = ir.Add(x, stranger, loc="model.add")
    says = "%stranger: f32[B, T, 8] is not defined before its use in @forward"
    refused(program(chain(op, params=(x,))), "add, model.add", says)


def test_a_value_used_before_its_definition() -> None:
    x = Value(X, "x")
    first = ir.Unary(x, "exp", loc="a")
    second = ir.Unary(first.result, "log", loc="b")
    region = ir.Region((x,), (second, first), first.results)
    refused(program(region), "unary, b", "is not defined before its use")


def test_an_op_that_stands_twice_in_a_region() -> None:
    x = Value(X, "x")
    op = ir.Unary(x, "exp", names=("e",))
    refused(program(chain(op, op, params=(x,))), "unary", "is defined twice in @forward")


def test_one_value_as_two_parameters() -> None:
    x = Value(X, "x")
    refused(program(chain(params=(x, x))), "module @m", "one value as two parameters")


def test_a_result_that_nothing_defines() -> None:
    x, y = Value(X, "x"), Value(X, "y")
    region = ir.Region((x,), (), (y,))
    refused(program(region), "module @m", "@forward yields %y: f32[B, T, 8], which it does not")


def test_an_op_with_rules_of_its_own() -> None:
    x = Value(X, "x")
    op = ir.Opaque((x,), (), "aten.odd", '[{"%": 1}]', (X,), loc="model.odd")
    module = program(chain(op, params=(x,)))
    refused(module, "opaque, model.odd", "aten.odd refers to %1 of 1")


@pytest.mark.parametrize("name", ["a b", "", "x{"])
def test_names_that_text_cannot_hold(name: str) -> None:
    module = program(chain(params=(Value(X, "x"),)))
    refused(dataclasses.replace(module, name=name), f"module @{name}", "cannot be printed")
    weights = {f"w {name}": ir.Entry(VECTOR)}
    refused(dataclasses.replace(module, weights=weights), "module @m", "cannot be printed")


def test_a_function_under_another_name() -> None:
    module = program(chain(params=(Value(X, "x"),)))
    functions = {"forward": dataclasses.replace(module["forward"], name="other")}
    broken = dataclasses.replace(module, functions=functions)
    refused(broken, "module @m", "function @other is in the table as @forward")


def test_a_layer_within_a_body() -> None:
    x, h, g = Value(X, "x"), Value(X, "h"), Value(X, "g")
    inner = ir.make_body("inner", chain(ir.Unary(g, "exp"), params=(g,)))
    outer = ir.make_body("outer", chain(ir.Layer(inner, (h,), "b"), params=(h,)))
    layer = ir.Layer(outer, (x,), "a", loc="model.h.0")
    says = "@outer calls a layer itself; inline it"
    refused(program(chain(layer, params=(x,))), "layer, model.h.0", says)


def test_an_undeclared_symbol_in_a_type() -> None:
    module = parse_module(TEXT.replace("f32[B, T, 8]", "f32[B, TT, 8]"))
    refused(module, "module @m", "@layer uses the undeclared symbol TT; did you mean 'T'?")


def test_an_undeclared_symbol_in_an_attribute() -> None:
    text = TEXT.replace(
        "slice %h {axis=1 start=0 stop=1}", "slice %h {axis=1 start=K stop=(K + 1)}"
    )
    refused(parse_module(text), "slice, model.cut", "undeclared symbol K")


def test_a_symbol_without_values() -> None:
    refused(parse_module(TEXT.replace("[1, 64]", "[2, 1]")), "module @m", "symbol B in [2, 1]")


def back(grown: str, *, twice: bool = False) -> ir.Module:
    """Tokens that come back, C of them, beside a value of some size before and one behind."""
    batch, held, c = symbol("B"), symbol("T"), symbol("C")
    scores = Value(Tensor((batch, held), DType.F32))
    parked = Value(ir.KV(batch, 1, held, 8, 0, DType.F32))
    own = Value(ir.KV(batch, 2, held, 4, 4, DType.F32, placed=True))
    fresh = Value(ir.TokenSet(batch, 1, held))
    before = ir.Full((symbol(grown),), 1.0, DType.F32)
    revive = [ir.TokensRevive(scores, parked, own, fresh, c) for _ in range(1 + twice)]
    behind = ir.Full((c,), 1.0, DType.F32)
    region = ir.Region((scores, parked, own, fresh), (before, *revive, behind), behind.results)
    symbols = SYMBOLS | {"C": ir.Symbol(0, 4, usual=1)}
    return program(region, "step", symbols=symbols, stage=ir.Stage.GRAPH)


def test_a_size_that_an_op_binds_is_used_behind_it_alone() -> None:
    verify(back("T"))
    refused(back("C"), "full", "has a size of C before an op binds it")
    refused(back("T", twice=True), "tokens.revive", "binds C, which @step knows before")


def test_a_symbol_that_is_usual_outside_of_its_bounds() -> None:
    x = Value(X, "x")
    symbols = SYMBOLS | {"C": ir.Symbol(0, 4, usual=5)}
    refused(program(chain(params=(x,)), symbols=symbols), "module @m", "is usual outside of its")


def test_a_weight_that_the_table_lacks() -> None:
    text = TEXT.replace("@layers.0.norm.g", "@layers.0.norm.h")
    says = "@layers.0.norm.g is not in the weight table; did you mean 'layers.0.norm.h'?"
    refused(parse_module(text), "layer, model.layers.0", says)


def test_a_weight_of_another_type() -> None:
    text = TEXT.replace("@layers.0.norm.g: f32[8]", "@layers.0.norm.g: f32[9]")
    says = "@layers.0.norm.g is f32[9], used as f32[8]"
    refused(parse_module(text), "layer, model.layers.0", says)


def test_a_weight_of_a_function_that_the_table_lacks() -> None:
    x = Value(X, "x")
    op = ir.RmsNorm(x, Weight("norm", VECTOR), loc="model.norm")
    module = program(chain(op, params=(x,)))
    refused(module, "norm.rms, model.norm", "@norm is not in the weight table")


def test_a_weight_that_its_body_does_not_list() -> None:
    x, h = Value(X, "x"), Value(X, "h")
    norm = ir.RmsNorm(h, Weight("g", VECTOR), loc="norm")
    body = ir.Body("layer", chain(norm, params=(h,)), ())
    module = program(chain(ir.Layer(body, (x,), "a"), params=(x,)))
    refused(module, "norm.rms, norm", "@g is not listed by body @layer")


@pytest.mark.parametrize(
    ("expr", "says"),
    [
        (ir.Derived("alias", ("lost",)), "@made is made of @lost, which is not in the table"),
        (ir.Derived("alais", ("w",)), "unknown derivation 'alais'; did you mean 'alias'?"),
        (ir.Derived("mul", ("made", 2.0)), "@made is made of itself"),
        (ir.Derived("add", ("w", "again")), "is made of itself"),
    ],
)
def test_a_derived_weight_that_cannot_be_made(expr: ir.Derived, says: str) -> None:
    again = ir.Entry(VECTOR, expr=ir.Derived("mul", ("made", 1.0)))
    weights = {"w": ir.Entry(VECTOR), "made": ir.Entry(VECTOR, expr=expr), "again": again}
    module = program(chain(params=(Value(X, "x"),)), weights=weights)
    refused(module, "module @m", says)


# ---- state


def append(cache: Value, loc: str = "") -> ir.KvAppend:
    """Append a key whose values do not matter."""
    return ir.KvAppend(cache, *[Value(Tensor((B, 2, 1, 4), DType.F32), "k")] * 2, loc=loc)


def stateful(*ops: ir.Op, cache: Value, results: tuple[Value, ...] = ()) -> ir.Module:
    """A `@step` that takes a cache and whatever else its ops read."""
    made = {r for o in ops for r in o.results}
    reads = dict.fromkeys(v for o in ops for v in o.operands() if v not in made)
    region = ir.Region(tuple(reads | {cache: None}), ops, results)
    return program(region, "step", stage=ir.Stage.GRAPH)


def test_state_consumed_twice() -> None:
    cache = Value(KV, "kv")
    ops = append(cache, "first"), append(cache, "second")
    at = "kv.append, second"
    refused(stateful(*ops, cache=cache), at, "is used after it was consumed")


def test_state_read_after_it_was_consumed() -> None:
    cache = Value(KV, "kv")
    ops = append(cache), ir.KvRead(cache, loc="late")
    refused(stateful(*ops, cache=cache), "kv.read, late", "use what it became")


def test_state_yielded_after_it_was_consumed() -> None:
    cache = Value(KV, "kv")
    module = stateful(append(cache), cache=cache, results=(cache,))
    refused(module, "module @m", "@step yields %kv")


def test_state_read_often_and_consumed_once() -> None:
    cache = Value(KV, "kv")
    last = append(cache)
    verify(stateful(ir.KvRead(cache), ir.KvRead(cache), last, cache=cache, results=last.results))


def cache_layer(kind: str, cache: Value, loc: str = "") -> ir.Layer:
    """A layer that reads its cache, appends to it, or yields it."""
    inner = Value(KV, "kv")
    k = Value(Tensor((B, 2, 1, 4), DType.F32), "k")
    ops = {"read": ir.KvRead(inner), "append": ir.KvAppend(inner, k, k)}
    op = ops.get(kind)
    region = ir.Region((inner, k), (op,) if op else (), op.results if op else (inner,))
    return ir.Layer(ir.make_body(kind, region), (cache, Value(k.type, "k")), "a", loc=loc)


@pytest.mark.parametrize("kind", ["append", "yield"])
def test_a_layer_consumes_what_its_body_appends_to_or_yields(kind: str) -> None:
    cache = Value(KV, "kv")
    ops = cache_layer(kind, cache), cache_layer("read", cache, "layers.1")
    module = stateful(*ops, cache=cache)
    refused(module, "layer, layers.1", "after it was consumed")


def test_layers_may_share_a_cache_that_they_only_read() -> None:
    cache = Value(KV, "kv")
    verify(stateful(cache_layer("read", cache), cache_layer("read", cache), cache=cache))


def test_a_layer_that_takes_one_state_twice() -> None:
    a, b, cache = Value(KV, "a"), Value(KV, "b"), Value(KV, "kv")
    body = ir.make_body("pair", ir.Region((a, b), (), (a, b)))
    module = stateful(ir.Layer(body, (cache, cache), "s", loc="l"), cache=cache)
    refused(module, "layer, l", "is consumed twice")


# ---- stages


def test_state_belongs_to_a_later_stage() -> None:
    cache = Value(KV, "kv")
    module = program(chain(ir.KvRead(cache, loc="model.read"), params=(cache,)))
    refused(module, "kv.read, model.read", "run incrementalize first")


@pytest.mark.parametrize(("stage", "name"), [("raised", "forward"), ("graph", "step")])
def test_each_stage_needs_its_function(stage: str, name: str) -> None:
    region = chain(params=(Value(X, "x"),))
    module = program(region, "other", stage=ir.Stage(stage))
    refused(module, "module @m", f"a module of stage {stage} needs a function @{name}")


TEXT = """module @m stage=raised {
  sym B in [1, 64]
  sym T in [1, inf]
  weight @layers.0.norm.g: f32[8]
  body @layer(%h: f32[B, T, 8]) weights(@norm.g: f32[8]) {
    %s = slice %h {axis=1 start=0 stop=1} : f32[B, 1, 8]  # model.cut
    %n = norm.rms %h, weight=@norm.g : f32[B, T, 8]
    yield %n
  }
  func @forward(%x: f32[B, T, 8]) {
    %y = layer @layer, [%x] {scope="layers.0"} : f32[B, T, 8]  # model.layers.0
    return %y
  }
}
"""


def test_the_text_that_the_cases_change_is_valid() -> None:
    verify(parse_module(TEXT))
