"""Bad input through the command line: one sentence with the remedy, exit code 1, early."""

from pathlib import Path

import pytest

from tests.cli.conftest import POSITIONS, Elidir

IR = """module @m stage=raised {
  sym T in [1, 64]
  func @forward(%x: f32[T, 8]) {
    %a = adds %x, %x : f32[T, 8]
    return %a
  }
}
"""


def refused(elidir: Elidir, *args: object) -> str:
    """Return the one line that a command ends with."""
    said = elidir(*args)
    assert (said.code, said.out) == (1, ""), said
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model's weights are read before the mistake is said."""
    from transformers import PreTrainedModel

    def never(*args: object, **kwargs: object) -> None:
        pytest.fail("a model is loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", never)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--pipeline", "fuse-projection"], "did you mean 'fuse-projections'?"),
        (["--pipeline", "cse{limit=2}"], "pass 'cse' has no option 'limit'"),
        (["--pipeline", "balance"], "did you mean 'balanced'?"),
        (["--pipeline", "missing.yaml"], "cannot read the pipeline missing.yaml"),
        (["--target", "cpuu"], "did you mean 'cpu'?"),
        (["--backend", "referense"], "did you mean 'reference'?"),
        (["--dtype", "float99"], "give float32, bfloat16 or float16"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "1.5"], "top_p"),
    ],
)
def test_options_of_run(elidir: Elidir, folder: Path, options: list[str], says: str) -> None:
    assert says in refused(elidir, "run", folder, "Hi", *options)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt(elidir: Elidir, folder: Path, prompt: str) -> None:
    assert "the prompt is empty" in refused(elidir, "run", folder, prompt)


def test_a_prompt_that_is_too_long(elidir: Elidir, folder: Path) -> None:
    line = refused(elidir, "run", folder, "long " * 100)
    assert f"500 tokens and the model {POSITIONS} positions" in line
    line = refused(elidir, "run", folder, "Hi", "--max-new-tokens", "9999")
    assert f"max_new_tokens is 9999 and the model has {POSITIONS} positions" in line


def test_unknown_models(elidir: Elidir, tmp_path: Path) -> None:
    assert "did you mean 'smollm2'?" in refused(elidir, "run", "smolm2", "Hi")
    assert "holds no config.json" in refused(elidir, "explain", tmp_path)
    assert "there is no file" in refused(elidir, "report", tmp_path / "none.gguf")


def test_a_gguf_that_is_none(elidir: Elidir, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04 nothing of the kind")
    assert "is no GGUF file" in refused(elidir, "run", file, "Hi")
    file.write_bytes(b"GGUF\x03\x00\x00\x00\x05")
    assert "is a damaged GGUF file" in refused(elidir, "run", file, "Hi")


def test_a_target_file_with_a_wrong_field(elidir: Elidir, folder: Path, tmp_path: Path) -> None:
    text = elidir("targets", "p40").out
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("memory_gb:", "memory_gigabytes:"))
    assert "memory_gigabytes" in refused(elidir, "report", folder, "--targets", file)
    file.write_text(text.replace("runs_on:", "# runs_on:"))
    assert "runs_on" in refused(elidir, "run", folder, "Hi", "--target", file)


def test_a_malformed_file_of_ir(elidir: Elidir, tmp_path: Path) -> None:
    file = tmp_path / "m.ir"
    file.write_text(IR)
    line = refused(elidir, "opt", file, "-p", "cse")
    assert "line 4" in line
    assert "did you mean 'add'?" in line
    assert "add one, or use --pipeline" in refused(elidir, "opt", file)
    assert "cannot read" in refused(elidir, "opt", tmp_path / "none.ir", "-p", "cse")


def test_the_rest(elidir: Elidir, tmp_path: Path) -> None:
    file = tmp_path / "m.ir"
    file.write_text(IR.replace("adds %x", "add %x"))
    assert "did you mean 'cse'?" in refused(elidir, "passes", "csee")
    assert "did you mean 'cpu'?" in refused(elidir, "backends", "cpuu")
    assert "only this host can be measured" in refused(elidir, "targets", "p40", "--measure")
    assert "no pass 'dce'" in refused(elidir, "opt", file, "-p", "cse", "--after", "dce")
    assert "nothing to bisect" in refused(elidir, "bisect", file, "-p", "cse")


def test_a_wrong_command_line_is_two(elidir: Elidir) -> None:
    assert elidir("run").code == 2
    assert elidir("compille").code == 2
    assert elidir("run", "smollm2", "Hi", "--top-k", "many").code == 2
