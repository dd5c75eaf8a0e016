"""Kinds of output on disk: the tree that a model returns, as text, and the classes named in it.

Outputs of transformers come back as its own classes where it is installed, and as `Plain` where it
is not. A file must not choose what is imported: only transformers and torch are.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from torch.utils import _pytree as pytree

from elidir.frontends.program import Face
from elidir.frontends.sealing import ArtifactError

KNOWN = ("transformers", "torch")
PLAIN = "elidir.Plain"


class Plain(dict[str, Any]):
    """An output of transformers where that is not installed: its fields by name, and in order."""

    def __getattr__(self, name: str) -> Any:
        """Return a field."""
        if name not in self:
            raise AttributeError(f"the output has no field '{name}'; it has {', '.join(self)}")
        return self[name]

    def __getitem__(self, key: Any) -> Any:
        """Return a field by its name or its place, or several by a slice."""
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


def output_text(face: Face) -> str | None:
    """Return a face's tree of outputs as text.

    Raises:
        ArtifactError: a class in it has no form on disk.
    """
    if face.out_spec is None or isinstance(face.out_spec, StoredSpec):
        return face.out_spec and face.out_spec.text
    spec = face.out_spec() if callable(face.out_spec) else face.out_spec
    try:
        text = pytree.treespec_dumps(spec)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the model's kind of output has no form on disk: {error}; return tensors in tuples, "
            "lists or dicts"
        ) from error
    for node in _nodes(json.loads(text)):
        _check(node["type"])
    return text


@dataclass(frozen=True)
class StoredSpec:
    """A tree of outputs as text; the classes in it are imported when it is first called."""

    text: str

    def __call__(self) -> pytree.TreeSpec:
        """Return the tree."""
        data = json.loads(self.text)
        for node in _nodes(data):
            if not _is_here(node["type"]):
                _register_plain()
                node["type"] = PLAIN
        return pytree.treespec_loads(json.dumps(data))


def _is_here(kind: str) -> bool:
    module = _check(kind)
    try:
        return hasattr(import_module(module), kind.rpartition(".")[2])
    except ImportError:
        return False


def _nodes(data: Any) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a tree whose class is not Python's own."""
    children = data["children_spec"] if isinstance(data, dict) else data
    kind = data.get("type") if isinstance(data, dict) else None
    if isinstance(kind, str) and not _is_python(kind):
        yield data
    for child in children:
        if isinstance(child, dict):
            yield from _nodes(child)


def _is_python(kind: str) -> bool:
    return kind.startswith(("builtins.", "collections.")) and kind != "collections.namedtuple"


def _check(kind: str) -> str:
    """Return the module of a class; raises `ArtifactError` for those of other libraries."""
    module = kind.rpartition(".")[0]
    if module.partition(".")[0] not in KNOWN:
        raise ArtifactError(
            f"outputs of the type {kind} have no form on disk; return tensors in tuples, lists "
            "or dicts"
        )
    return module


@cache
def _register_plain() -> None:
    """Tell torch how to rebuild a `Plain`: as transformers' outputs, its context is its keys."""
    pytree.register_pytree_node(
        Plain,
        lambda found: (list(found.values()), list(found)),
        lambda values, keys: Plain(zip(keys, values, strict=True)),
        serialized_type_name=PLAIN,
        to_dumpable_context=json.dumps,
        from_dumpable_context=json.loads,
    )
