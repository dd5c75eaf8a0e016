"""Malformed text: one sentence with the line and the remedy, and never another kind of error.

Each case changes one thing in a well-formed module. What is well-formed but breaks a rule of the
module is the verifier's affair, and is tested there.
"""

import contextlib
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elidir import ir
from elidir.ir import ParseError, format_module, parse_module
from tests.strategies import modules

TEXT = """module @m stage=raised {
  sym B in [1, 64] origin="batch"
  weight @layers.0.g: f32[8] format=q4_1 sha=9c
  weight @double: f32[16] = concat(@layers.0.g, @layers.0.g; axis=0)
  body @layer(%h: f32[B, 8]) weights(@g: f32[8]) {
    %n = norm.rms %h, weight=@g {eps=1e-05} : f32[B, 8]  # model.norm
    %c = concat [%n, %h] {axis=0} : f32[2*B, 8]
    %r = reduce %c {fn="sum" axes=(1) keep=true} : f32[2*B, 1]
    yield %n
  }
  func @forward(%x: f32[B, 8], %kv: kv<B, 2, 3, 4, 4, f32>, %m: mask[B, 1, 3]) {
    %y = layer @layer, [%x] {scope="layers.0"} : f32[B, 8]
    %z, %i = topk %y {k=2} : f32[B, 2], i64[B, 2]
    %w = const @double : f32[16]
    %t = cast %w {dtype=bf16} : bf16[16]
    return %y
  }
}
"""

CASES = [
    # old text, new text, line, what the message says
    ("stage=raised", "stage=rised", 1, "stage=raised|graph"),
    ("module @m", "modul @m", 1, "a module starts with"),
    ("  sym B", "  smy B", 2, "expected sym, weight, body or func, found 'smy'"),
    ("sym B in [1, 64]", "sym B in [1, x]", 2, "expected 'sym N in [lo, hi]'"),
    ("sym B in", "sym max in", 2, "'max' cannot name a symbol"),
    ("f32[8] format", "f33[8] format", 3, "unknown dtype 'f33'; did you mean 'f32'?"),
    ("f32[8] format", "mask[8, 8, 8] format", 3, "a weight is a tensor"),
    ("format=q4_1", "fromat=q4_1", 3, "a weight has no 'fromat'; known: format, sha"),
    ("@double: f32[16] =", "@layers.0.g: f32[16] =", 4, "@layers.0.g is defined twice"),
    ("= concat(", "= cnocat(", 4, "known: add, alias, columns, concat"),
    ("(@layers.0.g, @layers.0.g;", "(layers.0.g, 2;", 4, "'layers.0.g' is neither"),
    ("%n = norm.rms", "%n = norm.rmz", 6, "unknown op 'norm.rmz'; did you mean 'norm.rms'?"),
    ("%n = norm.rms %h, weight=@g", "%n = norm.rms", 6, "norm.rms needs the operand 'x'"),
    ("weight=@g", "wieght=@g", 6, "norm.rms has no 'wieght'; did you mean 'weight'?"),
    (
        "weight=@g",
        "weight=@gg",
        6,
        "not among the body's weights; list it there; did you mean 'g'?",
    ),
    ("weight=@g", "weight=g", 6, "'g' is no weight; write it as @name"),
    ("eps=1e-05", "eps=small", 6, "attribute 'eps': 'small' is no float"),
    ("eps=1e-05", "eqs=1e-05", 6, "norm.rms has no 'eqs'; did you mean 'eps'?"),
    ("norm.rms %h,", "norm.rms %g,", 6, "%g is used before it is defined; known: %h"),
    ("norm.rms %h,", "norm.rms h,", 6, "'h' is no value; write it as %name"),
    (" : f32[B, 8]  #", " : f32[8, B]  #", 6, "norm.rms gives f32[B, 8], but the text says f32[8"),
    ("%n = norm.rms", "%n norm.rms", 6, "expected '%x = op operands {attributes} : type'"),
    ("%n = norm.rms", "%h = norm.rms", 6, "%h is defined twice"),
    ("[%n, %h]", "%n, %h", 7, "'%n' is no list; write it as [..]"),
    (" {axis=0}", "", 7, "concat needs the attribute 'axis'"),
    ("{axis=0}", "{axis=5}", 7, "concat: axis 5 is out of range for 2 dimensions"),
    ("2*B, 8]\n", "2*, 8]\n", 7, "'2*' is not a dimension: unexpected 'end'"),
    ('fn="sum"', 'fn="sun"', 8, "unknown reduction 'sun'; did you mean 'sum'?"),
    ('fn="sum"', "fn=sum", 8, "sum is no string; put it in double quotes"),
    ("axes=(1)", "axes=1", 8, "'1' is no list; write it as (..)"),
    ("keep=true", "keep=yes", 8, "attribute 'keep': 'yes' is no bool; known: false, true"),
    ("    yield %n\n", "    yield %q\n", 9, "%q is used before it is defined"),
    ("    yield %n\n  }", "    yield %n\n  %", 10, "a region ends with '}'"),
    ("f32>, %m", "f32, turned>, %m", 11, "a kv type is kv<batch"),
    ("mask[B, 1, 3]", "mask[B, 3]", 11, "a mask type is mask[batch, queries, keys]"),
    ("%x: f32[B, 8]", "%x: f32", 11, "'f32' is not a type"),
    ("%x: f32[B, 8]", "x: f32[B, 8]", 11, "is no parameter; write it as '%name: type'"),
    ("layer @layer, [", "layer @player, [", 12, "no body @player above; did you mean 'layer'?"),
    ("[%x] {scope", "[%m] {scope", 12, "@layer expects f32[B, 8] but got mask[B, 1, 3]"),
    ("%z, %i = ", "%z = ", 13, "topk has 2 results, but 1 names"),
    ("const @double", "const @doubel", 14, "not in the weight table; did you mean 'double'?"),
    ("dtype=bf16", "dtype=bf61", 15, "'bf61' is no DType; did you mean 'bf16'?"),
    ("    return %y\n  }\n}\n", "    return %y\n  }\n", 17, "the module ends early"),
    ("    return %y\n  }\n}\n", "    return %y\n  }\n}\nmore", 18, "one text holds one module"),
]


