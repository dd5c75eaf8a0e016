"""State: every attention has keys and values to keep, and it is known whether keys are rotated."""

from elidir.passes.analyses import State
from tests.analyses.programs import program

LINES = """
    %h = embed %ids, @table : f32[B, T, 8]
    %q = heads.split %h {heads=2} : f32[B, 2, T, 4]
    %c = mask.causal %pos, %pos : mask[B, T, T]
    %cos, %sin = rope.table %pos, @freqs : f32[B, T, 2], f32[B, T, 2]
    %k = rope %q, %cos, %sin : f32[B, 2, T, 4]
    %a = attention %k, %k, %q, mask=%c {scale=0.5} : f32[B, T, 8]
    %b = attention %k, %q, %q, mask=%c {scale=0.5} : f32[B, T, 8]
    %s = add %a, %b : f32[B, T, 8]
    return %s
"""


def test_keys_and_whether_they_are_rotated() -> None:
    state = State.of(program(LINES))
    assert [a.results[0].name for a in state.attentions] == ["a", "b"]
    assert [state.is_rotated(a) for a in state.attentions] == [True, False]


def test_state_inside_layers_is_found() -> None:
    body = """  body @layer(%h: f32[B, T, 8], %c: mask[B, T, T]) {
    %q = heads.split %h {heads=2} : f32[B, 2, T, 4]
    %a = attention %q, %q, %q, mask=%c {scale=0.5} : f32[B, T, 8]
    yield %a
  }
"""
    lines = """
    %h = embed %ids, @table : f32[B, T, 8]
    %c = mask.causal %pos, %pos : mask[B, T, T]
    %x = layer @layer, [%h, %c] {scope="layers.0"} : f32[B, T, 8]
    %y = layer @layer, [%x, %c] {scope="layers.1"} : f32[B, T, 8]
    return %y
"""
    state = State.of(program(lines, before=body))
    assert len(state.attentions) == 1
    assert not state.rotated


def test_a_program_without_attention_has_none() -> None:
    lines = "%h = embed %ids, @table : f32[B, T, 8]\nreturn %h"
    assert State.of(program(lines)).attentions == ()
