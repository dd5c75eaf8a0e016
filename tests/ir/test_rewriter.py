"""The rewriter: what a rule sees and may do, and what is left of it when it does not fire.

Modules here are written as text, changed by one small rule, and compared as text. Passes have tests
of their own; the tools over regions (flatten, structure) are tested beside this file.
"""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings

from elidir import ir
from elidir.ir import Builder, ElidirError, Op, Value, format_module, parse_module, rewrite, verify
from tests.strategies import modules

TEXT = """module @m stage=raised {
  sym B in [1, 64]
  sym T in [1, inf]
  weight @layers.0.q: f32[8, 8]
  weight @layers.0.k: f32[4, 8]
  weight @layers.1.q: f32[8, 8]
  weight @layers.1.k: f32[4, 8]
  weight @norm: f32[8]
  body @layer(%h: f32[B, T, 8]) weights(@q: f32[8, 8], @k: f32[4, 8]) {
    %e = unary %h {fn="exp"} : f32[B, T, 8]  # exp
    %q = linear %e, @q : f32[B, T, 8]  # q
    %k = linear %e, @k : f32[B, T, 4]  # k
    %s = reduce %k {fn="sum" axes=(2) keep=true} : f32[B, T, 1]
    %y = add %q, %s : f32[B, T, 8]  # sum
    yield %y
  }
  func @forward(%x: f32[B, T, 8]) {
    %1 = layer @layer, [%x] {scope="layers.0"} : f32[B, T, 8]  # layers.0
    %2 = layer @layer, [%1] {scope="layers.1"} : f32[B, T, 8]  # layers.1
    %3 = norm.rms %2, weight=@norm : f32[B, T, 8]  # norm
    %4 = mul %3, 1.0 : f32[B, T, 8]  # scale
    return %4
  }
}
"""
Values = Sequence[Value] | None


@pytest.fixture
def module() -> ir.Module:
    """Two layers of one body."""
    return parse_module(TEXT)


def lines(module: ir.Module, kind: str) -> list[str]:
    """The printed ops of a kind."""
    return [line.strip() for line in str(module).splitlines() if f"= {kind} " in line]


def never(op: Op, b: Builder) -> Values:
    """A rule that does not fire."""
    return None


def exp_to_relu(op: Op, b: Builder) -> Values:
    """Replace exp by relu."""
    if isinstance(op, ir.Unary) and op.fn == "exp":
        return [b.emit(ir.Unary(op.x, "relu"))]
    return None


def drop_scale(op: Op, b: Builder) -> Values:
    """Drop a multiplication by one."""
    return [op.a] if isinstance(op, ir.Mul) and op.b == 1.0 else None


def cut_tokens(op: Op, b: Builder) -> Values:
    """Keep the first two tokens after the final norm."""
    if not isinstance(op, ir.RmsNorm):
        return None
    return [b.emit(ir.Slice(b.append(op)[0], 1, 0, 2))]


def join(op: Op, b: Builder) -> Values:
    """Join the linear maps of one input into one of stacked weights."""
    parts = b.siblings(op, ir.Linear)
    if not isinstance(op, ir.Linear) or len(parts) < 2:
        return None
    rows = tuple(p.weight.type.dims[0] for p in parts)
    stacked = ir.Tensor((sum(rows), 8), ir.DType.F32)
    weight = b.derive("qk", stacked, "concat", *(p.weight for p in parts))
    outs = b.append(ir.LinearSplit(op.x, weight, rows))
    for part, out in zip(parts, outs, strict=True):
        b.replace(part.results, [out])
    return [outs[0]]


# ---- firing


@settings(max_examples=20)
@given(modules())
def test_a_rule_that_never_fires_gives_the_same_object(module: ir.Module) -> None:
    before = format_module(module)
    assert rewrite(module, never) is module
    assert format_module(module) == before


def test_a_shared_body_is_rebuilt_once(module: ir.Module) -> None:
    calls: list[Op] = []

    def rule(op: Op, b: Builder) -> Values:
        calls.append(op)
        return exp_to_relu(op, b)

    new = rewrite(module, rule)
    assert len(new.bodies) == 1
    assert sum(isinstance(op, ir.Unary) for op in calls) == 1
    assert str(new) == TEXT.replace("exp", "relu").replace("# relu", "# exp")
    verify(new)


def test_the_old_module_stays_as_it_was(module: ir.Module) -> None:
    for rule in (exp_to_relu, drop_scale, cut_tokens, join):
        assert rewrite(module, rule) is not module
        assert str(module) == TEXT


