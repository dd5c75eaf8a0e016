"""Residual stream: segments and layers of pre-norm, post-norm, parallel and two-stream programs."""

from elidir.frontends.raising.layers import outline_layers
from elidir.ir import Layer, Module, Region, Value
from elidir.passes.analyses import ResidualStream, Segment, stream_segments
from elidir.passes.analyses.residual_stream import group_layers
from tests.analyses.programs import IDS, named, program

START = """
    %h0 = embed %ids, @table : f32[B, T, 8]
    %c = mask.causal %pos, %pos : mask[B, T, T]
"""


def attend(x: str, out: str, *, keys: str = "", mask: str = ", mask=%c") -> str:
    """Lines that compute %out, attention over %x (or over the keys' stream)."""
    keys = keys or x
    dims = "B, 2, U, 4" if keys != x else "B, 2, T, 4"
    return f"""
    %q.{out} = heads.split %{x} {{heads=2}} : f32[B, 2, T, 4]
    %k.{out} = heads.split %{keys} {{heads=2}} : f32[{dims}]
    %{out} = attention %q.{out}, %k.{out}, %k.{out}{mask} {{scale=0.5}} : f32[B, T, 8]
    """


def pre_norm(i: int) -> str:
    """Layer i, from %h{i} to %h{i + 1}, with norms before attention and feed-forward."""
    return f"""
    %n{i} = norm.rms %h{i}, weight=@g : f32[B, T, 8]
    {attend(f"n{i}", f"a{i}")}
    %m{i} = add %h{i}, %a{i} : f32[B, T, 8]
    %o{i} = norm.rms %m{i}, weight=@g : f32[B, T, 8]
    %f{i} = linear %o{i}, @w : f32[B, T, 8]
    %h{i + 1} = add %m{i}, %f{i} : f32[B, T, 8]
    """


def post_norm(i: int) -> str:
    """The same with a norm after each sum, as in BERT."""
    return f"""
    {attend(f"h{i}", f"a{i}")}
    %s{i} = add %h{i}, %a{i} : f32[B, T, 8]
    %m{i} = norm.layer %s{i}, weight=@g : f32[B, T, 8]
    %f{i} = linear %m{i}, @w : f32[B, T, 8]
    %t{i} = add %m{i}, %f{i} : f32[B, T, 8]
    %h{i + 1} = norm.layer %t{i}, weight=@g : f32[B, T, 8]
    """


def parallel(i: int) -> str:
    """Attention and feed-forward side by side, as in GPT-J."""
    return f"""
    %n{i} = norm.layer %h{i}, weight=@g : f32[B, T, 8]
    {attend(f"n{i}", f"a{i}")}
    %f{i} = linear %n{i}, @w : f32[B, T, 8]
    %b{i} = add %a{i}, %f{i} : f32[B, T, 8]
    %h{i + 1} = add %h{i}, %b{i} : f32[B, T, 8]
    """


def tidy(lines: str) -> str:
    return "\n".join(line for line in lines.splitlines() if line.strip())


def layered(lines: str, end: str, **options: str) -> tuple[Region, list[Segment]]:
    """The region of a program that ends at a value, and its layers."""
    region = program(tidy(f"{START}{lines}\nreturn %{end}"), **options)["forward"].region
    return region, group_layers(stream_segments(region, named(region, "h0")))


def ends(found: list[Segment]) -> list[tuple[str, str]]:
    return [(s.start.name, s.end.name) for s in found]


def test_pre_norm_layers() -> None:
    _, found = layered(pre_norm(0) + pre_norm(1), "h2")
    assert ends(found) == [("h0", "h1"), ("h1", "h2")]
    assert found[0].key() == found[1].key()
    assert all(s.mixes for s in found)


def test_post_norm_layers() -> None:
    _, found = layered(post_norm(0) + post_norm(1), "h2")
    assert ends(found) == [("h0", "h1"), ("h1", "h2")]
    assert found[0].key() == found[1].key()


def test_parallel_layers() -> None:
    _, found = layered(parallel(0) + parallel(1), "h2")
    assert ends(found) == [("h0", "h1"), ("h1", "h2")]


