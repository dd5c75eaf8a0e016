"""Token axis: a rule for each op, mixers named with a reason, causal only where it is proved."""

import pytest

from elidir.passes.analyses import TokenAxis
from tests.analyses.programs import IDS, named, program

START = """
    %h = embed %ids, @table : f32[B, T, 8]
    %q = heads.split %h {heads=2} : f32[B, 2, T, 4]
    %c = mask.causal %pos, %pos : mask[B, T, T]
"""

OPAQUE = 'opaque [%h], [] {{target="aten.{}" args="[[{{\\"%\\":0}}{}],{{}}]" out=(f32[B, T, 8])}}'
OPAQUE += " : f32[B, T, 8]"

# The last lines of a program, and the token axis of %x.
KEPT = {
    "embed": ("%x = embed %ids, @table : f32[B, T, 8]", 1),
    "linear": ("%x = linear %h, @w : f32[B, T, 8]", 1),
    "norm": ("%x = norm.rms %h, weight=@g : f32[B, T, 8]", 1),
    "split": ("%x = heads.split %h {heads=2} : f32[B, 2, T, 4]", 2),
    "merge": ("%x = heads.merge %q : f32[B, T, 8]", 1),
    "permute": ("%x = permute %q {order=(2, 0, 1, 3)} : f32[T, B, 2, 4]", 0),
    "reshape": ("%x = reshape %q {shape=(B, 1, 2, T, 4)} : f32[B, 1, 2, T, 4]", 3),
    "slice of channels": ("%x = slice %h {axis=2 start=0 stop=4} : f32[B, T, 4]", 1),
    "reduce channels": ('%x = reduce %q {fn="sum" axes=(1) keep=false} : f32[B, T, 4]', 1),
    "reduce kept": ('%x = reduce %q {fn="sum" axes=(1) keep=true} : f32[B, 1, T, 4]', 2),
    "softmax of channels": ("%x = softmax %h {axis=2} : f32[B, T, 8]", 1),
    "concat of channels": ("%x = concat [%h, %h] {axis=2} : f32[B, T, 16]", 1),
    "sum of channels": ("%x = cumsum %h {axis=2} : f32[B, T, 8]", 1),
    "add": ("%x = add %h, %h : f32[B, T, 8]", 1),
    "add a number": ("%x = add %h, 1.0 : f32[B, T, 8]", 1),
    "matmul": ("%k = const @square : f32[8, 8]\n%x = matmul %h, %k : f32[B, T, 8]", 1),
    "rope": (
        "%cos, %sin = rope.table %pos, @freqs : f32[B, T, 2], f32[B, T, 2]\n"
        "%x = rope %q, %cos, %sin : f32[B, 2, T, 4]",
        2,
    ),
    "attention": ("%x = attention %q, %q, %q, mask=%c {scale=0.5} : f32[B, T, 8]", 1),
    "expand": (
        "%e = reshape %q {shape=(B, 2, 1, T, 4)} : f32[B, 2, 1, T, 4]\n"
        "%x = expand %e {shape=(B, 2, 3, T, 4)} : f32[B, 2, 3, T, 4]",
        3,
    ),
    "batch and tokens as one": ("%x = reshape %h {shape=(B*T, 8)} : f32[B*T, 8]", 0),
    "apart again": (
        "%y = reshape %h {shape=(B*T, 8)} : f32[B*T, 8]\n"
        "%x = reshape %y {shape=(B, T, 8)} : f32[B, T, 8]",
        1,
    ),
    "rows of experts": (
        "%y = reshape %h {shape=(2*B*T, 4)} : f32[2*B*T, 4]\n"
        '%z = unary %y {fn="exp"} : f32[2*B*T, 4]\n'
        "%x = reshape %z {shape=(B*T, 2, 4)} : f32[B*T, 2, 4]",
        0,
    ),
    "tokens and channels as one": ("%x = reshape %h {shape=(B, 8*T)} : f32[B, 8*T]", 1),
    "a constant for each token": (
        "%k = full {shape=(B, T, 8) value=1.0 dtype=f32} : f32[B, T, 8]\n"
        "%x = concat [%h, %k] {axis=2} : f32[B, T, 16]",
        1,
    ),
    "products of each token": (
        "%y = reshape %h {shape=(B*T, 4, 2)} : f32[B*T, 4, 2]\n"
        "%z = reshape %h {shape=(B*T, 2, 4)} : f32[B*T, 2, 4]\n"
        "%x = matmul %y, %z : f32[B*T, 4, 4]",
        0,
    ),
    "listed opaque": (f"%x = {OPAQUE.format('erfc.default', '')}", 1),
    "opaque that drops channels": (
        '%x = opaque [%h], [] {target="aten.linalg_vector_norm.default" '
        'args="[[{\\"%\\":0},2,[-1]],{}]" out=(f32[B, T])} : f32[B, T]',
        1,
    ),
    "opaque along channels": (f"%x = {OPAQUE.format('log_softmax.int', ',-1')}", 1),
}