def test_the_module_that_the_cases_change_is_well_formed() -> None:
    module = parse_module(TEXT)
    ir.verify(module)
    assert format_module(module) == TEXT


@pytest.mark.parametrize(("old", "new", "line", "says"), CASES, ids=[c[3][:40] for c in CASES])
def test_message_has_line_and_remedy(old: str, new: str, line: int, says: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(ParseError) as caught:
        parse_module(TEXT.replace(old, new))
    assert says in caught.value.message
    assert caught.value.at.split(",")[0] == f"line {line}"


def test_an_op_that_does_not_fit_is_named_with_its_place_in_the_model() -> None:
    with pytest.raises(ParseError, match=r"norm.rms: .* \(at line 6, model.norm\)"):
        parse_module(TEXT.replace("weights(@g: f32[8])", "weights(@g: f32[9])"))


@settings(max_examples=150)
@given(st.data())
def test_garbled_text_is_refused_as_such_or_read(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(TEXT) - 1))
    stop = data.draw(st.integers(start, min(start + 8, len(TEXT))))
    new = data.draw(st.text('%@{}[]()<>=:,."\\#/ \nabT019-', max_size=4))
    _read(TEXT[:start] + new + TEXT[stop:])


@settings(max_examples=20)
@given(modules(max_ops=4), st.randoms(use_true_random=False))
def test_random_modules_with_a_piece_cut_out(module: ir.Module, rng: Random) -> None:
    text = format_module(module)
    start = rng.randrange(len(text))
    _read(text[:start] + text[start + rng.randint(1, 9) :])


def _read(text: str) -> None:
    with contextlib.suppress(ParseError):
        parse_module(text)
