"""Printing, parsing and printing again: the same bytes, whatever the module holds.

Random modules come from `tests/strategies.py`; the corner cases are written out. The text of types
and of the folded printer is tested here too; what text is refused has a file of its own.
"""

import dataclasses
import math
from random import Random

import pytest
from hypothesis import given, settings

from elidir import ir
from elidir.ir import DType, Tensor, Value, Weight, format_module, parse_module, symbol
from tests.strategies import MAKERS, modules, random_module, types

B, T = symbol("B"), symbol("T")
X = Tensor((B, T, 8), DType.F32)
SYMBOLS = {"B": ir.Symbol(1, 64), "T": ir.Symbol(1, 8192)}


def forward(*ops: ir.Op, params: tuple[Value, ...], **fields: object) -> ir.Module:
    """A module of one function that yields the last result."""
    region = ir.Region(params, ops, ops[-1].results)
    return ir.Module("m", {"forward": ir.Function("forward", region)}, SYMBOLS, **fields)


def reread(module: ir.Module) -> ir.Module:
    """Parse what is printed, which must print to the same bytes."""
    text = format_module(module)
    again = parse_module(text)
    assert format_module(again) == text
    return again


def op_lines(module: ir.Module) -> list[str]:
    """The printed ops of the only function."""
    return [line.strip() for line in str(module).splitlines() if line.startswith("    %")]


@settings(max_examples=50)
@given(modules())
def test_random_modules_print_to_the_same_bytes(module: ir.Module) -> None:
    ir.verify(module)
    again = reread(module)
    ir.verify(again)
    assert again.symbols == module.symbols
    assert again.weights == module.weights
    assert [ir.structure(b.region)[:2] for b in again.bodies] == [
        ir.structure(b.region)[:2] for b in module.bodies
    ]


@settings(max_examples=40)
@given(types())
def test_types_print_to_the_same_bytes(type_: ir.Type) -> None:
    text = str(type_)
    assert str(ir.parse_type(text)) == text


def test_strategies_make_every_op_kind() -> None:
    made = {o.kind for i in range(80) for o in random_module(Random(i), ir.Stage.GRAPH).ops()}
    assert made == set(ir.OPS)
    state = {"kv.append", "kv.evict", "kv.read", "kv.positions", "mask.state", "tokens.revive"}
    assert set(MAKERS) | {"layer"} | state == set(ir.OPS)


def test_result_names_are_unique_and_stable() -> None:
    x = Value(X, "x")
    hints = ["x", "x_1", "x", "7", "", "a b:c", "x"]
    ops = [ir.Unary(x, "exp", names=(hint,)) for hint in hints]
    module = reread(forward(*ops, params=(x,)))
    names = [line.split(" ")[0] for line in op_lines(module)]
    assert names == ["%x_2", "%x_1", "%x_3", "%4", "%5", "%a_b_c", "%x_4"]


@pytest.mark.parametrize("text", ['a "b"', "// no comment", "a  # b", "\\", "a : b", "{(", "é\n\t"])
def test_strings_and_locations_hold_anything(text: str) -> None:
    x = Value(X, "x")
    op = ir.Opaque((x,), (), text, f"[{ir.format_attribute(STRING, text)}]", (X,), loc="h[0]  # x")
    again = reread(forward(op, params=(x,)))["forward"].region.ops[0]
    assert isinstance(again, ir.Opaque)
    assert (again.target, again.args, again.loc) == (op.target, op.args, "h[0] # x")


STRING = ir.Field("s", ir.Kind.ATTRIBUTE, str, optional=False, default=None)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, -0.0, 1e-300, 1e22, 7, True])
def test_numbers_keep_value_and_kind(number: float) -> None:
    x = Value(X, "x")
    full = ir.Full((), number, DType.F32)
    module = reread(forward(ir.Add(x, number), full, params=(x,)))
    add, made = module["forward"].region.ops
    assert isinstance(add, ir.Add)
    assert isinstance(made, ir.Full)
    assert repr(add.b) == repr(made.value) == repr(number)


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (lambda x: ir.Reshape(x, (B * T * 8,)), "reshape %x {shape=(8*B*T)}"),
        (lambda x: ir.Full((), 1, DType.I64), "full {shape=() value=1 dtype=i64}"),
        (lambda x: ir.Slice(x, 1, T - 1, T), "slice %x {axis=1 start=(T - 1) stop=T}"),
        (lambda x: ir.Reduce(x, "sum", (), keep=True), 'reduce %x {fn="sum" axes=() keep=true}'),
        (lambda x: ir.Concat((x,), -1), "concat [%x] {axis=-1}"),
        (lambda x: ir.Iota(T // 2), "iota {length=(T)//2}"),
        (lambda x: ir.RmsNorm(x), "norm.rms %x"),
        (lambda x: ir.Cast(x, DType.BF16), "cast %x {dtype=bf16}"),
    ],
)
def test_text_of_an_op(op: object, text: str) -> None:
    x = Value(X, "x")
    (line,) = op_lines(reread(forward(op(x), params=(x,))))
    assert line.partition(" = ")[2].partition(" : ")[0] == text


