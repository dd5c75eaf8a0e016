"""Compiled programs of named models, kept on disk: the second run of a model starts in seconds.

An entry's name is a hash of all that its content depends on: the model's files (by path, size and
time), pipeline, target, backends, dtype, and elidir's own sources. A damaged entry is built again
and remarked on. What an entry holds is in `elidir.frontends.artifact`.
"""

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import elidir
from elidir.compiled import Compiled
from elidir.cost_models import load_target
from elidir.frontends import (
    Artifact,
    ArtifactError,
    Options,
    Pictured,
    Tokenizer,
    build,
    fingerprint,
    is_artifact,
    load,
    read_artifact,
    source_files,
    write_artifact,
)
from elidir.ir import ElidirError, cache_folder
from elidir.passes import framed
from elidir.saving import load_for

KEPT = 8
"""So many compiled models are kept; the one that was used longest ago goes first."""

WORDS_ALONE = (
    "of a named model that reads pictures only the words are compiled; for pictures too, give "
    "elidir.compile the model itself, as from_pretrained loads it"
)

SOURCES = ("*.py", "*.yaml", "*.cpp", "*.h", "*.txt")
PACKAGES = ("ir", "passes", "cost_models", "backends", "frontends")


def compile_named(
    name: str,
    options: Options,
    notify: Callable[[str], object] = lambda stage: None,
    *,
    calibration: Any = None,
) -> Compiled:
    """Compile a model by its name, or find it compiled.

    Args:
        name: `smollm2`, a Hugging Face folder, a `.gguf` file, `module:factory` (never cached), or
            a folder that `Compiled.save` wrote, which is loaded.
        options: what it is compiled for.
        notify: is told of each long stage in a few words, before it begins.
        calibration: data for passes that need some.

    Raises:
        ElidirError: there is no such model, or it cannot be compiled.
    """
    if is_artifact(Path(name).expanduser()):
        if calibration is not None:
            raise ElidirError(
                f"{name} is compiled, with the calibration it was given; leave calibration out, or "
                "compile the model again"
            )
        notify(f"reading {name}")
        return load_for(name, options)
    files = source_files(name)
    if not files:
        return _face(_build(name, options, notify, calibration))
    folder = entry(name, files, options, calibration)
    found, remark = _find(folder)
    if found is not None:
        return _face(found)
    made = _build(name, options, notify, calibration)
    notify("writing the cache")
    remark = _keep(made, folder) or remark
    program = made.program
    noted = replace(program, remarks=(*program.remarks, remark)) if remark else program
    return _face(Artifact(noted, made.tokenizer))


def _face(artifact: Artifact) -> Compiled:
    return Compiled.of(artifact.program, artifact.tokenizer)


def _build(
    name: str, options: Options, notify: Callable[[str], object], calibration: Any
) -> Artifact:
    notify(f"loading {name}")
    loaded = load(name)
    notify("capturing and compiling")
    tokenizer = None if loaded.tokenizer is None else Tokenizer.of(loaded.tokenizer)
    program = build(
        loaded.model,
        options,
        loaded.example,
        storages=loaded.storages,
        calibration=calibration,
        tokenizer=tokenizer,
    )
    program.seconds["load model"] = loaded.seconds
    if Pictured.of(loaded.model) is not None:
        program = replace(program, remarks=(*program.remarks, WORDS_ALONE))
    return Artifact(program, tokenizer)


def _find(folder: Path) -> tuple[Artifact | None, str]:
    """Return the artifact of an entry, else a remark if there is one that cannot be used."""
    if not folder.exists():
        return None, ""
    try:
        found = read_artifact(folder)
    except ArtifactError as error:
        return None, f"built again: {error.message.partition('; ')[0]}"
    _touch(folder)
    return found, ""


def _touch(folder: Path) -> None:
    try:
        os.utime(folder)
    except OSError:  # a cache that may only be read is a cache all the same
        return


def _keep(artifact: Artifact, folder: Path) -> str:
    """Write an entry; returns a remark where that cannot be done."""
    try:
        write_artifact(artifact, folder, elidir.__version__)
        _prune(folder.parent)
    except (OSError, ArtifactError) as error:
        return f"not kept in the cache: {error}"
    return ""


def _prune(root: Path) -> None:
    entries = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    for old in sorted(entries, key=lambda p: p.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


# ---- where, and under what name


def entry(name: str, files: tuple[Path, ...], options: Options, calibration: Any = None) -> Path:
    """Return the folder of a compiled model: its name, and a hash of what it depends on."""
    data = None if calibration is None else fingerprint(calibration)
    text = json.dumps(_ingredients(files, options) | {"calibration": data}, sort_keys=True)
    stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in Path(name).stem)
    return cache_folder() / "models" / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _ingredients(files: tuple[Path, ...], options: Options) -> dict[str, Any]:
    return {
        "files": [_stamp(path) for path in files],
        "pipeline": framed(options.pipeline).fingerprint(),
        "target": load_target(options.target).sha,
        "backends": options.backends,
        "dtype": options.dtype and options.dtype.value,
        "sizes": [options.dynamic, options.static],
        "versions": [elidir.__version__, *map(_version, ("torch", "transformers", "gguf"))],
        "sources": own_sources(),
    }


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _version(package: str) -> str:
    """Return a package's version, read without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def own_sources() -> str:
    """Return a hash of elidir's own files."""
    digest = hashlib.sha256()
    for folder in sorted(set(_folders())):
        for path in sorted(p for pattern in SOURCES for p in folder.rglob(pattern)):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _folders() -> Iterator[Path]:
    yield from map(Path, elidir.__path__)
    for name in PACKAGES:
        found = importlib.util.find_spec(f"elidir.{name}")
        yield from map(Path, (found and found.submodule_search_locations) or ())
