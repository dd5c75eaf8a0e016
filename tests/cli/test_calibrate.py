"""`elidir calibrate`: the file that it writes, for a model and a saved one, and what it refuses."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Elidir


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of a few windows."""
    path = tmp_path / "text.txt"
    path.write_text("A text to calibrate on, which is longer than one window. " * 8)
    return path


def test_a_saved_model_is_calibrated_as_the_model_is(
    elidir: Elidir, folder: Path, text: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    pipeline = "lossless, extract-outliers{force=true}"
    assert elidir("compile", folder, "-p", pipeline, "-o", saved).code == 0
    for at, model in enumerate((folder, saved)):
        out = tmp_path / f"{at}.safetensors"
        said = elidir("calibrate", model, text, "-o", out)
        assert said.code == 0, said.err
        assert said.out == f"{out}: linear-inputs, attention-lost of 448 tokens\n"
    one, other = (
        elidir("explain", folder, "-p", pipeline, "--calibration", tmp_path / f"{at}.safetensors")
        for at in (0, 1)
    )
    assert one.out.partition("(hash")[0] == other.out.partition("(hash")[0]
    assert "calibrated on text.txt, 448 tokens (hash" in one.out


def test_its_json_has_the_provenance(elidir: Elidir, folder: Path, text: Path) -> None:
    data = json.loads(elidir("calibrate", folder, text, "-o", "a.safetensors", "--json").out)
    assert (data["source"], data["tokens"]) == ("text.txt", 448)
    assert {"network", "data", "recorded", "elidir", "path", "observations"} < set(data)


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("seen.bin", "name it seen.safetensors"),
        ("none/seen.safetensors", "there is no folder none to write seen.safetensors to"),
    ],
)
def test_a_bad_place_is_said_early(
    elidir: Elidir, text: Path, monkeypatch: pytest.MonkeyPatch, out: str, says: str
) -> None:
    from elidir import cache

    monkeypatch.setattr(cache, "compile_named", lambda *args: pytest.fail("a model is loaded"))
    said = elidir("calibrate", "smollm2", text, "-o", out)
    assert (said.code, says in said.err) == (1, True), said.err


def test_a_text_that_is_none_is_refused(elidir: Elidir, folder: Path, text: Path) -> None:
    for content, says in ((b"", "is empty"), (b"caf\xe9", "is not UTF-8"), (b"Hi", "shorter than")):
        text.write_bytes(content)
        assert says in elidir("calibrate", folder, text, "-o", "a.safetensors").err
    assert not Path("a.safetensors").exists()
