"""Sealed folders: files that come to be together or not at all, and that nobody can alter unseen.

A folder is sealed by its manifest, a JSON file that begins with the hash of the rest of itself and
holds length and hashes of every other file. `whole` makes a folder beside its place and renames it;
`open_sealed` checks all of it and names the file that is wrong. What the files mean is not known
here.
"""

import ctypes
import hashlib
import json
import mmap
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elidir.ir import ElidirError

MANIFEST = "elidir.json"
FORMAT = 3
"""The number of the layout that docs/saving.md describes; of 2 an op had other operands."""

PIECE = 1 << 25
"""Bytes that are hashed at a time; the pieces of a long file are hashed on several threads."""

HEAD = '{\n "sha256": "'
DIGEST = 64
THREADS = 8


class ArtifactError(ElidirError):
    """A folder is no artifact, or not one that can be read, or a program cannot be made one."""


# ---- a folder, whole or not at all


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Give a new folder to fill; it takes the place of `folder` when the block ends well.

    What was there goes then, in one step; until then, and after any error, it is untouched.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    made.mkdir()
    try:
        yield made
        for path in (*made.iterdir(), made):
            _to_disk(path)
        _put_in_place(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Wait until a file is on the disk: some systems say only then that there is no room."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put_in_place(made: Path, folder: Path) -> None:
    """Rename; with a folder that is there the names are swapped, and `made` is the old one then."""
    if not folder.exists():
        made.rename(folder)
    elif not _swapped(made, folder):
        aside = made.with_name(f"{made.name}.old")
        folder.rename(aside)
        try:
            made.rename(folder)
        except BaseException:
            aside.rename(folder)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _swapped(one: Path, other: Path) -> bool:
    """Swap two names in one step, where the system can."""
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(call) and not call(here, os.fsencode(one), here, os.fsencode(other), exchange)


# ---- sealing


def seal(folder: Path, data: Mapping[str, Any]) -> str:
    """Write the manifest of a folder that is complete; returns the hash that covers everything."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": found}
        for path, found in hashes(sorted(folder.iterdir())).items()
    }
    text = json.dumps({"format": FORMAT, **data, "files": files}, indent=1)
    rest = text.removeprefix("{\n").encode()
    digest = hashlib.sha256(rest).hexdigest()
    (folder / MANIFEST).write_bytes(f'{HEAD}{digest}",\n'.encode() + rest)
    return digest


def open_sealed(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder in which every byte is as it was sealed.

    Raises:
        ArtifactError: a file is missing or altered, or of another format; the message names it.
    """
    data = read_manifest(folder)
    wanted = data["files"]
    for name, entry in wanted.items():
        _check_length(folder, name, entry["bytes"])
    found = hashes([folder / name for name in wanted])
    for path, digests in found.items():
        if digests != wanted[path.name]["sha256"]:
            raise ArtifactError(f"{path.name} is damaged")
    return data


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest, which is checked; the other files are not."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"it holds no {MANIFEST}")
    found = path.read_bytes()
    at = len(HEAD)
    digest, rest = found[at : at + DIGEST], found[at + DIGEST + 3 :]
    sound = f'{HEAD}{hashlib.sha256(rest).hexdigest()}",\n'.encode()
    if found[: at + DIGEST + 3] != sound:
        raise ArtifactError(f"{MANIFEST} is damaged")
    data: dict[str, Any] = json.loads(found)
    if data.get("format") != FORMAT:
        by = data.get("made", {}).get("elidir", "another elidir")
        raise ArtifactError(
            f"{MANIFEST} is of format {data.get('format')}, written by elidir {by}; "
            f"this elidir reads format {FORMAT}"
        )
    return data | {"sha256": digest.decode()}


def _check_length(folder: Path, name: str, wanted: int) -> None:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise ArtifactError(f"{name} is missing")
    if (size := path.stat().st_size) != wanted:
        kind = "cut short" if size < wanted else "too long"
        raise ArtifactError(f"{name} is {kind}: {size} bytes instead of {wanted}")


# ---- hashes


def hashes(paths: list[Path]) -> dict[Path, list[str]]:
    """Return the SHA-256 of each piece of each file, made on several threads."""
    pieces = [(p, at) for p in paths for at in range(0, max(1, p.stat().st_size), PIECE)]
    found: dict[Path, list[str]] = {path: [] for path in paths}
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for (path, _), digest in zip(pieces, pool.map(_piece_hash, pieces), strict=True):
            found[path].append(digest)
    return found


def _piece_hash(piece: tuple[Path, int]) -> str:
    path, start = piece
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return hashlib.sha256().hexdigest()
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            memoryview(data) as view,
            view[start : start + PIECE] as part,
        ):
            return hashlib.sha256(part).hexdigest()


def reason(error: BaseException) -> str:
    """Return what went wrong with a file in a few words."""
    if isinstance(error, KeyError):
        return f"{MANIFEST} has no field {error}"
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().partition("\n")[0] or type(error).__name__
