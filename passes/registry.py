"""The registry of passes: a dict from name to class, filled by `@register`.

Built-in passes are found by importing the modules of this package at first use, those of others
through the entry point group `elidir.passes`. Nothing is imported until a pass is asked for.
"""

import importlib
import pkgutil
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TypeVar

from elidir.ir import ElidirError, nearest
from elidir.passes.base import Pass
from elidir.passes.errors import PipelineError
from elidir.passes.preset import preset_names

GROUP = "elidir.passes"
_PASSES: dict[str, type[Pass]] = {}
_P = TypeVar("_P", bound=type[Pass])


def register(cls: _P) -> _P:
    """Enter a pass under its name; raises if the name is taken or the class is incomplete."""
    if not re.fullmatch(r"[a-z][a-z0-9\-]*", cls.name):
        raise ElidirError(f"'{cls.name}' is no name for a pass; use lower case words and dashes")
    if cls.name in {*_PASSES, *preset_names(), "fixpoint", "extends"}:
        raise ElidirError(f"the pass name '{cls.name}' is taken; choose another")
    if not hasattr(cls, "invariant"):
        raise ElidirError(f"pass '{cls.name}' declares no invariant; add one of Invariant")
    _PASSES[cls.name] = cls
    return cls


def passes() -> Mapping[str, type[Pass]]:
    """Return every pass by name, built-in and third-party."""
    _load()
    return MappingProxyType(dict(sorted(_PASSES.items())))


def find_pass(name: str) -> type[Pass]:
    """Return a pass class; raises `PipelineError` with the nearest name."""
    known = passes()
    if name not in known:
        raise PipelineError(f"there is no pass '{name}'{nearest(name, known)}")
    return known[name]


@cache
def _load() -> None:
    package = importlib.import_module(GROUP)
    for module in pkgutil.walk_packages(package.__path__, f"{GROUP}."):
        importlib.import_module(module.name)
    for entry in entry_points(group=GROUP):
        _load_plugin(entry.name, entry.value)


def _load_plugin(name: str, value: str) -> None:
    try:
        importlib.import_module(value.partition(":")[0])
    except ImportError as error:
        raise ElidirError(
            f"the plug-in '{name}' of {GROUP} cannot be imported ({error}); repair or uninstall it"
        ) from error
