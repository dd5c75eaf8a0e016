"""Artifacts: a compiled program on disk, as IR text, safetensors and JSON, hashed over all of it.

`write_artifact` makes a folder whole or not at all; `read_artifact` gives the program back
without transformers and without the model's files, weights mapped from disk in the format they
came in. What is damaged, or is of another format, raises `ArtifactError`; nothing is unpickled.
The layout is a public interface: docs/saving.md. Where artifacts are kept is the caller's.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from elidir.backends import WeightStore
from elidir.cost_models import dump_target, load_target
from elidir.frontends.face import Face
from elidir.frontends.outputs import StoredSpec, output_text
from elidir.frontends.program import Options, Program
from elidir.frontends.sealing import MANIFEST, ArtifactError, open_sealed, reason, seal, whole
from elidir.frontends.tensors import read_weights, write_weights
from elidir.frontends.tokenizer import Tokenizer
from elidir.ir import DType, ElidirError, Module, parse_module
from elidir.passes import Applied, Missed, PipelineResult, Record, Remark, framed

if TYPE_CHECKING:
    from elidir.frontends.calibration import Provenance

WEIGHTS, TOKENIZER, TARGET = "weights.safetensors", "tokenizer.json", "target.yaml"


@dataclass(frozen=True, eq=False)
class Artifact:
    """What a folder holds: a program, its tokenizer if it has one, the hash of all once written."""

    program: Program
    tokenizer: Tokenizer | None = None
    sha: str = ""


def is_artifact(folder: Path) -> bool:
    """Whether a path is a folder that holds, or held, an artifact."""
    return (folder / MANIFEST).is_file()


# ---- writing


def write_artifact(artifact: Artifact, folder: Path, made_by: str = "") -> str:
    """Write an artifact to a folder and return its hash; an artifact that is there is replaced.

    Raises:
        ArtifactError: something else is there, or the program has a part without a form on disk.
        OSError: the folder cannot be written.
    """
    _check_place(folder)
    with whole(folder) as made:
        data = {"made": {"elidir": made_by, "torch": torch.__version__}}
        data |= _described(artifact.program, made)
        for name, text in zip(data["texts"], _texts(artifact.program.history), strict=True):
            (made / name).write_text(text, encoding="utf-8")
        data["blocks"] = write_weights(artifact.program.store, made / WEIGHTS)
        if artifact.tokenizer is not None:
            (made / TOKENIZER).write_text(artifact.tokenizer.text, encoding="utf-8")
            special = dict(artifact.tokenizer.special)
            data["tokenizer"] = {"template": artifact.tokenizer.template, "special": special}
        return seal(made, data)


def _check_place(folder: Path) -> None:
    """Refuse to replace what no artifact is made of."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is there and is no folder; save to another path")
    known = {MANIFEST, WEIGHTS, TOKENIZER, TARGET}
    files = sorted(p.name for p in folder.iterdir())
    if foreign := [n for n in files if n not in known and not n.endswith(".ir")]:
        raise ArtifactError(
            f"the folder {folder} holds {foreign[0]}, which elidir did not write, and is not "
            "replaced; save to another path"
        )


def _texts(history: Sequence[tuple[str, Module]]) -> list[str]:
    return history.texts if isinstance(history, Texts) else [str(module) for _, module in history]


def _described(program: Program, folder: Path) -> dict[str, Any]:
    """Return all of a program that is not text or weights."""
    history = program.history
    if program.raised is not history[0][1] or program.module is not history[-1][1]:
        raise ArtifactError("a program's history must begin and end with its modules; report this")
    face = program.face
    return {
        "compiled": _options_data(program, folder),
        "texts": [f"{i:03}.ir" for i in range(len(history))],
        "after": history.names if isinstance(history, Texts) else [name for name, _ in history],
        "inputs": face.inputs,
        "signature": face.signature,
        "positions": face.positions,
        "padding": face.padding,
        "constants": dict(face.constants),
        "demanded": face.demanded,
        "places": face.places,
        "fixed": list(face.fixed.items()),
        "mute": face.mute,
        "defaults": dict(face.defaults),
        "output": output_text(face),
        "remarks": program.remarks,
        "calibration": program.calibration and asdict(program.calibration),
        "passes": [_record_data(r) for r in program.result.records],
        "seconds": program.seconds,
    }


