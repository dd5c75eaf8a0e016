"""`elidir bisect` names pass, layer and the first token that flips, and its file runs again.

The passes are those of a third party, wrong on purpose: each breaks one layer of four, by a body of
its own, by an op behind it, or without the rewriter; one is lossy everywhere and bad in one layer.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import pytest

from elidir.ir import Body, Builder, Layer, Module, Mul, Op, Region, Value
from elidir.passes import Context, Invariant, Pass, PassResult, passes, register
from elidir.passes import registry as registry_module
from tests.cli.conftest import Elidir, byte_tokenizer

BROKEN = "model.layers.2"
SCOPE = "layers.2"


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of four layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("models") / "deep"
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, initializer_range=0.2)
    torch.manual_seed(5)
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def cloned(region: Region, change: Callable[[Op], dict[str, Any]]) -> Region:
    """The region with some attributes of its ops changed."""
    mapped = {p: p for p in region.params}
    ops = []
    for op in region.ops:
        ops.append(op.clone(mapped.__getitem__, **change(op)))
        mapped |= dict(zip(op.results, ops[-1].results, strict=True))
    return Region(region.params, tuple(ops), tuple(mapped[r] for r in region.results))


def changed(body: Body, eps: float, name: str) -> Body:
    """The body with another epsilon in its norms."""
    region = cloned(body.region, lambda op: {"eps": eps} if hasattr(op, "eps") else {})
    return replace(body, name=name, region=region)


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the passes until the test ends."""
    passes()
    monkeypatch.setattr(registry_module, "_PASSES", dict(registry_module._PASSES))
    for cls in (WrongBody, WrongBehind, WrongTable, Lossy):
        register(cls)


def is_broken(op: Op) -> TypeGuard[Layer]:
    return isinstance(op, Layer) and op.scope == SCOPE


@dataclass(frozen=True)
class WrongBody(Pass):
    """Gives one layer a body of its own, which is wrong."""

    name = "wrong-body"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
            if not is_broken(op) or op.body.name.endswith("own"):
                return None
            own = changed(op.body, 0.5, f"{op.body.name}.own")
            return tuple(b.append(replace(op, body=own)))

        return cx.result(cx.rewrite(module, rule))


@dataclass(frozen=True)
class WrongBehind(Pass):
    """Doubles what one layer hands on."""

    name = "wrong-behind"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
            if not is_broken(op):
                return None
            first, *rest = b.append(replace(op))
            return (b.emit(Mul(first, 2.0)), *rest)

        return cx.result(cx.rewrite(module, rule))


@dataclass(frozen=True)
class WrongTable(Pass):
    """Changes one layer without the rewriter."""

    name = "wrong-table"
    invariant = Invariant.EXACT

    def run(self, module: Module, cx: Context) -> PassResult:
        return cx.result(rebuilt(module, lambda op: 0.5 if is_broken(op) else None))


@dataclass(frozen=True)
class Lossy(Pass):
    """Changes each layer a little, or more, and one of them a lot."""

    name = "lossy"
    invariant = Invariant.QUALITY

    worst: float = 0.5
    others: float = 1e-5

    def run(self, module: Module, cx: Context) -> PassResult:
        return cx.result(rebuilt(module, lambda op: self.worst if is_broken(op) else self.others))


def rebuilt(module: Module, eps: Callable[[Layer], float | None]) -> Module:
    """The module whose layers have bodies of their own where `eps` gives one."""

    def change(op: Op) -> dict[str, Any]:
        own = eps(op) if isinstance(op, Layer) else None
        return {"body": changed(op.body, own, f"{op.body.name}.{op.scope}")} if own else {}

    functions = {
        name: replace(f, region=cloned(f.region, change)) for name, f in module.functions.items()
    }
    return replace(module, functions=functions)


@pytest.mark.usefixtures("wrong")
@pytest.mark.parametrize(
    ("pipeline", "name"),
    [
        ("wrong-body", "wrong-body"),
        ("fuse-gated-ffn, wrong-body, fuse-add-norm, dce", "wrong-body"),
        ("wrong-behind", "wrong-behind"),
        ("lossless, wrong-table, dce", "wrong-table"),
        ("lossy", "lossy"),
        ("lossless, lossy, dce", "lossy"),
    ],
)
def test_the_sentence_names_pass_layer_and_token(
    elidir: Elidir, deep: Path, tmp_path: Path, pipeline: str, name: str
) -> None:
    out = tmp_path / "again.ir"
    said = elidir("bisect", deep, "-p", pipeline, "-o", out, "--prompt", "Hello there")
    assert said.code == 0, said.err
    (sentence,) = said.out.splitlines()
    assert f"pass '{name}' breaks layer {BROKEN}" in sentence
    assert "the first greedy token to flip follows position" in sentence
    again = elidir("bisect", out, "--json")
    assert again.code == 0, again.err
    found = json.loads(again.out)
    assert (found["pass"], found["layer"]) == (name, BROKEN)
    assert sentence.rpartition("position")[2] == found["sentence"].rpartition("position")[2]
    assert found["flip"]["old"] != found["flip"]["new"]
    assert elidir("opt", out).code == 0


