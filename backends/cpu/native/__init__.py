"""Builds and loads the native kernels of `gemv.cpp`: linear maps of one to three rows.

torch's one-row products in bfloat16 are bound by conversion where the processor has no bfloat16
instructions. The kernel is compiled once with the machine's own C++ compiler and kept in the cache
folder; without a compiler `load` says why, and torch's operators run instead.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from elidir.backends.protocol import Answer, BackendError, No, Yes
from elidir.ir import cache_folder

MAX_ROWS = 3
SOURCE = Path(__file__).with_name("gemv.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
_WORDS = (ctypes.c_void_p,) * 4 + (ctypes.c_long,) * 3


def available() -> Answer:
    """Return whether the kernels can be built and loaded here."""
    found = _library()
    return No(found) if isinstance(found, str) else Yes()


class RowMajor:
    """A bfloat16 weight [out, in], stored row by row, as a function of a few rows of input."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        library = _library()
        if isinstance(library, str):
            raise BackendError(library)
        bias = None if bias is None else bias.contiguous()
        held = (weight,) if bias is None else (weight, bias)
        if not weight.is_contiguous() or any(t.dtype is not torch.bfloat16 for t in held):
            raise BackendError(
                "the kernel takes a contiguous bfloat16 weight and bias; convert them"
            )
        self.weight, self.bias = weight, bias  # held, since the kernel reads them by address
        self._call = library.elidir_linear_bf16
        self._weight = weight.data_ptr()
        self._bias = None if bias is None else bias.data_ptr()
        self._outs, self._inner = weight.shape

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + b for x of at most `MAX_ROWS` rows."""
        if x.dtype is not torch.bfloat16 or x.shape[-1] != self._inner:
            raise BackendError(
                f"the kernel takes bfloat16 rows of {self._inner}, not {x.dtype} of {x.shape[-1]}"
            )
        x = x.contiguous()
        out = x.new_empty((*x.shape[:-1], self._outs))
        rows = out.numel() // self._outs if self._outs else 0
        failed = self._call(
            self._weight, self._bias, x.data_ptr(), out.data_ptr(), rows, self._inner, self._outs
        )
        if failed:
            raise BackendError("no memory is left for the rows of a linear map; free some")
        return out


@functools.cache
def _library() -> "ctypes.CDLL | str":
    """Return the loaded library, or why there is none."""
    library = load(SOURCE)
    if not isinstance(library, str):
        library.elidir_linear_bf16.argtypes = _WORDS
    return library


def load(source: Path) -> "ctypes.CDLL | str":
    """Return a source file as a loaded library, built if need be, or why there is none."""
    named = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or ""
    compiler = shlex.split(named)
    if not compiler or not shutil.which(compiler[0]):
        return "there is no C++ compiler; install g++, or name one in CXX"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the kernels are written for x86-64, not {platform.machine()}"
    try:
        return ctypes.CDLL(str(_built(compiler, source)))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        last = (str(detail).strip().splitlines() or ["the compiler does not say why"])[-1]
        return f"the kernels cannot be built: {last[:200]}"


def _built(compiler: list[str], source: Path) -> Path:
    """Return the shared library, compiled if this source, compiler and processor have none yet."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True)
    parts = (source.read_text(), version.stdout, " ".join(FLAGS), _processor())
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    path = cache_folder() / "native" / f"{source.stem}-{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            command = [*compiler, *FLAGS, "-o", str(made), str(source)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            made.replace(path)  # atomic: two processes may build at once
    return path


def _processor() -> str:
    """Return the processor's instruction sets, for which `-march=native` compiles."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.processor())
