"""Tools over regions and modules: flatten, structure, count_uses, make_body, prune_weights.

They read the IR and change nothing; the rewriter, which does, is tested beside this file.
"""

import dataclasses

import pytest
from hypothesis import given, settings

from elidir import ir
from elidir.ir import DType, Tensor, Value, Weight, flatten, parse_module, structure, symbol
from tests.strategies import modules

B, T = symbol("B"), symbol("T")
X = Tensor((B, T, 8), DType.F32)
SQUARE = Tensor((8, 8), DType.F32)
A, C = Weight("a", SQUARE), Weight("c", SQUARE)
VECTOR = Weight("v", Tensor((8,), DType.F32))


def region(*kinds: object) -> ir.Region:
    """A region of two inputs; each kind makes an op from all the values before it."""
    values = [Value(X, "x"), Value(X, "y")]
    ops: list[ir.Op] = []
    for make in kinds:
        ops.append(make(values))
        values += ops[-1].results
    return ir.Region(tuple(values[:2]), tuple(ops), (values[-1],))


def layer_like(first: Weight, second: Weight, loc: str, eps: float = 1e-6) -> ir.Region:
    """A norm between two linear maps."""
    return region(
        lambda v: ir.Linear(v[0], first, loc=f"{loc}.q", names=(loc,)),
        lambda v: ir.RmsNorm(v[2], eps=eps, loc=f"{loc}.norm"),
        lambda v: ir.Linear(v[3], second, loc=f"{loc}.o"),
    )


def test_structure_is_equal_for_layers_that_differ_in_names_locations_and_weights() -> None:
    one = structure(layer_like(A, C, "layers.0"))
    other = structure(layer_like(C, A, "layers.1"))
    assert one == other
    assert hash(one) == hash(other)


DIFFERENT = [
    ("attributes", layer_like(A, C, "a"), layer_like(A, C, "a", eps=1e-5)),
    ("a weight used twice", layer_like(A, C, "a"), layer_like(A, A, "a")),
    (
        "the order of operands",
        region(lambda v: ir.Sub(v[0], v[1])),
        region(lambda v: ir.Sub(v[1], v[0])),
    ),
    (
        "the side of a number",
        region(lambda v: ir.Sub(v[0], 1)),
        region(lambda v: ir.Sub(1, v[0])),
    ),
    (
        "the kind of a number",
        region(lambda v: ir.Add(v[0], 1)),
        region(lambda v: ir.Add(v[0], 1.0)),
    ),
    (
        "the sign of zero",
        region(lambda v: ir.Add(v[0], 0.0)),
        region(lambda v: ir.Add(v[0], -0.0)),
    ),
    (
        "which optional weight",
        region(lambda v: ir.LayerNorm(v[0], weight=VECTOR)),
        region(lambda v: ir.LayerNorm(v[0], bias=VECTOR)),
    ),
    (
        "the order in which weights are used again",
        region(
            lambda v: ir.Linear(v[0], A),
            lambda v: ir.Linear(v[2], C),
            lambda v: ir.Linear(v[3], A),
        ),
        region(
            lambda v: ir.Linear(v[0], A),
            lambda v: ir.Linear(v[2], C),
            lambda v: ir.Linear(v[3], C),
        ),
    ),
    (
        "op kinds",
        region(lambda v: ir.Maximum(v[0], v[1])),
        region(lambda v: ir.Minimum(v[0], v[1])),
    ),
    (
        "dtype",
        region(lambda v: ir.Cast(v[0], DType.F16)),
        region(lambda v: ir.Cast(v[0], DType.BF16)),
    ),
]


@pytest.mark.parametrize(
    ("one", "other"), [d[1:] for d in DIFFERENT], ids=[d[0] for d in DIFFERENT]
)
def test_structure_differs_by(one: ir.Region, other: ir.Region) -> None:
    assert structure(one) != structure(other)


def test_structure_differs_by_the_types_of_parameters_and_by_results() -> None:
    x, y = Value(X, "x"), Value(Tensor((B, T, 4), DType.F32), "y")
    assert structure(ir.Region((x,), (), (x,))) != structure(ir.Region((y,), (), (y,)))
    z = Value(X, "z")
    assert structure(ir.Region((x, z), (), (x, z))) != structure(ir.Region((x, z), (), (z, x)))


def test_structure_takes_the_order_of_parameters_that_it_is_given() -> None:
    one = region(lambda v: ir.Sub(v[0], v[1]))
    other = region(lambda v: ir.Sub(v[1], v[0]))
    assert structure(one) == structure(other, params=other.params[::-1])


