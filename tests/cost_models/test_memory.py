"""Memory: what a phase holds, counted by hand on small programs."""

import dataclasses

import pytest

from elidir.cost_models import Description, Request, describe, footprint, parameters
from elidir.cost_models.phases import Phase, decode, prefill
from elidir.cost_models.work import Precision
from elidir.ir import (
    Add,
    DType,
    Function,
    Module,
    Op,
    Region,
    Reshape,
    Symbol,
    Tensor,
    Unary,
    Value,
    parse_module,
    symbol,
)


def program(*ops: Op, params: tuple[Value, ...], result: Value) -> Phase:
    return Phase("forward", Function("forward", Region(params, ops, (result,))), {"B": 1, "T": 100})


def held(phase: Phase) -> int:
    module = Module("m", {"forward": phase.function}, {"T": Symbol(1, None)})
    return footprint(module, phase, Precision()).activations


def test_a_value_lives_until_its_last_reader() -> None:
    x = Value(Tensor((symbol("T"),), DType.F32), "x")
    a = Unary(x, "exp")
    b = Unary(a.result, "exp")
    c = Unary(b.result, "exp")
    chain = program(a, b, c, params=(x,), result=c.result)
    assert held(chain) == 400 * 3  # x, and two of a, b, c at a time
    d = Add(c.result, a.result)
    kept = program(a, b, c, d, params=(x,), result=d.result)
    assert held(kept) == 400 * 4  # a waits for the sum


def test_views_live_in_what_they_look_at() -> None:
    x = Value(Tensor((symbol("T"),), DType.F32), "x")
    a = Unary(x, "exp")
    view = Reshape(a.result, (symbol("T"), 1))
    b = Unary(view.result, "exp")
    assert held(program(a, view, b, params=(x,), result=b.result)) == 400 * 3


def test_cache_grows_with_the_context(tiny: Description) -> None:
    module = describe(tiny)
    request = Request(batch=2, prompt=30)
    row = 2 * 2 * 2 * 16 * 4 * 2  # layers, keys and values, kv heads, head_dim, bytes, batch
    assert footprint(module, prefill(module, request), Precision()).kv == 30 * row
    assert footprint(module, decode(module, request, 40), Precision()).kv == 41 * row
    half = footprint(module, decode(module, request, 40), Precision.of("f16"))
    assert half.kv == 41 * row // 2


def test_layers_reuse_the_memory_of_values(tiny: Description) -> None:
    sizes = []
    for layers in (2, 8):
        module = describe(dataclasses.replace(tiny, layers=layers))
        phase = prefill(module, Request(prompt=64))
        sizes.append(footprint(module, phase, Precision()).activations)
    assert sizes[0] == sizes[1]


def test_the_worst_moment_of_a_tiny_decoder(tiny: Description) -> None:
    """Inside the feed-forward block: the residual, its input, gate and up, and the result."""
    module = describe(tiny)
    n = 64
    phase = prefill(module, Request(prompt=n))
    found = footprint(module, phase, Precision()).activations
    block = n * (4 * 64 + 2 * 128) * 4  # h, mixed, normed, out and the hidden pair
    tables = 2 * n * 8 * 4
    inputs = n * (3 * 8) + n * n + 8  # ids, pos, kpos; the mask; rows
    assert found == pytest.approx(block + tables + inputs)


def test_what_is_made_of_a_parameter_is_none_of_its_own() -> None:
    module = parse_module(
        "module @m stage=raised {\n  sym T in [1, 64]\n  weight @w: f32[8, 4]\n"
        "  weight @w.in_scale: f32[] = literal(0.5)\n  weight @w.int8: i8[8, 4] = quantize(@w)\n"
        "  weight @w.scales: f32[8] = quantize_scale(@w)\n  func @forward(%x: f32[T, 4]) {\n"
        "    %q = quantize %x, @w.in_scale : u8[T, 4]\n"
        "    %y = linear.int8 %q, @w.int8, @w.scales, @w.in_scale : f32[T, 8]\n"
        "    %z = linear %x, @w : f32[T, 8]\n    return %y, %z\n  }\n}\n"
    )
    assert parameters(module, module["forward"]) == 8 * 4