def _options_data(program: Program, folder: Path) -> dict[str, Any]:
    """Return options as data: the pipeline in full, and a target that is a file goes along."""
    options = program.options
    data = {f.name: getattr(options, f.name) for f in fields(options)}
    target = load_target(options.target)
    if options.target.endswith((".yaml", ".yml")):
        (folder / TARGET).write_text(dump_target(target), encoding="utf-8")
        data["target"] = TARGET
    data["target_sha"] = target.sha
    if not isinstance(program.history, Texts):  # what was read holds it in full already
        data["pipeline"] = str(framed(options.pipeline))
    data["dtype"] = options.dtype and options.dtype.value
    return data


def _record_data(record: Record) -> dict[str, Any]:
    remarks = [{"kind": type(r).__name__.lower(), **asdict(r)} for r in record.remarks]
    return {
        "name": record.name,
        "changed": record.changed,
        "stats": dict(record.stats),
        "remarks": remarks,
    }


# ---- reading


def read_artifact(folder: Path) -> Artifact:
    """Read an artifact, every byte of it checked and its weights mapped from disk.

    Raises:
        ArtifactError: the folder is no artifact, is damaged, or is of another format; the message
            names the file.
    """
    started = time.perf_counter()
    if not folder.is_dir():
        raise ArtifactError(f"there is no folder {folder}; give one that `save` wrote")
    try:
        data = open_sealed(folder)
        program = _read_program(folder, data)
        made = Artifact(program, _read_tokenizer(folder, data), data["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ElidirError) as error:
        raise ArtifactError(
            f"the artifact {folder} cannot be read: {reason(error)}; compile the model again"
        ) from error
    program.seconds["load artifact"] = time.perf_counter() - started
    return made


def _read_program(folder: Path, data: dict[str, Any]) -> Program:
    history = Texts(data["after"], [_read_text(folder / name) for name in data["texts"]])
    output = data["output"]
    face = Face(
        inputs=tuple(data["inputs"]),
        out_spec=None if output is None else StoredSpec(output),
        positions=data["positions"],
        padding=data["padding"],
        defaults=data["defaults"],
        signature=tuple(data["signature"]),
        constants=data["constants"],
        demanded=tuple(data["demanded"]),
        places=tuple(data["places"]),
        fixed=dict(data["fixed"]),
        mute=data["mute"],
    )
    raised, module = history[0][1], history[-1][1]
    result = PipelineResult(module, tuple(_record(r) for r in data["passes"]))
    store = WeightStore(read_weights(folder / WEIGHTS, data["blocks"]))
    options = _options(folder, data["compiled"])
    remarks = tuple(data["remarks"])
    made = (face, options, result, history, remarks)
    return Program(raised, module, store, *made, calibration=_provenance(data.get("calibration")))


def _provenance(data: Mapping[str, Any] | None) -> "Provenance | None":
    if data is None:
        return None
    from elidir.frontends.calibration import Provenance

    return Provenance(**data)


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _options(folder: Path, data: Mapping[str, Any]) -> Options:
    given = {name: value for name, value in data.items() if name != "target_sha"}
    if given["target"] == TARGET:
        given["target"] = str(folder / TARGET)
    given["dtype"] = given["dtype"] and DType(given["dtype"])
    given["backends"] = tuple(given["backends"])
    given["static"] = given["static"] and tuple(given["static"])
    return Options(**given)


class Texts(Sequence[tuple[str, Module]]):
    """The history of a program, each module parsed when it is first asked for."""

    def __init__(self, names: Sequence[str], texts: Sequence[str]) -> None:
        self.names, self.texts = list(names), list(texts)
        self._parsed: dict[int, Module] = {}

    def __len__(self) -> int:
        return len(self.names)

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
            self._parsed[index] = parse_module(self.texts[index])
        return self.names[index], self._parsed[index]


def _record(data: Mapping[str, Any]) -> Record:
    remarks = tuple(_remark(dict(r)) for r in data["remarks"])
    return Record(data["name"], data["changed"], data["stats"], remarks)


def _remark(data: dict[str, Any]) -> Remark:
    kinds: dict[str, type[Applied] | type[Missed]] = {"applied": Applied, "missed": Missed}
    return kinds[data.pop("kind")](**data)


def _read_tokenizer(folder: Path, data: Mapping[str, Any]) -> Tokenizer | None:
    if "tokenizer" not in data:
        return None
    text = _read_text(folder / TOKENIZER)
    return Tokenizer(text, data["tokenizer"]["template"], data["tokenizer"]["special"])
