"""From the arguments of a call to the inputs of `@forward`, and what is wrong with them.

A compiled model is called as the model itself was. Tensors are matched by the names that capture
gave them; a value that is no tensor is a constant of the program, and must be the one that it was
captured with. Nothing here runs anything.
"""

from collections.abc import Mapping
from typing import Any

import torch

from elidir.frontends import Face, Program, argument_leaves
from elidir.ir import ElidirError, nearest

CACHE = "use_cache"
"""Models of transformers are captured without one: a call gives none, whatever this says."""


def forward_inputs(
    program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[torch.Tensor]:
    """Return the inputs of `@forward` for one call of the model.

    Raises:
        ElidirError: an input is missing, unknown, no tensor, or a constant of another value.
    """
    given = argument_leaves(program.face.signature, args, kwargs)
    _check_given(program.face, given)
    found: dict[str, Any] = {}
    params = program.module["forward"].region.params
    for param, name in zip(params, program.face.inputs, strict=True):
        value = given.get(name) if name else None
        if value is None:
            value = _left_out(param.name, name, found, program.face)
        found[param.name] = value.bool() if param.name == "valid" else value
    return list(found.values())


def _check_given(face: Face, given: Mapping[str, Any]) -> None:
    known = {n for n in face.inputs if n}
    for name, value in given.items():
        whole = name.partition(".")[0]
        if whole in known and not isinstance(value, torch.Tensor | None):
            raise ElidirError(f"{whole} must be a tensor; convert it with torch.tensor")
        if isinstance(value, torch.Tensor) and name not in known:
            _refuse(name, known)
        if name not in known:
            _check_constant(name, value, face, known)
    for name in face.demanded:
        if name not in given:
            said = f"{name}={face.constants[name]!r}"
            raise ElidirError(f"the model was compiled with {said}, not with its default; give it")


def _check_constant(name: str, value: Any, face: Face, known: set[str]) -> None:
    """Refuse a value that asks for something else than was captured."""
    if name in face.constants:
        own = face.constants[name]
        if (type(value) is type(own) and value == own) or (value is None and _unasked(name, face)):
            return
        raise ElidirError(
            f"the model was compiled with {name}={own!r}, which is fixed now; leave "
            f"{name}={value!r} out, or compile with example_inputs= that hold it"
        )
    if value not in (None, False) and name != CACHE:
        _refuse(name, known)


def _unasked(name: str, face: Face) -> bool:
    return name not in face.demanded


def _refuse(name: str, known: set[str]) -> None:
    raise ElidirError(
        f"the model was compiled without the input '{name}'{nearest(name, known)}; "
        "leave it out, or compile with example_inputs= that hold it"
    )


def _left_out(param: str, name: str, found: Mapping[str, Any], face: Face) -> torch.Tensor:
    """Return validity and positions that the caller leaves to the model."""
    if param not in ("valid", "pos"):
        raise ElidirError(f"the model needs the input '{name}'; give it as it was captured")
    ids = found["ids"]
    if ids.dim() != 2:
        raise ElidirError(f"token ids are [rows, tokens], not {list(ids.shape)}; reshape them")
    if param == "valid":
        return torch.ones(ids.shape, dtype=torch.bool)
    return face.own_positions(ids, found["valid"])
