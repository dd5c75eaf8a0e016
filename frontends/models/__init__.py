"""From a PyTorch model to elidir's IR, and to a program that runs: loading, capture, raising.

The only packages that import torch are this one and the backends. Names are loaded from their
modules at first use, since a program that is read from disk needs neither capture nor raising;
`capture` alone is loaded at once, for its module has the same name and would hide it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from elidir.frontends.capture import Capture, capture
from elidir.frontends.feeding import check_static
from elidir.frontends.signature import Arguments, CaptureError, argument_leaves
from elidir.frontends.untouched import is_hugging_face

if TYPE_CHECKING:
    from elidir.frontends.artifact import Artifact, is_artifact, read_artifact, write_artifact
    from elidir.frontends.calibration import (
        CalibrationError,
        Network,
        Observations,
        Observed,
        calibrate,
        fingerprint,
        observations_for,
        read_observations,
        write_observations,
    )
    from elidir.frontends.culprit import Finding, find_culprit
    from elidir.frontends.evaluation import (
        Asking,
        Bound,
        Estimate,
        Evaluation,
        EvaluationError,
        Feeding,
        Harness,
        Hotpot,
        Needle,
        Passkey,
        Quality,
        QualityError,
        Squad,
        Task,
        TaskResult,
        check_bounds,
        measure_quality,
        original_program,
        read_bounds,
        read_text,
        task_of,
        tasks,
        token_windows,
    )
    from elidir.frontends.face import Face
    from elidir.frontends.gguf import GgufFile, LoadError, Storage, dequantize, read_gguf
    from elidir.frontends.huggingface import Loaded, check_length, load, source_files
    from elidir.frontends.measuring import measure_call, measure_program, runs_in
    from elidir.frontends.numerics import Difference, Feed, Numerics, Oracle, random_weights
    from elidir.frontends.pictured import NEWLINE, Pictured, Shape
    from elidir.frontends.program import Options, Program, build
    from elidir.frontends.raising import Raised, raise_capture
    from elidir.frontends.sealing import ArtifactError
    from elidir.frontends.tokenizer import Tokenizer

__all__ = [
    "NEWLINE",
    "Arguments",
    "Artifact",
    "ArtifactError",
    "Asking",
    "Bound",
    "CalibrationError",
    "Capture",
    "CaptureError",
    "Difference",
    "Estimate",
    "Evaluation",
    "EvaluationError",
    "Face",
    "Feed",
    "Feeding",
    "Finding",
    "GgufFile",
    "Harness",
    "Hotpot",
    "LoadError",
    "Loaded",
    "Needle",
    "Network",
    "Numerics",
    "Observations",
    "Observed",
    "Options",
    "Oracle",
    "Passkey",
    "Pictured",
    "Program",
    "Quality",
    "QualityError",
    "Raised",
    "Shape",
    "Squad",
    "Storage",
    "Task",
    "TaskResult",
    "Tokenizer",
    "argument_leaves",
    "build",
    "calibrate",
    "capture",
    "check_bounds",
    "check_length",
    "check_static",
    "dequantize",
    "find_culprit",
    "fingerprint",
    "is_artifact",
    "is_hugging_face",
    "load",
    "measure_call",
    "measure_program",
    "measure_quality",
    "observations_for",
    "original_program",
    "raise_capture",
    "random_weights",
    "read_artifact",
    "read_bounds",
    "read_gguf",
    "read_observations",
    "read_text",
    "runs_in",
    "source_files",
    "task_of",
    "tasks",
    "token_windows",
    "write_artifact",
    "write_observations",
]

_MODULES = {
    "artifact": "Artifact is_artifact read_artifact write_artifact",
    "calibration": (
        "CalibrationError Network Observations Observed calibrate fingerprint observations_for "
        "read_observations write_observations"
    ),
    "culprit": "Finding find_culprit",
    "evaluation": (
        "Asking Bound Estimate Evaluation EvaluationError Feeding Harness Hotpot Needle Passkey "
        "Quality QualityError Squad Task TaskResult check_bounds measure_quality original_program "
        "read_bounds read_text task_of tasks token_windows"
    ),
    "gguf": "GgufFile LoadError Storage dequantize read_gguf",
    "huggingface": "Loaded check_length load source_files",
    "measuring": "measure_call measure_program runs_in",
    "numerics": "Difference Feed Numerics Oracle random_weights",
    "face": "Face",
    "pictured": "NEWLINE Pictured Shape",
    "program": "Options Program build",
    "raising": "Raised raise_capture",
    "sealing": "ArtifactError",
    "tokenizer": "Tokenizer",
}
_HOME = {
    name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names.split()
}


def __getattr__(name: str) -> Any:
    """Import the module that holds a public name, when the name is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'elidir.frontends' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, whether they have been loaded or not."""
    return sorted(__all__)
