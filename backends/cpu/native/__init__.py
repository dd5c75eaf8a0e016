"""Builds and loads the native kernels of this folder, each source file a library of its own.

A library is compiled once with the machine's own C++ compiler and kept in the cache folder; without
a compiler `load` says why, and torch's operators run instead.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from elidir.ir import cache_folder

# Products and sums are contracted where a kernel says so, and nowhere else.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC")


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
    """Return the shared library, compiled if these sources, compiler and processor have none."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True)
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    parts = (*texts, version.stdout, *compiler, *FLAGS, _processor())
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
