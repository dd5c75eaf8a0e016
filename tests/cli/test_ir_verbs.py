"""`opt`, `bisect`, `report`, `explain` and the lists: what they print, and that files run again."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from elidir.backends import backend_names
from elidir.cost_models import targets
from elidir.ir import Add, Builder, Module, Mul, Op, RmsNorm, Value, parse_module
from elidir.passes import Context, Invariant, Pass, PassResult, passes, register
from elidir.passes import registry as registry_module
from tests.cli.conftest import Elidir

IR = """// run: cse
module @m stage=raised {
  sym T in [1, 64]
  func @forward(%x: f32[T, 8]) {
    %a = add %x, %x : f32[T, 8]  # first
    %b = add %x, %x : f32[T, 8]  # second
    %c = add %a, 1.0 : f32[T, 8]
    %d = mul %c, %b : f32[T, 8]
    return %d
  }
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.ir"
    path.write_text(IR)
    return path


@pytest.fixture
def buggy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a pass that is right but for one place, and a wrong one, until the test ends."""
    passes()
    monkeypatch.setattr(registry_module, "_PASSES", dict(registry_module._PASSES))

    @register
    @dataclass(frozen=True)
    class Worse(Pass):
        """Makes the norms' epsilon one."""

        name = "worse"
        invariant = Invariant.EXACT

        def run(self, module: Module, cx: Context) -> PassResult:
            def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
                if not isinstance(op, RmsNorm) or op.eps == 1.0:
                    return None
                return (b.emit(replace(op, eps=1.0)),)

            return cx.result(cx.rewrite(module, rule))

    @register
    @dataclass(frozen=True)
    class Buggy(Pass):
        """Writes x + x as x * 2, and in one place as x * 3."""

        name = "buggy"
        invariant = Invariant.EXACT

        def run(self, module: Module, cx: Context) -> PassResult:
            def rule(op: Op, b: Builder) -> tuple[Value, ...] | None:
                if not isinstance(op, Add) or op.a is not op.b:
                    return None
                return (b.emit(Mul(op.a, 3 if op.loc == "second" else 2)),)

            return cx.result(cx.rewrite(module, rule))


# ---- opt


def test_opt_takes_the_pipeline_of_the_file(elidir: Elidir, file: Path) -> None:
    said = elidir("opt", file)
    assert said.code == 0
    assert said.out.count("= add %x, %x") == 1
    assert str(parse_module(said.out)) == said.out


def test_opt_takes_the_pipeline_of_the_command(elidir: Elidir, file: Path) -> None:
    assert elidir("opt", file, "-p", "dce").out.count("= add %x, %x") == 2


def test_opt_prints_dumps_and_times_between_passes(
    elidir: Elidir, file: Path, tmp_path: Path
) -> None:
    dump = tmp_path / "dump"
    options = ("-p", "canonicalize, cse, dce", "--time", "--remarks", "--numerics")
    said = elidir("opt", file, *options, "--dump", dump, "--print-ir", "--after", "cse")
    assert said.code == 0, said.err
    assert [p.name for p in sorted(dump.iterdir())] == ["000_input.ir", "002_cse.ir"]
    assert said.err.count("// after") == 1
    assert "cse: same numbers" in said.err
    assert "applied cse" in said.err
    assert said.err.count(" ms  ") == 3


@pytest.mark.parametrize(
    "lossy", ["prune-tokens{at=(1,) at_least=3 force=true}", "evict-kv{scorer=knorm force=true}"]
)
def test_opt_compares_numbers_behind_passes_that_drop_tokens(
    elidir: Elidir, tmp_path: Path, lossy: str
) -> None:
    golden = Path(__file__).parents[1] / "passes" / "prune_tokens" / "layers.ir"
    plain, one = "%a : f32[B, N, 8]", "%one : f32[B, N, 8]"
    text = golden.read_text().partition("// ----\n")[0]
    text = text.replace(
        f"%r = add %h, {plain}", f"%one = mul %a, 1.0 : f32[B, N, 8]\n%r = add %h, {one}"
    )
    file = tmp_path / "step.ir"
    file.write_text(text)
    said = elidir("opt", file, "-p", f"{lossy}, canonicalize", "--numerics")
    assert said.code == 0, said.err
    assert "canonicalize: same numbers" in said.err


def test_opt_as_json(elidir: Elidir, file: Path) -> None:
    data = json.loads(elidir("opt", file, "--json", "--time").out)
    assert [p["name"] for p in data["passes"]] == ["cse"]
    assert data["passes"][0]["changed"]
    assert data["module"] == elidir("opt", file).out
    assert data["seconds"][0]["pass"] == "cse"


# ---- bisect


@pytest.mark.usefixtures("buggy")
def test_bisect_names_pass_and_rewrite_and_its_file_runs_again(
    elidir: Elidir, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again.ir"
    said = elidir("bisect", file, "-p", "canonicalize, buggy, dce", "-o", out)
    assert said.code == 0, said.err
    assert "the 2nd rewrite of pass 'buggy' breaks the module, at add second" in said.out
    assert "result 0 of @forward is off by" in said.out
    again = elidir("opt", "--numerics", out)
    assert again.code == 1
    assert "after buggy, result 0 of @forward is off by" in again.err
    assert "= mul %x, 3" in again.out


@pytest.mark.usefixtures("buggy")
def test_bisect_of_a_model(elidir: Elidir, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.ir"
    said = elidir("bisect", folder, "-p", "lossless", "-o", out)
    assert said.code == 1
    assert "nothing to bisect" in said.err
    assert not out.exists()
    said = elidir("bisect", folder, "-p", "fuse-gated-ffn, worse, dce", "-o", out, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["pass"], found["rewrite"]) == ("worse", 1)
    assert elidir("opt", "--numerics", out).code == 1


# ---- models


def test_explain_names_layers_passes_and_backends(elidir: Elidir, folder: Path) -> None:
    said = elidir("explain", folder, "--ir")
    assert said.code == 0, said.err
    assert "2 layers of 1 body" in said.out
    assert "incrementalize      applied" in said.out
    assert "ops on cpu" in said.out
    assert "func @step" in said.out
    data = json.loads(elidir("explain", folder, "--json").out)
    assert data["layers"] == 2
    assert {r["by"] for r in data["passes"]} >= {"incrementalize", "fuse-gated-ffn"}
    assert data["backends"]["@step"]["cpu"] > 0


FACTORY = """
import torch

def make():
    return torch.nn.Linear(2, 2), None, (torch.ones(3, 2),)
"""


def test_explain_of_a_factory_of_a_plain_module(
    elidir: Elidir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    said = elidir("explain", "plain_factory:make")
    assert said.code == 0, said.err
    assert "1 linear" in said.out


def test_report_of_a_model_and_of_a_description(elidir: Elidir, folder: Path) -> None:
    said = elidir("report", folder, "--targets", "p40,npu", "--prompt", 16, "--new", 4)
    assert said.code == 0, said.err
    assert "p40: NVIDIA Tesla P40" in said.out
    data = json.loads(elidir("report", "llama-3-70b", "--targets", "a100", "--json").out)
    assert [t["target"] for t in data["targets"]] == ["a100-80g"]
    assert data["parameters"] > 70e9


# ---- lists


def test_lists_come_from_the_registries(elidir: Elidir) -> None:
    found = json.loads(elidir("passes", "--json").out)
    assert [p["name"] for p in found["passes"]] == list(passes())
    assert all(p["summary"] for p in found["passes"])
    assert [t["name"] for t in json.loads(elidir("targets", "--json").out)] == list(targets())
    listed = json.loads(elidir("backends", "--json").out)
    assert [b["name"] for b in listed] == list(backend_names())


def test_lists_as_tables_and_one_by_one(elidir: Elidir) -> None:
    assert all(name in elidir("passes").out for name in passes())
    assert "Before::" in elidir("passes", "fuse-gated-ffn").out
    assert "fuse-projections" in elidir("passes", "lossless").out
    assert "a100-80g" in elidir("targets").out
    assert "peak_tflop_per_s" in elidir("targets", "a100").out
    assert "attention" in elidir("backends", "cpu").out
