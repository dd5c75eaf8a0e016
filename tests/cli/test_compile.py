"""`elidir compile -o`, and the other verbs on what it saved."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Elidir


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, compiled in bfloat16 and saved."""
    import elidir

    path = tmp_path_factory.mktemp("saved") / "model"
    elidir.compile(str(folder), dtype="bfloat16").save(path)
    return path


def test_compile_says_where_and_how_much(elidir: Elidir, folder: Path, tmp_path: Path) -> None:
    said = elidir("compile", folder, "-o", tmp_path / "a", "--dtype", "bfloat16")
    assert said.code == 0, said.err
    assert said.out.startswith(f"{tmp_path / 'a'}: 0.")
    again = elidir("compile", folder, "-o", tmp_path / "a", "--dtype", "bfloat16", "--json")
    data = json.loads(again.out)
    files = {p.name: p.stat().st_size for p in (tmp_path / "a").iterdir()}
    assert (data["files"], data["bytes"]) == (files, sum(files.values()))
    assert json.loads((tmp_path / "a" / "elidir.json").read_text())["sha256"] == data["sha256"]
    assert data["tokenizer"]


def test_verbs_take_a_saved_model(
    elidir: Elidir, folder: Path, saved: Path, tmp_path: Path
) -> None:
    run = json.loads(elidir("run", saved, "Hi", "--max-new-tokens", 8, "--json").out)
    args = ("Hi", "--max-new-tokens", 8, "--dtype", "bfloat16", "--json")
    assert run["tokens"] == json.loads(elidir("run", folder, *args).out)["tokens"]
    assert "capture" not in run["seconds"]
    assert run["remarks"] == [f"{saved} was compiled with dtype 'bf16'"]
    said = elidir("explain", saved, "--backend", "reference")
    assert said.code == 0, said.err
    assert "ops on reference" in said.out
    assert "on cpu" not in said.out
    assert elidir("report", saved, "--targets", "p40", "--prompt", 16, "--new", 4).code == 0
    assert "nothing to bisect" in elidir("bisect", saved, "-p", "lossless").err
    assert elidir("compile", saved, "-o", saved).code == 0
    text = tmp_path / "text"
    text.write_text("A saved model is measured beside the original that is in it. " * 4)
    said = elidir("verify", saved, text, "--window", 32, "--json")
    assert said.code == 0, said.err
    assert 0 < json.loads(said.out)["quality"]["kl"]["value"] < 0.1  # bfloat16 beside float32


def test_options_that_are_not_its_own_are_refused(elidir: Elidir, saved: Path) -> None:
    said = elidir("run", saved, "Hi", "--dtype", "float16")
    assert said.code == 1
    assert "was compiled with dtype 'bf16', not 'f16'; leave it out" in said.err
    assert elidir("run", saved, "Hi", "--dtype", "bfloat16", "--max-new-tokens", 2).code == 0
    assert "with target 'cpu'" in elidir("explain", saved, "--target", "p40").err
    assert "with pipeline" in elidir("explain", saved, "--pipeline", "cse").err


def test_what_cannot_be_read_or_written_is_said(
    elidir: Elidir, folder: Path, saved: Path, tmp_path: Path
) -> None:
    assert elidir("compile", folder).code == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    said = elidir("compile", saved, "-o", tmp_path / "mine")
    assert said.code == 1
    assert "holds notes.txt, which elidir did not write" in said.err
    elidir("compile", saved, "-o", tmp_path / "harmed")
    (tmp_path / "harmed" / "tokenizer.json").unlink()
    said = elidir("run", tmp_path / "harmed", "Hi")
    assert said.code == 1
    assert "tokenizer.json is missing; compile the model again" in said.err