@pytest.mark.parametrize("case", KEPT)
def test_the_axis_is_followed(case: str) -> None:
    lines, axis = KEPT[case]
    module = program(f"{START}{lines}\nreturn %x")
    found = TokenAxis.of(module)
    assert found.axis[named(module["forward"].region, "x")] == axis
    assert not found.blockers


MIXED = {
    "slice of tokens": "%x = slice %h {axis=1 start=(T - 1) stop=T} : f32[B, 1, 8]",
    "first tokens": "%x = slice %h {axis=1 start=0 stop=1} : f32[B, 1, 8]",
    "mean of tokens": '%x = reduce %h {fn="mean" axes=(1) keep=true} : f32[B, 1, 8]',
    "softmax over tokens": "%x = softmax %h {axis=1} : f32[B, T, 8]",
    "running sum": "%x = cumsum %h {axis=1} : f32[B, T, 8]",
    "joined to itself": "%x = concat [%h, %h] {axis=1} : f32[B, 2*T, 8]",
    "across tokens": "%x = reshape %h {shape=(B, 8, T)} : f32[B, 8, T]",
    "rows that differ": "%y = reshape %h {shape=(2*B*T, 4)} : f32[2*B*T, 4]\n"
    "%z = permute %y {order=(1, 0)} : f32[4, 2*B*T]\n"
    "%x = reshape %z {shape=(8, B*T)} : f32[8, B*T]",
    "a count of ones": "%k = full {shape=(B, T) value=1 dtype=i64} : i64[B, T]\n"
    "%x = cumsum %k {axis=1} : i64[B, T]",
    "how many there are": "%k = full {shape=(B, T) value=1 dtype=i64} : i64[B, T]\n"
    '%x = reduce %k {fn="sum" axes=(1) keep=false} : i64[B]',
    "scores": "%t = permute %q {order=(0, 1, 3, 2)} : f32[B, 2, 4, T]\n"
    "%x = matmul %q, %t : f32[B, 2, T, T]",
    "linear over tokens": "%t = permute %h {order=(0, 2, 1)} : f32[B, 8, T]\n"
    "%x = norm.rms %t : f32[B, 8, T]",
    "unlisted opaque": f"%x = {OPAQUE.format('fft_fft.default', '')}",
    "opaque along tokens": f"%x = {OPAQUE.format('log_softmax.int', ',1')}",
}


@pytest.mark.parametrize("case", MIXED)
def test_what_mixes_tokens_is_named(case: str) -> None:
    module = program(f"{START}{MIXED[case]}\nreturn %x")
    found = TokenAxis.of(module)
    (mixer,) = found.blockers
    assert mixer.op is module["forward"].region.ops[-1]
    assert not mixer.causal
    assert mixer.reason == "it mixes tokens"
    assert named(module["forward"].region, "x") not in found.axis


# The last lines of a program with %a, an attention, and why it is not causal.
NOT_CAUSAL = {
    "no mask": ("%a = attention %q, %q, %q {scale=0.5} : f32[B, T, 8]", "its mask is not causal"),
    "valid keys": (
        "%m = mask.valid %valid : mask[B, 1, T]\n"
        "%a = attention %q, %q, %q, mask=%m {scale=0.5} : f32[B, T, 8]",
        "its mask is not causal",
    ),
    "a window ahead": (
        "%m = mask.window %pos, %pos {before=3 after=3} : mask[B, T, T]\n"
        "%a = attention %q, %q, %q, mask=%m {scale=0.5} : f32[B, T, 8]",
        "its mask is not causal",
    ),
    "other keys": (
        "%m = mask.causal %pos, %pos2 : mask[B, T, U]\n"
        "%k = heads.split %other {heads=2} : f32[B, 2, U, 4]\n"
        "%a = attention %q, %k, %k, mask=%m {scale=0.5} : f32[B, T, 8]",
        "its keys are not the tokens of its own stream",
    ),
    "channels as tokens": (
        "%k = permute %q {order=(0, 2, 1, 3)} : f32[B, T, 2, 4]\n"
        "%a = attention %k, %k, %k {scale=0.5} : f32[B, 2, 4*T]",
        "its keys are not the tokens of its own stream",
    ),
}
OTHER = f"{IDS}, %other: f32[B, U, 8], %pos2: i64[B, U]"