def test_parts_that_a_rule_does_not_touch_are_shared(module: ir.Module) -> None:
    new = rewrite(module, drop_scale)
    assert new.bodies == module.bodies
    assert new["forward"].region.ops == module["forward"].region.ops[:3]
    assert new.weights == module.weights


def test_an_old_unnamed_value_is_not_named_by_what_it_replaces() -> None:
    text = TEXT.replace("%4 =", "%scaled =").replace("return %4", "return %scaled")
    module = parse_module(text)
    norm = module["forward"].region.ops[2]
    norm.result.name = ""
    new = rewrite(module, drop_scale)
    assert str(module) == text
    assert "return %3" in str(new)


def test_a_new_value_takes_the_name_of_what_it_replaces(module: ir.Module) -> None:
    assert lines(rewrite(module, exp_to_relu), "unary")[0].startswith("%e = ")


def test_types_follow_by_inference(module: ir.Module) -> None:
    new = rewrite(module, cut_tokens)
    assert lines(new, "mul") == ["%5 = mul %4, 1.0 : f32[B, 2, 8]  # scale"]
    assert new["forward"].region.results[0].tensor.dims[1] == 2
    verify(new)


def test_types_follow_through_a_rebuilt_body() -> None:
    second = next(line for line in TEXT.splitlines(keepends=True) if "%2 = layer" in line)
    module = parse_module(TEXT.replace(second, "").replace("norm.rms %2", "norm.rms %1"))

    def to_bf16(op: Op, b: Builder) -> Values:
        return [b.emit(ir.Cast(b.append(op)[0], ir.DType.BF16))] if op.loc == "sum" else None

    new = rewrite(module, to_bf16)
    assert lines(new, "layer")[0].endswith(": bf16[B, T, 8]  # layers.0")
    assert lines(new, "norm.rms")[0].endswith(": bf16[B, T, 8]  # norm")
    verify(new)


def test_operands_that_no_longer_fit_are_an_error_with_the_place(module: ir.Module) -> None:
    def halve(op: Op, b: Builder) -> Values:
        if isinstance(op, ir.Layer):
            return [b.emit(ir.Slice(b.append(op)[0], 1, 0, 1))]
        return None

    with pytest.raises(ElidirError, match=r"@layer expects f32\[B, T, 8\] .*\(at layers.1\)"):
        rewrite(module, halve)


def test_an_op_without_a_location_takes_that_of_the_matched_op(module: ir.Module) -> None:
    assert lines(rewrite(module, cut_tokens), "slice")[0].endswith("# norm")


def test_a_rule_sees_rebuilt_operands_their_makers_and_their_uses(module: ir.Module) -> None:
    seen: list[tuple[str, int]] = []

    def rule(op: Op, b: Builder) -> Values:
        if isinstance(op, ir.Linear):
            maker = b.op_of(op.x)
            assert isinstance(maker, ir.Unary)
            seen.append((maker.fn, b.uses(op.x)))
        return exp_to_relu(op, b)

    rewrite(module, rule)
    assert seen == [("relu", 2), ("relu", 2)]


def test_op_of_a_parameter_or_a_number_is_none(module: ir.Module) -> None:
    def rule(op: Op, b: Builder) -> Values:
        if isinstance(op, ir.Unary):
            assert b.op_of(op.x) is None
        if isinstance(op, ir.Mul):
            assert b.op_of(op.b) is None
        return None

    rewrite(module, rule)


@pytest.mark.parametrize(
    ("give", "says"),
    [
        (lambda op: [], "gave 0 values for 1; give one for each"),
        (lambda op: [ir.Unary(op.x, "relu").result], "which it did not append"),
    ],
)
def test_a_rule_that_gives_the_wrong_values_is_refused(
    module: ir.Module, give: object, says: str
) -> None:
    def rule(op: Op, b: Builder) -> Values:
        return give(op) if isinstance(op, ir.Unary) else None

    with pytest.raises(ElidirError, match=says):
        rewrite(module, rule)


# ---- several ops at once, and derived weights


def test_siblings_are_replaced_together_in_every_scope(module: ir.Module) -> None:
    new = rewrite(module, join)
    verify(new)
    assert lines(new, "linear") == []
    assert lines(new, "linear.split") == [
        "%q, %k = linear.split %e, @qk {sizes=(8, 4)} : f32[B, T, 8], f32[B, T, 4]  # q"
    ]
    for i in range(2):
        made = new.weights[f"layers.{i}.qk"]
        assert str(made.expr) == f"concat(@layers.{i}.q, @layers.{i}.k; axis=0)"
    assert parse_module(str(new)).weights == new.weights


