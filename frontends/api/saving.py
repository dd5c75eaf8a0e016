"""Saving compiled models, and loading them again: what a user says, and how errors are worded.

The layout of a saved model, and how it is made whole or not at all, is in
`elidir.frontends.artifact`; it is the one that the cache on disk has.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import elidir
from elidir.compiled import Compiled
from elidir.compiler import check_backends
from elidir.cost_models import load_target
from elidir.frontends import (
    Artifact,
    ArtifactError,
    Options,
    Program,
    Tokenizer,
    read_artifact,
    write_artifact,
)
from elidir.ir import ElidirError
from elidir.passes import PipelineError, framed


def save(program: Program, path: Any, tokenizer: Any = None) -> str:
    """Write a program to a folder, with its tokenizer; returns the hash of all of it."""
    folder = Path(path).expanduser()
    artifact = Artifact(program, _tokenizer(tokenizer))
    try:
        return write_artifact(artifact, folder, elidir.__version__)
    except OSError as error:
        what = error.strerror or str(error)
        raise ArtifactError(
            f"cannot save to {folder}: {what}; what was there is untouched, make room or save "
            "elsewhere"
        ) from error


def load(path: Any, *, backend: str | Sequence[str] | None = None) -> Compiled:
    """Load a compiled model that was saved; it needs neither transformers nor the model's files.

    Args:
        path: the folder.
        backend: what runs, if not what it was compiled for.

    Raises `ElidirError` that names the file, if one is missing, altered, or of another format.
    """
    artifact = read_artifact(Path(path).expanduser())
    program, options = artifact.program, artifact.program.options
    wanted = check_backends(options.backends if backend is None else backend)
    chosen = replace(program, options=replace(options, backends=wanted))
    return Compiled.of(chosen, artifact.tokenizer)


def load_for(name: str, options: Options) -> Compiled:
    """Load a saved model where a name was given; a remark says how it was compiled, if unusually.

    Options that are not the usual ones must be those that it was compiled with, but for the
    backend, which may be any. Raises `ElidirError` if they are others.
    """
    usual, noted = Options(), []
    backend = None if options.backends == usual.backends else options.backends
    program = (made := load(name, backend=backend)).program
    for field in ("pipeline", "target", "dtype", "dynamic", "static"):
        given, saved = getattr(options, field), getattr(program.options, field)
        if _meant(field, given) == _meant(field, saved):
            continue
        if given != getattr(usual, field):
            raise ElidirError(
                f"{name} was compiled with {field} '{_shown(saved)}', not '{_shown(given)}'; "
                "leave it out, or compile the model again"
            )
        noted.append(f"{field} '{_shown(saved)}'")
    if not noted:
        return made
    remark = f"{name} was compiled with {', '.join(noted)}"
    return Compiled.of(replace(program, remarks=(*program.remarks, remark)), made.tokenizer)


def _meant(field: str, value: Any) -> Any:
    """Return what two options that mean the same have in common."""
    if field == "pipeline":
        try:
            return str(framed(value))
        except PipelineError:  # a saved one may name passes that are not installed here
            return value
    return load_target(value).sha if field == "target" else value


def _shown(value: Any) -> str:
    return str(getattr(value, "value", value))


def _tokenizer(given: Any) -> Tokenizer | None:
    if given is None or isinstance(given, Tokenizer):
        return given
    made = Tokenizer.of(given)
    if made is None:
        raise ElidirError(
            f"a {type(given).__name__} cannot be saved; give a fast tokenizer of transformers"
        )
    return made