@pytest.mark.parametrize("case", NOT_CAUSAL)
def test_attention_that_is_not_causal_says_why(case: str) -> None:
    lines, reason = NOT_CAUSAL[case]
    if "%other" in lines:
        module = program(f"{START}{lines}\nreturn %a", params=OTHER, symbols=("U",))
    else:
        module = program(f"{START}{lines}\nreturn %a")
    (mixer,) = TokenAxis.of(module).blockers
    assert mixer.op.kind == "attention"
    assert mixer.reason == reason


def test_causal_under_and_is_causal() -> None:
    module = program(f"""{START}
        %v = mask.valid %valid : mask[B, 1, T]
        %w = mask.window %pos, %pos {{before=3 after=0}} : mask[B, T, T]
        %n = mask.and %w, %v : mask[B, T, T]
        %m = mask.and %n, %c : mask[B, T, T]
        %a = attention %q, %q, %q, mask=%m {{scale=0.5}} : f32[B, T, 8]
        return %a""")
    found = TokenAxis.of(module)
    assert [m.causal for m in found.mixers] == [True]


BODY = """  body @layer(%h: f32[B, T, 8], %mask: mask[B, T, T]) {
    %q = heads.split %h {heads=2} : f32[B, 2, T, 4]
    %a = attention %q, %q, %q, mask=%mask {scale=0.5} : f32[B, T, 8]
    yield %a
  }
"""


def test_masks_are_followed_into_layers() -> None:
    """One body, two layers: the one whose mask looks ahead is the mixer that blocks."""
    module = program(
        """
        %h = embed %ids, @table : f32[B, T, 8]
        %c = mask.causal %pos, %pos : mask[B, T, T]
        %w = mask.window %pos, %pos {before=3 after=3} : mask[B, T, T]
        %x = layer @layer, [%h, %c] {scope="layers.0"} : f32[B, T, 8]
        %y = layer @layer, [%x, %w] {scope="layers.1"} : f32[B, T, 8]
        return %y""",
        before=BODY,
    )
    found = TokenAxis.of(module)
    assert [m.causal for m in found.mixers] == [True, False]
    assert found.axis[named(module["forward"].region, "y")] == 1


# Values that depend on how many tokens there are, not on positions: with a cache they differ.
COUNTS = {
    "iota": "%i = iota {length=T} : i64[T]\n%f = cast %i {dtype=f32} : f32[T]\n"
    "%r = reshape %f {shape=(T, 1)} : f32[T, 1]\n%x = add %h, %r : f32[B, T, 8]",
    "longer iota": "%i = iota {length=(T + 1)} : i64[T + 1]\n"
    "%f = cast %i {dtype=f32} : f32[T + 1]\n"
    "%s = slice %f {axis=0 start=0 stop=T} : f32[T]\n"
    "%r = reshape %s {shape=(T, 1)} : f32[T, 1]\n%x = add %h, %r : f32[B, T, 8]",
    "a size": '%k = const @places : f32[64, 8]\n%r = opaque [%k], [] {target="aten.mul.Tensor" '
    'args="[[{\\"%\\":0},{\\"dim\\":\\"T\\"}],{}]" out=(f32[64, 8])} : f32[64, 8]\n'
    "%m = slice %r {axis=0 start=0 stop=1} : f32[1, 8]\n%x = add %h, %m : f32[B, T, 8]",
    "first rows": "%k = const @places : f32[64, 8]\n"
    "%r = slice %k {axis=0 start=0 stop=T} : f32[T, 8]\n%x = add %h, %r : f32[B, T, 8]",
}


@pytest.mark.parametrize("case", COUNTS)
def test_counting_slots_blocks_a_cache(case: str) -> None:
    module = program(f"{START}{COUNTS[case]}\nreturn %x")
    assert TokenAxis.of(module).blockers


def test_inputs_without_tokens_have_no_axis() -> None:
    module = program("%x = mul %image, 2.0 : f32[8]\nreturn %x", params="%image: f32[8]")
    found = TokenAxis.of(module)
    assert not found.mixers
    assert named(module["forward"].region, "x") not in found.axis
