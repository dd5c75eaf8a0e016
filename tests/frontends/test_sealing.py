"""What is saved is whole or not there, and any byte that is altered is found and its file named.

Harm of every kind, anywhere in any file, is drawn by hypothesis; full disks are made by a limit on
the size of files, interrupts by a weight that raises when it is written.
"""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import elidir
from elidir.backends import WeightStore
from elidir.compiled import Compiled
from elidir.frontends import ArtifactError, Options, Program, Tokenizer, build
from elidir.frontends.sealing import hashes, whole
from elidir.ir import ElidirError
from tests.zoo import NAMED

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def program() -> Program:
    return build(NAMED["llama"].factory(), Options())


@pytest.fixture(scope="module")
def saved(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a tokenizer."""
    from tests.cli.conftest import byte_tokenizer

    path = tmp_path_factory.mktemp("saved") / "model"
    Compiled.of(program, Tokenizer.of(byte_tokenizer())).save(path)
    return path


@pytest.fixture(scope="module")
def sound(saved: Path) -> Files:
    return contents(saved)


def contents(folder: Path) -> Files:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def restore(folder: Path, files: Files) -> None:
    for name, data in files.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != data:
            (folder / name).write_bytes(data)


# ---- damage


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)


def cut(path: Path, at: int, bit: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: at % len(data)])


def add(path: Path, at: int, bit: int) -> None:
    path.write_bytes(path.read_bytes() + bytes(1 + at % 3))


def move(path: Path, at: int, bit: int) -> None:
    """Move the first bytes to the end: nothing is lost, and all is elsewhere."""
    data = path.read_bytes()
    at = 1 + at % (len(data) - 1)
    moved = data[at:] + data[:at]
    path.write_bytes(moved if moved != data else b"")


def remove(path: Path, at: int, bit: int) -> None:
    path.unlink()


HARMS = [flip, flip, flip, cut, add, move, remove]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(HARMS), st.integers(0, 1 << 30), st.integers(0, 7))
def test_any_harm_to_any_file_is_found_and_the_file_named(
    saved: Path, sound: Files, data: Any, harm: Callable[[Path, int, int], None], at: int, bit: int
) -> None:
    name = data.draw(st.sampled_from(sorted(sound)))
    harm(saved / name, at, bit)
    try:
        with pytest.raises(ElidirError, match=name.replace(".", r"\.")):
            elidir.load(saved)
    finally:
        restore(saved, sound)
    assert elidir.load(saved).tokenizer is not None


def test_two_files_that_are_swapped_are_found(saved: Path, sound: Files) -> None:
    restore(saved, {"000.ir": sound["001.ir"], "001.ir": sound["000.ir"]})
    with pytest.raises(ElidirError, match=r"00[01]\.ir"):
        elidir.load(saved)
    restore(saved, sound)


def test_what_is_no_saved_model_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ElidirError, match=r"no folder .*nowhere"):
        elidir.load(tmp_path / "nowhere")
    with pytest.raises(ElidirError, match=r"holds no elidir\.json"):
        elidir.load(tmp_path)


def test_a_long_file_has_a_hash_for_each_piece(tmp_path: Path) -> None:
    from elidir.frontends import sealing

    path = tmp_path / "long"
    with path.open("wb") as file:
        file.truncate(2 * sealing.PIECE + 1)
    first, second, last = hashes([path])[path]
    assert first == second != last
    with path.open("r+b") as file:
        file.seek(sealing.PIECE)
        file.write(b"\1")
    assert [a == b for a, b in zip(hashes([path])[path], (first, second, last), strict=True)] == [
        True,
        False,
        True,
    ]


# ---- what goes wrong while saving


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1, 2000, 20_000])
def test_a_disk_without_room_leaves_the_old_model_whole(
    program: Program, tmp_path: Path, size: int
) -> None:
    path = tmp_path / "model"
    Compiled.of(program).save(path)
    before = contents(path)
    with no_file_over(size), pytest.raises(ElidirError, match=r"cannot save to .*model: "):
        Compiled.of(program).save(path)
    assert contents(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    elidir.load(path)


@dataclass
class Failing:
    """A weight that raises when it is written."""

    error: BaseException
    format: str = ""
    sha: str = ""

    def load(self) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("there", [False, True])
def test_an_interrupt_leaves_nothing_half_done(
    program: Program, tmp_path: Path, error: BaseException, there: bool
) -> None:
    path = tmp_path / "model"
    if there:
        Compiled.of(program).save(path)
    before = contents(path) if there else None
    store = WeightStore({n: program.store.source(n) for n in program.store} | {"x": Failing(error)})
    wanted = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ElidirError
    with pytest.raises(wanted):
        Compiled.of(replace(program, store=store)).save(path)
    assert [p.name for p in tmp_path.iterdir()] == (["model"] if there else [])
    assert before == (contents(path) if there else None)


@pytest.mark.parametrize("swaps", [True, False])
def test_the_name_is_never_without_a_folder_that_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    """With a system that swaps names in one step, and with one that has to rename twice."""
    from elidir.frontends import sealing

    if not swaps:
        monkeypatch.setattr(sealing, "_swapped", lambda one, other: False)
    for text in ("old", "new"):
        with whole(tmp_path / "a") as made:
            (made / "text").write_text(text)
    assert contents(tmp_path / "a") == {"text": b"new"}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(RuntimeError), whole(tmp_path / "a") as made:
        raise RuntimeError
    assert contents(tmp_path / "a") == {"text": b"new"}


def test_a_rename_that_fails_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from elidir.frontends import sealing

    monkeypatch.setattr(sealing, "_swapped", lambda one, other: False)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "text").write_text("old")
    renamed = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if (self / "text").read_text() == "new":
            raise OSError(5, "Input/output error")
        return renamed(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input"), whole(tmp_path / "a") as made:
        (made / "text").write_text("new")
    assert contents(tmp_path / "a") == {"text": b"old"}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# ---- what is never replaced


def test_what_elidir_did_not_write_is_never_replaced(program: Program, tmp_path: Path) -> None:
    fast = Compiled.of(program)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    fast.save(tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    for name, said in [
        ("file", "is no folder"),
        ("link", "is no folder"),
        ("folder", "holds notes.txt"),
        ("model", "holds notes.txt"),
    ]:
        with pytest.raises(ArtifactError, match=said):
            fast.save(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    elidir.load(tmp_path / "model")


def test_an_empty_folder_and_an_older_model_are_replaced(program: Program, tmp_path: Path) -> None:
    fast = Compiled.of(program)
    (tmp_path / "model").mkdir()
    fast.save(tmp_path / "model")
    fast.save(f"{tmp_path}/deeper/./model/")
    flip(tmp_path / "model" / "000.ir", 10, 1)
    fast.save(tmp_path / "model")
    elidir.load(tmp_path / "model")
    elidir.load(tmp_path / "deeper" / "model")
