"""elidir: a compiler for transformer inference that leaves out the work the answer does not need.

This is the face: the names that a user imports, and nothing else. Each is loaded from its own
module at first use, so that `import elidir` reads the standard library only (no torch, no sympy)
and takes a few milliseconds. A public name goes into `_HOME` and into the TYPE_CHECKING block.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elidir.compiled import Compiled
    from elidir.compiler import compile
    from elidir.ir import ElidirError
    from elidir.saving import load

__version__ = "0.1.0"

__all__ = ["Compiled", "ElidirError", "__version__", "compile", "load"]

_HOME = {
    "Compiled": "elidir.compiled",
    "ElidirError": "elidir.ir",
    "compile": "elidir.compiler",
    "load": "elidir.saving",
}


def __getattr__(name: str) -> Any:
    """Import the module that holds a public name, when the name is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'elidir' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, whether they have been loaded or not."""
    return sorted(__all__)
