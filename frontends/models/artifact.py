"""Artifacts: a compiled program on disk, as text, safetensors and JSON, each file with its hash.

`write_artifact` makes a folder whole or not at all; `read_artifact` gives the program back
without transformers and without the model's files, weights mapped from disk in the format they
came in. What is damaged, or is of another format, raises `ArtifactError`; nothing is unpickled.
Where artifacts are kept, and when they are used again, is the caller's.
"""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch.utils import _pytree as pytree

from elidir.backends import Source, WeightStore
from elidir.frontends.gguf import Storage
from elidir.frontends.program import Face, Options, Program
from elidir.frontends.sources import StoredSource
from elidir.frontends.tokenizer import Tokenizer
from elidir.ir import ElidirError, Module, parse_module
from elidir.passes import Applied, Missed, PipelineResult, Record, Remark

FORMAT = 1
META, WEIGHTS, TOKENIZER = "meta.json", "weights.safetensors", "tokenizer.json"


class ArtifactError(ElidirError):
    """A folder is no artifact, or not one that can be read, or a program cannot be made one."""


@dataclass(frozen=True, eq=False)
class Artifact:
    """What a folder holds: a program, and its tokenizer if the model has one."""

    program: Program
    tokenizer: Tokenizer | None = None


# ---- writing


def write_artifact(artifact: Artifact, folder: Path) -> None:
    """Write an artifact to a folder, which appears when it is whole; one that is there goes.

    Raises:
        ArtifactError: the program has a part that has no form on disk.
        OSError: the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _fill(artifact, made)
        _put_in_place(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _put_in_place(made: Path, folder: Path) -> None:
    """Rename; a folder that is in the way is moved aside first, and then removed."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        if folder.exists():
            folder.rename(aside / "old")
        made.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _fill(artifact: Artifact, folder: Path) -> None:
    program = artifact.program
    data = {"format": FORMAT, **_described(program)}
    for name, (_, module) in zip(_text_names(program.history), program.history, strict=True):
        (folder / name).write_text(str(module), encoding="utf-8")
    data["weights"] = _write_weights(program.store, folder / WEIGHTS)
    if artifact.tokenizer is not None:
        (folder / TOKENIZER).write_text(artifact.tokenizer.text, encoding="utf-8")
        special = dict(artifact.tokenizer.special)
        data["tokenizer"] = {"template": artifact.tokenizer.template, "special": special}
    data["files"] = {p.name: file_hash(p) for p in sorted(folder.iterdir())}
    text = json.dumps(data, indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / META).write_text(f"{digest}\n{text}", encoding="utf-8")


def _text_names(history: Sequence[Any]) -> list[str]:
    return [f"{i:03}.ir" for i in range(len(history))]


def _described(program: Program) -> dict[str, Any]:
    """Return all of a program that is not text or weights."""
    history = program.history
    if program.raised is not history[0][1] or program.module is not history[-1][1]:
        raise ArtifactError("a program's history must begin and end with its modules; report this")
    face = program.face
    return {
        "history": [name for name, _ in history],
        "inputs": face.inputs,
        "signature": face.signature,
        "counts_valid": face.counts_valid,
        "defaults": dict(face.defaults),
        "output": _output_text(face),
        "remarks": program.remarks,
        "records": [_record_data(r) for r in program.result.records],
        "seconds": program.seconds,
    }


def _output_text(face: Face) -> str | None:
    if face.out_spec is None:
        return None
    spec = face.out_spec() if callable(face.out_spec) else face.out_spec
    try:
        text = pytree.treespec_dumps(spec)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ArtifactError(f"the model's kind of output has no form on disk: {error}") from error
    for module in _modules_in(json.loads(text)):
        _check_module(module)
    return text


def _record_data(record: Record) -> dict[str, Any]:
    remarks = [{"kind": type(r).__name__.lower(), **asdict(r)} for r in record.remarks]
    return {
        "name": record.name,
        "changed": record.changed,
        "stats": dict(record.stats),
        "remarks": remarks,
    }


def _write_weights(store: WeightStore, path: Path) -> dict[str, Any]:
    """Write the weights; returns format and shape of those that are stored as blocks."""
    from safetensors.torch import save_file

    blocks: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name in store:
        tensor, block = _as_stored(store.source(name))
        if block is not None:
            blocks[name] = {"format": block.format, "shape": block.shape}
        shared = tensor.untyped_storage().data_ptr()
        apart = tensor.clone(memory_format=torch.contiguous_format) if shared in seen else tensor
        tensors[name] = apart.contiguous()
        seen.add(shared)
    save_file(tensors, path)
    return blocks


def _as_stored(source: Source) -> tuple[torch.Tensor, Storage | None]:
    if isinstance(source, StoredSource):
        return torch.from_numpy(np.ascontiguousarray(source.storage.raw)), source.storage
    return source.load(), None


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- reading