@pytest.mark.usefixtures("wrong")
def test_layers_that_are_all_hit_are_counted(elidir: Elidir, deep: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.ir"
    said = elidir("bisect", deep, "-p", "lossy{others=0.3}", "-o", out)
    assert re.search(r"breaks [34] of 4 layers, model\.layers\.\d the most: ", said.out), said.out


@pytest.mark.usefixtures("wrong")
def test_numbers_may_be_off_and_no_token_flip(elidir: Elidir, deep: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.ir"
    args = ("bisect", deep, "-o", out, "-p", "lossy{worst=2e-6 others=1e-6}")
    assert "nothing to bisect" in elidir(*args).err
    said = elidir(*args, "--by", "numbers", "--tolerance", 1e-9, "--new", 0)
    assert f"breaks layer {BROKEN}: result 0 of @forward is off by" in said.out
    assert said.out.endswith("; no greedy token flips\n")
    again = json.loads(elidir("bisect", out, "--json").out)
    assert (again["pass"], again["layer"], again["flip"]) == ("lossy", BROKEN, None)


@pytest.mark.usefixtures("wrong")
@pytest.mark.parametrize("bound", ["kl<=1e-6", "top1>=1", "kl<=0.5, ppl_ratio<=1.000001"])
def test_a_bound_on_quality_may_judge(
    elidir: Elidir, deep: Path, tmp_path: Path, bound: str
) -> None:
    out = tmp_path / "again.ir"
    args = ("bisect", deep, "-o", out, "-p", "lossless, lossy, dce", "--by")
    said = elidir(*args, bound)
    assert f"pass 'lossy' breaks layer {BROKEN}" in said.out, said.err
    assert re.search(r"(\w+)[<>]=[\d.e-]+ is missed, \1 is \d", said.out)
    assert json.loads(elidir("bisect", out, "--json").out)["layer"] == BROKEN
    assert "nothing to bisect" in elidir(*args, "kl<=100").err
    assert "no metric 'kll'; did you mean 'kl'?" in elidir(*args, "kll<=1").err


@pytest.mark.usefixtures("wrong")
def test_a_saved_model_is_bisected_by_its_own_pipeline(
    elidir: Elidir, deep: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    assert elidir("compile", deep, "-p", "lossless, wrong-behind", "-o", saved).code == 0
    said = elidir("bisect", saved, "-o", tmp_path / "again.ir")
    assert f"rewrite of pass 'wrong-behind' breaks layer {BROKEN}, at layer model" in said.out
    assert f"rewrite of pass 'wrong-behind' breaks layer {BROKEN}, at layer model" in (
        elidir("bisect", tmp_path / "again.ir").out
    )


NARROW = "extract-outliers{fraction=0 clip=0.1 force=true}"
"""Cuts off nine tenths of what calibration saw."""


@pytest.mark.usefixtures("wrong")
def test_what_calibration_sees_is_given_to_the_passes(
    elidir: Elidir, deep: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again.ir"
    good = "lossless, extract-outliers{fraction=0.5 force=true}"
    said = elidir("bisect", deep, "-o", out, "-p", f"{good}, wrong-behind", "--by", "kl<=0.02")
    assert f"pass 'wrong-behind' breaks layer {BROKEN}" in said.out, said.err
    said = elidir("bisect", deep, "-o", out, "-p", f"lossless, {NARROW}, dce")
    assert "rewrite of pass 'extract-outliers' breaks" in said.out, said.err
    assert "at linear" in said.out
    assert elidir("bisect", out, "-o", tmp_path / "b.ir").out == said.out
    assert "linear.int8" in elidir("opt", out).out


def test_a_reproducer_names_the_calibration_that_was_given(
    elidir: Elidir, deep: Path, tmp_path: Path
) -> None:
    text, out, saved = tmp_path / "mine.txt", tmp_path / "again.ir", tmp_path / "saved"
    text.write_text("A text that is not the bundled one, and is longer than a window. " * 4)
    args = ("--calibration", text)
    assert elidir("compile", deep, "-p", f"lossless, {NARROW}", *args, "-o", saved).code == 0
    said = elidir("bisect", saved, *args, "-o", out)
    assert said.code == 0, said.err
    assert "give --calibration" not in said.err
    assert f'"calibration": "{text}"' in out.read_text()
    assert elidir("bisect", out).out == said.out
    said = elidir("bisect", saved, "-o", out)
    assert "it was calibrated on mine.txt, " in said.err
    assert "is searched with the bundled text, " in said.err
    text.unlink()
    said = elidir("explain", saved, *args)
    assert "leave calibration out, or compile the model again" in said.err


def test_random_numbers_calibrate_a_file_without_a_model(elidir: Elidir, tmp_path: Path) -> None:
    file = tmp_path / "m.ir"
    file.write_text(
        f"// run: {NARROW}\nmodule @m stage=raised {{\n  sym T in [1, 64]\n"
        "  weight @w: f32[64, 64]\n  func @forward(%x: f32[T, 64]) {\n"
        "    %a = linear %x, @w : f32[T, 64]\n    return %a\n  }\n}\n"
    )
    said = elidir("bisect", file, "-o", tmp_path / "again.ir")
    assert "rewrite of pass 'extract-outliers' breaks the module, at linear" in said.out, said.err
    assert "linear.int8" in elidir("opt", file).out
    assert "nothing to bisect" in elidir("bisect", file, "--tolerance", 10).err


def test_what_cannot_be_judged_is_said(elidir: Elidir, deep: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.ir"
    file.write_text(
        "// run: cse\nmodule @m stage=raised {\n  sym T in [1, 64]\n"
        "  func @forward(%x: f32[T, 8]) {\n    %a = add %x, %x : f32[T, 8]\n    return %a\n  }\n}\n"
    )
    said = elidir("bisect", file, "--by", "tokens")
    assert (said.code, "cannot be judged by tokens; use numbers" in said.err) == (1, True)
    assert "no judge 'tokns'; did you mean 'tokens'?" in elidir("bisect", deep, "--by", "tokns").err
    file.write_text("// bisect: {broken\n" + file.read_text())
    assert "is no JSON" in elidir("bisect", file).err
