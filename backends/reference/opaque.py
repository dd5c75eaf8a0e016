"""Opaque ops: an ATen op by name, its arguments kept as JSON.

`encode_args` is for whoever makes an opaque op, `decode_args` for whoever runs it. The JSON is a
list of two: the positional arguments, and a dict of keyword arguments. Devices, layouts and
memory formats are left out: the program runs where its inputs are.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch

from elidir.backends.dtypes import ir_dtype, torch_dtype
from elidir.backends.protocol import BackendError, Kernel, symbolic_dims
from elidir.backends.reference.registry import kernel
from elidir.backends.weights import Weights
from elidir.ir import DType, Opaque, parse_dim

Reference = Callable[[Any], dict[str, Any] | None]
_DROPPED = (torch.device, torch.layout, torch.memory_format)
_DROPPED_NAMES = frozenset({"device", "layout", "memory_format", "pin_memory"})


def encode_args(args: Sequence[Any], kwargs: Mapping[str, Any], refer: Reference) -> str:
    """Return the JSON of an ATen call's arguments.

    `refer` gives `{"%": i}` for the i-th input of the op, `{"@": i}` for its i-th weight and
    `{"dim": text}` for a symbolic size, and None for anything else. Raises `BackendError` for an
    argument that has no JSON form.
    """

    def encode(item: Any) -> Any:
        if (reference := refer(item)) is not None:
            return reference
        if item is None or isinstance(item, bool | int | float | str):
            return item
        if isinstance(item, torch.dtype):
            known = ir_dtype(item)
            return {"dtype": known.value if known else str(item).removeprefix("torch.")}
        if isinstance(item, list | tuple):
            return [encode(i) for i in item]
        if isinstance(item, _DROPPED):
            return None
        raise BackendError(
            f"an argument of type {type(item).__name__} has no JSON form; opaque ops take tensors, "
            "numbers, strings, dtypes and lists of these"
        )

    named = {k: encode(v) for k, v in kwargs.items() if k not in _DROPPED_NAMES}
    return json.dumps([[encode(a) for a in args], named])


Values = Mapping[str, Sequence[Any]]


def decode_args(text: str, values: Values, size: Callable[[str], int]) -> tuple[list[Any], Any]:
    """Return positional and keyword arguments: `values` holds those of "%" and "@" by index.

    `size` gives the size of a dimension's text.
    """
    positional, named = json.loads(text)
    return _decode([positional, named], values, size)


def _decode(item: Any, values: Values, size: Callable[[str], int]) -> Any:
    if isinstance(item, list):
        return [_decode(i, values, size) for i in item]
    if not isinstance(item, dict):
        return item
    if len(item) == 1:
        ((key, inner),) = item.items()
        if key in values:
            return values[key][inner]
        if key == "dim":
            return size(inner)
        if key == "dtype" and isinstance(inner, str):
            return _dtype(inner)
    return {k: _decode(v, values, size) for k, v in item.items()}


def _dtype(name: str) -> torch.dtype:
    known = name in DType._value2member_map_
    return torch_dtype(DType(name)) if known else getattr(torch, name)


def resolve_target(target: str) -> Callable[..., Any]:
    """Return the torch op of a name such as `aten.sort.default`; raises `BackendError`."""
    names = target.split(".")
    try:
        found: Callable[..., Any] = reduce(getattr, names, torch.ops)
    except (AttributeError, RuntimeError):
        raise BackendError(
            f"torch has no op '{target}'; import the library that registers it before running"
        ) from None
    return found


@kernel(Opaque)
def opaque(op: Opaque, weights: Weights) -> Kernel:
    """Run an ATen op as it is."""
    function, count = resolve_target(op.target), len(op.inputs)
    refs = [weights.load(w) for w in op.refs]
    dims = symbolic_dims(op)

    def run(*operands: Any) -> Any:
        found = dict(zip(dims, operands[count:], strict=True))
        values = {"%": operands[:count], "@": refs}

        def size(text: str) -> int:
            dim = parse_dim(text)
            return dim if isinstance(dim, int) else found[dim]

        positional, named = decode_args(op.args, values, size)
        return _results(function(*positional, **named), len(op.out))

    return run


def _results(found: Any, wanted: int) -> Any:
    """Return one tensor, or the tuple of the first `wanted` tensors of what an ATen op gave."""
    if isinstance(found, torch.Tensor):
        return found if wanted == 1 else (found,)
    tensors = [t for t in found if isinstance(t, torch.Tensor)]
    return tensors[0] if wanted == 1 else tuple(tensors[:wanted])