def test_the_final_norm_is_no_part_of_the_last_layer() -> None:
    final = "%n = norm.rms %h2, weight=@g : f32[B, T, 8]"
    for layer in (pre_norm, parallel):
        _, found = layered(layer(0) + layer(1) + final, "n")
        assert ends(found) == [("h0", "h1"), ("h1", "h2")]


def test_the_final_norm_of_a_single_layer_is_no_part_of_it() -> None:
    _, found = layered(pre_norm(0) + "%n = norm.rms %h1, weight=@g : f32[B, T, 8]", "n")
    assert ends(found) == [("h0", "h1")]


def test_what_comes_before_the_first_mixing_is_no_layer() -> None:
    before = """
    %e = norm.layer %h0, weight=@g : f32[B, T, 8]
    %r = linear %e, @w : f32[B, T, 8]
    %h1 = add %e, %r : f32[B, T, 8]
    """
    _, found = layered(before + pre_norm(1) + pre_norm(2), "h3")
    assert ends(found) == [("h1", "h2"), ("h2", "h3")]


def test_layers_that_differ_have_different_keys() -> None:
    _, found = layered(pre_norm(0) + parallel(1), "h2")
    assert found[0].key() != found[1].key()


def test_a_segment_holds_its_ops_and_what_they_read() -> None:
    region, (first, second) = layered(pre_norm(0) + pre_norm(1), "h2")
    mask = named(region, "c")
    assert first.params() == [first.start, mask]
    assert second.params() == [second.start, mask]
    assert not set(first.ops) & set(second.ops)
    assert len([*first.ops, *second.ops]) == len(region.ops) - 2


def test_nothing_without_a_residual_stream() -> None:
    _, found = layered(attend("h0", "a"), "a")
    assert not found


# ---- two streams

ENCODER = """
    %e0 = embed %text, @table : f32[B, U, 8]
    %eq = heads.split %e0 {heads=2} : f32[B, 2, U, 4]
    %ea = attention %eq, %eq, %eq {scale=0.5} : f32[B, U, 8]
    %em = add %e0, %ea : f32[B, U, 8]
    %ef = linear %em, @w : f32[B, U, 8]
    %e1 = add %em, %ef : f32[B, U, 8]
"""


def crossed(i: int) -> str:
    """A decoder's layer: over its own tokens, then over the encoder's."""
    return f"""
    {attend(f"h{i}", f"a{i}")}
    %m{i} = add %h{i}, %a{i} : f32[B, T, 8]
    {attend(f"m{i}", f"x{i}", keys="e1", mask="")}
    %o{i} = add %m{i}, %x{i} : f32[B, T, 8]
    %f{i} = linear %o{i}, @w : f32[B, T, 8]
    %h{i + 1} = add %o{i}, %f{i} : f32[B, T, 8]
    """


PAIR = f"{IDS}, %text: i64[B, U]"


def pair() -> Module:
    lines = tidy(f"{ENCODER}{START}{crossed(0)}{crossed(1)}\nreturn %h2")
    return program(lines, params=PAIR, symbols=("U",))


def test_attention_over_another_stream_begins_no_layer() -> None:
    region = pair()["forward"].region
    found = group_layers(stream_segments(region, named(region, "h0")))
    assert ends(found) == [("h0", "h1"), ("h1", "h2")]
    assert found[0].key() == found[1].key()


def test_each_of_two_streams_has_its_layers() -> None:
    region = pair()["forward"].region
    found = group_layers(stream_segments(region, named(region, "e0")))
    assert ends(found) == [("e0", "e1")]


def test_outlining_gives_encoder_and_decoder_bodies() -> None:
    module, _ = outline_layers(pair())
    assert len(list(module.layers())) == 3
    assert len(module.bodies) == 2
    assert not [op for op in module["forward"].region.ops if op.kind == "attention"]


# ---- the analysis of layers that are there


def test_the_stream_runs_through_the_layers() -> None:
    final = "%n = norm.rms %h2, weight=@g : f32[B, T, 8]\nreturn %n"
    module, _ = outline_layers(program(tidy(f"{START}{pre_norm(0)}{pre_norm(1)}{final}")))
    stream = ResidualStream.of(module)
    layers = [op for op in module["forward"].region.ops if isinstance(op, Layer)]
    assert list(stream.layers) == layers
    assert stream.after(0) is stream.before(1)
    first: Value = stream.before(0)
    assert first.type == stream.after(1).type
    assert len(module.bodies) == 1
