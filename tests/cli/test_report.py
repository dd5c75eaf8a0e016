"""`elidir report`: its forms, files, and mistakes, which are said before a model is loaded."""

import csv
import io
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Elidir


def refused(elidir: Elidir, *args: object) -> str:
    said = elidir("report", *args)
    assert (said.code, said.out) == (1, ""), said
    (line,) = said.err.splitlines()
    return line


def test_each_form_goes_to_its_file(elidir: Elidir, tmp_path: Path) -> None:
    common = ("report", "smollm2-135m", "--targets", "p40,m2")
    starts = {"html": "<!DOCTYPE html>", "md": "# smollm2-135m", "csv": "table,target"}
    for form, start in starts.items():
        file = tmp_path / f"out.{form}"
        said = elidir(*common, f"--{form}", file)
        assert (said.code, said.out, said.err.strip()) == (0, "", f"written to {file}")
        assert file.read_text().startswith(start)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "out.html", "out.md"]


def test_a_dash_is_stdout(elidir: Elidir) -> None:
    said = elidir("report", "smollm2-135m", "--targets", "p40", "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert {r["target"] for r in rows} == {"p40"}
    data = json.loads(elidir("report", "smollm2-135m", "--targets", "p40", "--json").out)
    (prefill,) = (r for r in rows if (r["table"], r["phase"]) == ("figures", "prefill"))
    wanted = data["targets"][0]["phases"][0]["seconds"]
    assert float(prefill["seconds"]) == pytest.approx(wanted, rel=1e-5)


def test_a_model_is_measured_beside_its_prediction(elidir: Elidir, folder: Path) -> None:
    sizes = ("--prompt", 8, "--new", 4)
    said = elidir("report", folder, "--targets", "cpu,p40", "--measure", "--json", *sizes)
    data = json.loads(said.out)
    cpu, p40 = data["targets"]
    assert [m["phase"] for m in cpu["measured"]] == ["prefill", "decode"]
    for m, phase in zip(cpu["measured"], cpu["phases"], strict=True):
        assert 0 < m["least_seconds"] <= m["measured_seconds"] <= m["most_seconds"]
        assert (m["seconds"], m["bound"]) == (phase["seconds"], phase["bound"])
        assert "f32" in m["how"]
    assert not p40["measured"]
    assert data["dtype"] == "f32"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--html", "a.html", "--json"], "give one of --html, --md, --csv and --json"),
        (["--html", "a.html", "--csv", "b.csv"], "give one of --html, --md, --csv and --json"),
        (["--html", "{tmp}"], "is a folder; name a file in it"),
        (["--md", "{tmp}/none/a.md"], "there is no folder {tmp}/none to write a.md to; make it"),
        (["--csv", "/proc/a.csv"], "cannot write /proc/a.csv: "),
        (["--targets", "p4"], "did you mean 'p40'?"),
        (["--targets", ","], "no target is named"),
        (["--targets", "p40", "--measure"], "add cpu to --targets"),
        (["--targets", "cpu", "--measure", "--dtype", "i8"], "runs in f32, bf16 or f16, not in i8"),
    ],
)
def test_mistakes_are_said_early(
    elidir: Elidir,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    says: str,
) -> None:
    from elidir import cache

    def never(*args: object, **kwargs: object) -> None:
        pytest.fail("a model is loaded")

    monkeypatch.setattr(cache, "compile_named", never)
    given = [o.format(tmp=tmp_path) for o in options]
    assert says.format(tmp=tmp_path) in refused(elidir, folder, *given)
    assert not list(tmp_path.iterdir())


def test_a_description_has_nothing_to_run(elidir: Elidir) -> None:
    line = refused(elidir, "smollm2-135m", "--targets", "cpu", "--measure")
    assert "without weights to run" in line
    line = refused(elidir, "smollm2-135m", "--pipeline", "lossless, cse")
    assert "without a program that passes change; drop --pipeline" in line


def test_the_usual_request_fits_the_model(elidir: Elidir, folder: Path) -> None:
    data = json.loads(elidir("report", folder, "--targets", "p40", "--json").out)
    assert 0 < data["prompt"] < data["prompt"] + data["new"] <= 64
    line = refused(elidir, folder, "--targets", "p40", "--prompt", 512)
    assert "T = 512 is outside of what the model takes, [1, 64]; give a" in line


def test_calibration_is_taken(elidir: Elidir, folder: Path, tmp_path: Path) -> None:
    text, seen = tmp_path / "text.txt", tmp_path / "seen.safetensors"
    text.write_text("A text to calibrate on, which is longer than one window. " * 4)
    line = refused(elidir, folder, "-p", "extract-outliers", "--calibration", seen)
    assert "make them by `elidir calibrate`" in line
    assert elidir("calibrate", folder, text, "-o", seen).code == 0
    args = ("--targets", "p40", "--json", "-p", "extract-outliers{force=true}")
    said = elidir("report", folder, *args, "--calibration", seen)
    assert said.code == 0, said.err
    assert "extract-outliers" in said.out


def test_what_was_there_stays_if_the_model_is_wrong(elidir: Elidir, tmp_path: Path) -> None:
    file = tmp_path / "out.html"
    file.write_text("old")
    assert "did you mean" in refused(elidir, "smolm2", "--html", file)
    assert file.read_text() == "old"