def read_artifact(folder: Path, options: Options) -> Artifact:
    """Read an artifact, its weights mapped from disk; `options` are those it was compiled with.

    Raises:
        ArtifactError: the folder is no artifact, is damaged, or is of another format.
    """
    started = time.perf_counter()
    try:
        data = _read_meta(folder)
        _check_files(folder, data["files"])
        program = _read_program(folder, data, options)
        made = Artifact(program, _read_tokenizer(folder, data))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ElidirError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ArtifactError(f"the artifact {folder} cannot be read: {first}; remove it") from error
    program.seconds["load artifact"] = time.perf_counter() - started
    return made


def _read_meta(folder: Path) -> dict[str, Any]:
    digest, _, text = (folder / META).read_text(encoding="utf-8").partition("\n")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ArtifactError(f"{META} is damaged")
    data: dict[str, Any] = json.loads(text)
    if data["format"] != FORMAT:
        raise ArtifactError(f"it is of format {data['format']}, not {FORMAT}")
    return data


def _check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    for name, wanted in hashes.items():
        if file_hash(folder / Path(name).name) != wanted:
            raise ArtifactError(f"{name} is damaged")


def _read_program(folder: Path, data: dict[str, Any], options: Options) -> Program:
    names = _text_names(data["history"])
    history = Texts(tuple(data["history"]), tuple((folder / n).read_text("utf-8") for n in names))
    output = data["output"]
    face = Face(
        inputs=tuple(data["inputs"]),
        out_spec=None if output is None else StoredSpec(output),
        counts_valid=data["counts_valid"],
        defaults=data["defaults"],
        signature=tuple(data["signature"]),
    )
    raised, module = history[0][1], history[-1][1]
    result = PipelineResult(module, tuple(_record(r) for r in data["records"]))
    store = WeightStore(_read_weights(folder / WEIGHTS, data["weights"]))
    remarks = tuple(data["remarks"])
    return Program(raised, module, store, face, options, result, history, remarks)


class Texts(Sequence[tuple[str, Module]]):
    """The history of a program, each module parsed when it is first asked for."""

    def __init__(self, names: Sequence[str], texts: Sequence[str]) -> None:
        self._names, self._texts = names, texts
        self._parsed: dict[int, Module] = {}

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, at: int) -> tuple[str, Module]: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[tuple[str, Module]]: ...
    def __getitem__(self, at: int | slice) -> Any:
        """Return a pass's text and the module after it."""
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        index = range(len(self))[at]
        if index not in self._parsed:
            self._parsed[index] = parse_module(self._texts[index])
        return self._names[index], self._parsed[index]


def _record(data: Mapping[str, Any]) -> Record:
    remarks = tuple(_remark(dict(r)) for r in data["remarks"])
    return Record(data["name"], data["changed"], data["stats"], remarks)


def _remark(data: dict[str, Any]) -> Remark:
    kinds: dict[str, type[Applied] | type[Missed]] = {"applied": Applied, "missed": Missed}
    return kinds[data.pop("kind")](**data)


def _read_weights(path: Path, blocks: Mapping[str, Any]) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return {name: _source(tensor, blocks.get(name)) for name, tensor in tensors.items()}


def _source(tensor: torch.Tensor, block: Mapping[str, Any] | None) -> Any:
    if block is None:
        return tensor
    return StoredSource(Storage(block["format"], tensor.numpy(), tuple(block["shape"])))


def _read_tokenizer(folder: Path, data: Mapping[str, Any]) -> Tokenizer | None:
    if "tokenizer" not in data:
        return None
    text = (folder / TOKENIZER).read_text(encoding="utf-8")
    return Tokenizer(text, data["tokenizer"]["template"], data["tokenizer"]["special"])


# ---- kinds of output


@dataclass(frozen=True)
class StoredSpec:
    """A tree of outputs as text; the classes in it are imported when it is first called."""

    text: str

    def __call__(self) -> pytree.TreeSpec:
        """Return the tree."""
        for module in _modules_in(json.loads(self.text)):
            _check_module(module)
            import_module(module)
        return pytree.treespec_loads(self.text)


def _modules_in(data: Any) -> Iterator[str]:
    """Yield the modules of the classes that a tree's text names, those of Python left out."""
    children = data["children_spec"] if isinstance(data, dict) else data
    kind = data.get("type") if isinstance(data, dict) else None
    if isinstance(kind, str) and "." in kind and not kind.startswith(("builtins.", "collections.")):
        yield kind.rpartition(".")[0]
    for child in children:
        if isinstance(child, dict):
            yield from _modules_in(child)


def _check_module(name: str) -> None:
    """Refuse outputs of other libraries: a file on disk must not choose what is imported."""
    if name.partition(".")[0] not in ("transformers", "torch"):
        raise ArtifactError(f"outputs of the type in {name} have no form on disk")