@settings(max_examples=20)
@given(modules(max_ops=5))
def test_structure_survives_printing(module: ir.Module) -> None:
    again = parse_module(str(module))
    for body, copy in zip(module.bodies, again.bodies, strict=True):
        assert structure(body.region) == structure(copy.region)


# ---- flatten


@settings(max_examples=20)
@given(modules(max_ops=5))
def test_flatten_inlines_every_layer_with_the_full_names_of_its_weights(module: ir.Module) -> None:
    for function in module.functions.values():
        flat = flatten(function)
        layers = [o for o in function.region.ops if isinstance(o, ir.Layer)]
        inlined = sum(len(layer.body.region.ops) for layer in layers)
        assert len(flat.ops) == len(function.region.ops) - len(layers) + inlined
        functions = module.functions | {function.name: ir.Function(function.name, flat)}
        ir.verify(dataclasses.replace(module, functions=functions))
        assert [r.type for r in flat.results] == [r.type for r in function.region.results]


def test_flatten_resolves_the_scopes_of_nested_layers() -> None:
    g, h, x = Value(X, "g"), Value(X, "h"), Value(X, "x")
    norm = ir.RmsNorm(g, VECTOR)
    inner = ir.make_body("inner", ir.Region((g,), (norm,), norm.results))
    call = ir.Layer(inner, (h,), "mlp")
    outer = ir.make_body("outer", ir.Region((h,), (call,), call.results))
    layer = ir.Layer(outer, (x,), "layers.3")
    flat = flatten(ir.Function("f", ir.Region((x,), (layer,), layer.results)))
    assert [w.name for op in flat.ops for w in op.weights()] == ["layers.3.mlp.v"]


def test_flatten_of_a_layer_that_yields_its_input() -> None:
    h, x = Value(X, "h"), Value(X, "x")
    body = ir.make_body("identity", ir.Region((h,), (), (h,)))
    layer = ir.Layer(body, (x,), "a")
    last = ir.Unary(layer.results[0], "exp")
    flat = flatten(ir.Function("f", ir.Region((x,), (layer, last), last.results)))
    assert [op.kind for op in flat.ops] == ["unary"]
    assert flat.ops[0].x is x


# ---- the rest


def test_count_uses_counts_each_read_and_each_result() -> None:
    one = region(lambda v: ir.Mul(v[0], v[0]), lambda v: ir.Add(v[0], v[2]))
    uses = ir.count_uses(one)
    x, y = one.params
    assert (uses[x], uses[y], uses[one.results[0]]) == (3, 0, 1)


def test_make_body_lists_each_weight_once() -> None:
    assert ir.make_body("b", layer_like(A, A, "a")).weights == (A,)


def test_prune_keeps_what_is_read_and_what_that_is_made_of() -> None:
    x = Value(X, "x")
    op = ir.Linear(x, Weight("made", SQUARE))
    functions = {"forward": ir.Function("forward", ir.Region((x,), (op,), op.results))}
    entry = ir.Entry(SQUARE)
    weights = {
        "made": ir.Entry(SQUARE, expr=ir.Derived("add", ("scaled", "b"))),
        "scaled": ir.Entry(SQUARE, expr=ir.Derived("mul", ("a", 2.0))),
        "lost": ir.Entry(SQUARE, expr=ir.Derived("alias", ("c",))),
        **dict.fromkeys("abc", entry),
    }
    module = ir.Module("m", functions, weights=weights)
    pruned = ir.prune_weights(module)
    assert set(pruned.weights) == {"made", "scaled", "a", "b"}
    assert ir.prune_weights(pruned) is pruned


def test_prune_leaves_a_missing_weight_to_the_verifier() -> None:
    x = Value(X, "x")
    op = ir.Linear(x, A)
    functions = {"forward": ir.Function("forward", ir.Region((x,), (op,), op.results))}
    module = ir.Module("m", functions, {"B": ir.Symbol(1, None), "T": ir.Symbol(1, None)})
    with pytest.raises(ir.VerifyError, match="@a is not in the weight table"):
        ir.verify(ir.prune_weights(module))


def test_a_function_that_is_not_there_is_named_with_the_nearest() -> None:
    module = ir.Module("m", {"forward": ir.Function("forward", ir.Region((), (), ()))})
    with pytest.raises(ir.ElidirError, match="no function @froward; did you mean 'forward'"):
        module["froward"]