def test_enum_optional_operand_and_several_results() -> None:
    pos, x = Value(Tensor((B, T), DType.I64), "pos"), Value(Tensor((B, 2, T, 4), DType.F32), "x")
    table = ir.RopeTable(pos, Weight("freqs", Tensor((2,), DType.F32)), names=("cos", "sin"))
    rope = ir.Rope(x, *table.results, layout=ir.RopeLayout.INTERLEAVED)
    mask = ir.MaskCausal(pos, pos, names=("m",))
    attention = ir.Attention(rope.result, x, x, mask=mask.result, softcap=30.0)
    weights = {"freqs": ir.Entry(Tensor((2,), DType.F32), "int8", "9c1f==")}
    module = forward(table, rope, mask, attention, params=(pos, x), weights=weights)
    lines = op_lines(reread(module))
    assert lines[0].startswith("%cos, %sin = rope.table %pos, @freqs : f32[B, T, 2], f32[")
    assert "{layout=interleaved}" in lines[1]
    assert "attention %4, %x, %x, mask=%m {softcap=30.0}" in lines[3].replace(lines[1][:2], "%4")


def test_an_op_without_results_and_a_function_that_yields_nothing() -> None:
    x = Value(X, "x")
    check = ir.Opaque((x,), (), "aten._assert", "[]", ())
    module = ir.Module("m", {"f": ir.Function("f", ir.Region((x,), (check,), ()))}, SYMBOLS)
    region = reread(module)["f"].region
    assert region.results == ()
    assert [o.results for o in region.ops] == [()]


def test_a_body_and_a_weight_may_share_a_name() -> None:
    x, h = Value(X, "x"), Value(X, "h")
    weight = Weight("block", Tensor((8,), DType.F32))
    norm = ir.RmsNorm(h, weight)
    body = ir.make_body("block", ir.Region((h,), (norm,), norm.results))
    layer = ir.Layer(body, (x,), "layers.0")
    last = ir.RmsNorm(layer.results[0], weight)
    entries = {n: ir.Entry(weight.type) for n in ("block", "layers.0.block")}
    module = forward(layer, last, params=(x,), weights=entries)
    ir.verify(reread(module))


def test_two_bodies_of_one_name_stay_two() -> None:
    h, g, x = Value(X, "h"), Value(X, "g"), Value(X, "x")
    exp, log = ir.Unary(h, "exp"), ir.Unary(g, "log")
    one = ir.make_body("layer", ir.Region((h,), (exp,), exp.results))
    two = ir.make_body("layer", ir.Region((g,), (log,), log.results))
    first = ir.Layer(one, (x,), "a")
    second = ir.Layer(two, first.results, "b")
    module = reread(forward(first, second, params=(x,)))
    assert [b.name for b in module.bodies] == ["layer", "layer_1"]


def test_comments_and_blank_lines_are_skipped() -> None:
    x = Value(X, "x")
    text = format_module(forward(ir.Unary(x, "exp"), params=(x,)))
    spaced = "// first\n\n" + text.replace("\n", "\n\n  // T//2 {\n") + "\n// last\n"
    assert format_module(parse_module(spaced)) == text


def test_folded_text_has_one_line_for_a_run_of_layers_and_their_weights() -> None:
    folded = ir.fold_module(layered(3))
    assert '%x_3 = layer x3 @layer, [%x] {scope="layers.0"} : f32[B, T, 8]' in folded
    assert "  weight @layers.0..2.experts.1.w: f32[8]\n" in folded
    assert folded.count("weight @") == 2


def test_folded_text_does_not_join_what_is_not_a_run() -> None:
    module = layered(4)
    weights = {n: e for n, e in module.weights.items() if not n.startswith("layers.1.")}
    folded = ir.fold_module(dataclasses.replace(module, weights=weights))
    assert "@layers.{0,2,3}.experts.0.w" in folded


def layered(count: int) -> ir.Module:
    """Layers of one body, each with the weights of two experts."""
    x, h = Value(X, "x"), Value(X, "h")
    weights = [Weight(f"experts.{i}.w", Tensor((8,), DType.F32)) for i in range(2)]
    one = ir.RmsNorm(h, weights[0])
    two = ir.RmsNorm(one.result, weights[1])
    body = ir.make_body("layer", ir.Region((h,), (one, two), two.results))
    ops: list[ir.Op] = []
    for i in range(count):
        inputs = ops[-1].results if ops else (x,)
        ops.append(ir.Layer(body, inputs, f"layers.{i}", names=("x",)))
    table = {
        f"layers.{i}.{w.name}": ir.Entry(w.type, sha=f"{i}c") for i in range(count) for w in weights
    }
    return forward(*ops, params=(x,), weights=table)


def test_a_number_that_only_equals_the_default_is_printed() -> None:
    x = Value(X, "x")
    module = forward(*(ir.Pad(x, 1, 0, 0, value) for value in (0.0, 0, -0.0)), params=(x,))
    assert ["value=" in line for line in op_lines(reread(module))] == [False, True, True]


def test_an_integer_in_a_float_attribute_is_a_float() -> None:
    x = Value(X, "x")
    one, other = (forward(ir.RmsNorm(x, eps=eps), params=(x,)) for eps in (1, 1.0))
    assert str(one) == str(other)
    assert "{eps=1.0}" in str(one)
    assert ir.structure(one["forward"].region) == ir.structure(other["forward"].region)
