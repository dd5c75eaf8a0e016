"""Artifacts: what is read back runs as what was written. Damage is in test_sealing."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from elidir.backends import WeightStore
from elidir.compiled import Compiled
from elidir.frontends import (
    Artifact,
    ArtifactError,
    Options,
    Program,
    Storage,
    Tokenizer,
    build,
    read_artifact,
    write_artifact,
)
from elidir.frontends.sealing import FORMAT, MANIFEST, read_manifest, seal
from tests.zoo import NAMED

LLAMA = NAMED["llama"]


@pytest.fixture(scope="module")
def program() -> Program:
    """A tiny model of transformers, one of its weights stored in blocks."""
    model = LLAMA.factory()
    name, weight = next((n, p) for n, p in model.named_parameters() if p.dim() == 2)
    half = weight.detach().half()
    weight.data = half.float()
    raw = half.view(torch.uint8).numpy().reshape(half.shape[0], -1)
    stored = {name: Storage("f16", np.ascontiguousarray(raw), tuple(half.shape))}
    return build(model, Options(), storages=stored)


@pytest.fixture
def folder(program: Program, tmp_path: Path) -> Path:
    path = tmp_path / "artifact"
    write_artifact(Artifact(program), path)
    return path


def test_the_program_comes_back(program: Program, folder: Path) -> None:
    found = read_artifact(folder).program
    assert str(found.module) == str(program.module)
    assert str(found.raised) == str(program.raised)
    assert [(n, str(m)) for n, m in found.history] == [(n, str(m)) for n, m in program.history]
    assert found.result.records == program.result.records
    assert replace(found.face, out_spec=None) == replace(program.face, out_spec=None)
    assert Compiled.of(found).explain().splitlines()[0] in Compiled.of(program).explain()


def test_it_computes_the_same_to_the_bit(program: Program, folder: Path) -> None:
    inputs = LLAMA.example(2, 9)
    wanted = Compiled.of(program)(**inputs)
    loaded = Compiled.of(read_artifact(folder).program)
    found = loaded(**inputs)
    assert type(found) is type(wanted)
    assert torch.equal(found.logits, wanted.logits)
    ids = inputs["input_ids"][:1]
    assert torch.equal(
        loaded.generate(ids, max_new_tokens=6),
        Compiled.of(program).generate(ids, max_new_tokens=6),
    )


def test_blocks_stay_blocks(program: Program, folder: Path) -> None:
    store = read_artifact(folder).program.store
    (name,) = read_manifest(folder)["blocks"]
    found, wanted = store.source(name), program.store.source(name)
    assert found.storage.format == wanted.storage.format == "f16"
    assert found.storage.raw.dtype == np.uint8
    assert found.sha == wanted.sha
    assert torch.equal(found.load(), wanted.load())


def test_reading_needs_neither_transformers_nor_capture(program: Program, folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from elidir.frontends import read_artifact\n"
        f"p = read_artifact(Path({str(folder)!r})).program; p.step\n"
        "print('transformers' in sys.modules, 'networkx' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == ["False", "False"], run.stderr


def reseal(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and make its hashes fit."""
    data = read_manifest(folder)
    change(data)
    (folder / MANIFEST).unlink()
    seal(folder, {k: v for k, v in data.items() if k not in ("files", "sha256")})


def test_another_format_is_refused(folder: Path) -> None:
    reseal(folder, lambda data: data.update(format=99))
    with pytest.raises(
        ArtifactError, match=rf"elidir.json is of format 99, .* reads format {FORMAT}"
    ):
        read_artifact(folder)


def test_a_field_that_is_missing_is_named(folder: Path) -> None:
    reseal(folder, lambda data: data.pop("signature"))
    with pytest.raises(ArtifactError, match=r"elidir.json has no field 'signature'"):
        read_artifact(folder)


def test_the_page_on_the_format_names_every_field_and_file(program: Program, theirs: Any) -> None:
    """Whoever changes the layout changes its description, and looks at the number beside it."""
    page = (Path(__file__).parents[2] / "docs" / "saving.md").read_text()
    told = {
        n for row in re.findall(r"^\| (`.*?) \|", page, re.M) for n in re.findall(r"`(.*?)`", row)
    }
    with tempfile.TemporaryDirectory() as place:
        write_artifact(Artifact(program, Tokenizer.of(theirs)), Path(place) / "a")
        found = read_manifest(Path(place) / "a")
        files = {p.name for p in (Path(place) / "a").iterdir() if p.suffix != ".ir"}
    assert files <= told
    assert set(found) - {"sha256"} == told - files - {"target.yaml", "000.ir", "001.ir"}
    assert f"The layout, format {FORMAT}" in page


def test_a_file_does_not_choose_what_is_imported(program: Program, folder: Path) -> None:
    def foreign(data: dict[str, Any]) -> None:
        data["output"] = data["output"].replace("transformers.modeling_outputs", "antigravity")

    reseal(folder, foreign)
    found = Compiled.of(read_artifact(folder).program)
    with pytest.raises(ArtifactError, match="antigravity"):
        found(**LLAMA.example(1, 5))
    assert "antigravity" not in sys.modules


def test_a_folder_that_is_there_is_replaced_whole(program: Program, folder: Path) -> None:
    (folder / "099.ir").write_text("of a longer history")
    write_artifact(Artifact(program), folder)
    assert not (folder / "099.ir").exists()
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    read_artifact(folder)


def test_weights_that_share_memory_are_written_apart(program: Program, tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    store = WeightStore({"a": base, "b": base[1:], "c": base.t()})
    write_artifact(Artifact(replace(program, store=store)), tmp_path / "a")
    found = read_artifact(tmp_path / "a").program.store
    for name in store:
        assert torch.equal(found.source(name).load(), store.source(name).load())


class Pair(nn.Module):
    """A module with a nested output of plain containers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"a": self.linear(x), "b": (x * 2, [x + 1])}


def test_outputs_of_plain_containers(tmp_path: Path) -> None:
    model, x = Pair(), torch.randn(3, 4)
    program = build(model, Options(), (x,))
    write_artifact(Artifact(program), tmp_path / "a")
    found = Compiled.of(read_artifact(tmp_path / "a").program)(x)
    torch.testing.assert_close(found, model(x))


# ---- tokenizers


@pytest.fixture(scope="module")
def theirs() -> Any:
    from tests.cli.conftest import byte_tokenizer

    return byte_tokenizer()


def test_a_tokenizer_comes_back(program: Program, theirs: Any, tmp_path: Path) -> None:
    write_artifact(Artifact(program, Tokenizer.of(theirs)), tmp_path / "a")
    found = read_artifact(tmp_path / "a").tokenizer
    assert found is not None
    text = "Wörter, 言葉 and 🙂"
    assert found.encode(text) == theirs(text).input_ids
    assert found.decode(found.encode(text)) == text
    messages = [{"role": "user", "content": text}]
    wanted = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert found.chat(messages) == wanted
    assert found.encode_chat(text) == theirs(wanted, add_special_tokens=False).input_ids


def test_a_stream_holds_back_half_a_character(theirs: Any) -> None:
    found = Tokenizer.of(theirs)
    assert found is not None
    text = "a言\nb🙂"
    ids = found.encode(text)
    stream = found.stream()
    parts = [stream.step(i) for i in ids]
    assert "".join(parts) == text
    assert parts[1:4] == ["", "", "言"]
    assert stream.end() == ""
    cut = found.stream()
    assert [cut.step(i) for i in ids[:2]] == ["a", ""]
    assert cut.end() == "\ufffd"