def test_siblings_are_those_from_this_op_on(module: ir.Module) -> None:
    counts: list[int] = []

    def rule(op: Op, b: Builder) -> Values:
        if isinstance(op, ir.Linear):
            counts.append(len(b.siblings(op, ir.Linear)))
        return None

    rewrite(module, rule)
    assert counts == [2, 1]


def test_a_name_that_is_taken_cannot_be_derived(module: ir.Module) -> None:
    def rule(op: Op, b: Builder) -> Values:
        if isinstance(op, ir.Linear):
            b.derive("q", op.weight.type, "mul", op.weight, 2.0)
        return None

    with pytest.raises(ElidirError, match=r"weight @layers\.0\.q is there already"):
        rewrite(module, rule)


def test_a_weight_that_nothing_reads_any_more_goes(module: ir.Module) -> None:
    def bypass(op: Op, b: Builder) -> Values:
        return [op.x] if isinstance(op, ir.RmsNorm) else None

    assert set(module.weights) - set(rewrite(module, bypass).weights) == {"norm"}


# ---- fuel and rollback


@pytest.mark.parametrize("limit", [0, 1, 2, None])
def test_fuel_stops_exactly(module: ir.Module, limit: int | None) -> None:
    def number(op: Op, b: Builder) -> Values:
        if not isinstance(op, ir.Linear):
            return None
        return [b.emit(ir.Mul(b.append(op)[0], 2.0))]

    fuel = ir.Fuel(limit)
    new = rewrite(module, number, by="double", fuel=fuel)
    hits = 2 if limit is None else limit
    assert fuel.used == hits
    assert fuel.log == ["double at linear q", "double at linear k"][:hits]
    assert len(lines(new, "mul")) == 1 + hits
    assert (new is module) == (hits == 0)
    verify(new)


def test_fuel_is_shared_by_several_rewrites(module: ir.Module) -> None:
    fuel = ir.Fuel(1)
    once = rewrite(module, exp_to_relu, fuel=fuel)
    assert rewrite(once, drop_scale, fuel=fuel) is once


@pytest.mark.parametrize("limit", [0, None])
def test_a_rule_that_backs_out_leaves_no_trace(module: ir.Module, limit: int | None) -> None:
    reads: list[int] = []

    def attempt(op: Op, b: Builder) -> Values:
        """Do all that a rule can do, and then give up: of its own accord, or for want of fuel."""
        if isinstance(op, ir.Linear):
            reads.append(b.uses(op.x))
            out = join(op, b)
            assert limit == 0 or op.loc == "k" or out is not None
            return out if limit == 0 else None
        return drop_scale(op, b) if limit is None else None

    new = rewrite(module, attempt, fuel=ir.Fuel(limit))
    assert reads == [2, 2]
    assert "qk" not in str(new)
    expected = str(rewrite(module, drop_scale)) if limit is None else TEXT
    assert str(new) == expected


def test_replacements_that_are_backed_out_do_not_count_as_uses(module: ir.Module) -> None:
    seen: list[int] = []

    def rule(op: Op, b: Builder) -> Values:
        if isinstance(op, ir.Linear):
            seen.append(b.uses(op.x))
            b.replace(b.siblings(op, ir.Linear)[-1].results, [op.x])
        return None

    assert rewrite(module, rule) is module
    assert seen == [2, 2]


def test_a_derivation_that_was_backed_out_may_be_made_in_another_way(module: ir.Module) -> None:
    def rule(op: Op, b: Builder) -> Values:
        if not isinstance(op, ir.Linear):
            return None
        weight = b.derive("made", op.weight.type, "mul", op.weight, 2.0)
        return [b.emit(op.clone(weight=weight))] if op.loc == "k" else None

    new = rewrite(module, rule)
    assert str(new.weights["layers.1.made"].expr) == "mul(@layers.1.k, 2.0)"


# ---- decompose, the rule that ships with the IR


def test_a_joined_linear_is_taken_apart_again(module: ir.Module) -> None:
    new = rewrite(rewrite(module, join), ir.decompose)
    verify(new)
    assert lines(new, "linear.split") == []
    assert [line.split(" ")[0] for line in lines(new, "slice")] == ["%q", "%k"]
