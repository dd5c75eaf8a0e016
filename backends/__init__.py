"""Backends: what runs a program, and the executor that hands each op to one of them.

`lower` makes an `Executable` of a function. Backends are found by name (`backend_names`), and
the reference is the oracle of the others. Sessions, caches and generation are in
`elidir.backends.runtime`.
"""

from elidir.backends.dtypes import ir_dtype, retype, torch_dtype
from elidir.backends.executor import Assignment, Executable, Instruction, Timing, Watch
from elidir.backends.lowering import lower
from elidir.backends.protocol import (
    Answer,
    Backend,
    BackendError,
    ExecutionError,
    Kernel,
    KVState,
    No,
    Yes,
    backend,
    backend_names,
    sizes_of,
    symbolic_dims,
)
from elidir.backends.reference import decode_args, encode_args
from elidir.backends.weights import (
    Source,
    TensorSource,
    WeightError,
    Weights,
    WeightStore,
    content_hash,
    content_hashes,
)

__all__ = [
    "Answer",
    "Assignment",
    "Backend",
    "BackendError",
    "Executable",
    "ExecutionError",
    "Instruction",
    "KVState",
    "Kernel",
    "No",
    "Source",
    "TensorSource",
    "Timing",
    "Watch",
    "WeightError",
    "WeightStore",
    "Weights",
    "Yes",
    "backend",
    "backend_names",
    "content_hash",
    "content_hashes",
    "decode_args",
    "encode_args",
    "ir_dtype",
    "lower",
    "retype",
    "sizes_of",
    "symbolic_dims",
    "torch_dtype",
]
