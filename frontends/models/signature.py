"""What a model is fed with while it is captured: example tensors, and which dimensions may vary.

A `Feed` is made here from the example inputs of any module; `feeding` makes one for a model of
transformers alone. Nothing here runs or exports a model.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from elidir.ir import ElidirError


class CaptureError(ElidirError):
    """A model cannot be captured as it was asked."""


class SizesError(CaptureError):
    """A model of transformers is captured at stated sizes alone."""


class Role(Enum):
    """What an input means to the model."""

    IDS = "ids"
    VALID = "valid"
    POSITIONS = "positions"
    PIXELS = "pixels"
    EMBEDS = "embeds"
    DECODER_IDS = "decoder_ids"
    OTHER = "other"


ROLES = {
    "input_ids": Role.IDS,
    "attention_mask": Role.VALID,
    "position_ids": Role.POSITIONS,
    "pixel_values": Role.PIXELS,
    "inputs_embeds": Role.EMBEDS,
    "decoder_input_ids": Role.DECODER_IDS,
}

BATCH, LENGTH, TARGET = "B", "T", "U"
"""Names of the dimensions: batch, tokens, and tokens of a decoder beside an encoder."""

Dims = tuple[str | int, ...]

PLAIN = (bool, int, float, str, type(None))

# Sizes of the tensors that a Hugging Face model is traced with: three different numbers that no
# model is likely to hold as a constant, and none of them 1, which export takes for a constant.
EXAMPLE = {BATCH: 3, LENGTH: 7, TARGET: 5}
LIMITS = {BATCH: (1, 4096), LENGTH: (1, 1 << 20), TARGET: (1, 1 << 20)}


@dataclass(frozen=True)
class Leaf:
    """One tensor of the inputs: its dotted name, its role and its dimensions."""

    name: str
    role: Role
    dims: Dims


@dataclass(frozen=True)
class Feed:
    """Example inputs of a capture.

    Args:
        args: by position.
        kwargs: by name.
        leaves: one for each tensor in them, None for other values.
        limits: bounds of the dimensions by name.
        constants: by dotted name, the user's values that are no tensors.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaves: tuple[Leaf | None, ...]
    limits: Mapping[str, tuple[int, int]] = field(default_factory=lambda: dict(LIMITS))
    constants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """The dimensions that vary."""
        return {d for leaf in self.leaves if leaf for d in leaf.dims if isinstance(d, str)}

    def flat(self) -> list[Any]:
        """All values in the order of the leaves."""
        return pytree.tree_leaves((self.args, self.kwargs))


@dataclass(frozen=True)
class Arguments:
    """Positional and named arguments of one call."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def argument_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of what a call gives by position, in order; the last is `*name` for any number more."""
    parameters = inspect.signature(forward).parameters.values()
    placed = (p for p in parameters if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD))
    return tuple(f"*{p.name}" if p.kind is p.VAR_POSITIONAL else p.name for p in placed)


def argument_leaves(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Each value of a call by its dotted name: `input_ids`, `states.0`.

    Args:
        names: of the arguments, as `argument_names` gives them.
        args: given by position.
        kwargs: given by name.

    Raises:
        CaptureError: there are too many, or one is given twice.
    """
    placed = dict(zip(_places(names, len(args)), args, strict=True))
    for name in placed.keys() & kwargs.keys():
        raise CaptureError(f"{name} is given twice, by position and by name; give it once")
    paths, _ = pytree.tree_flatten_with_path((placed, dict(kwargs)))
    return {".".join(map(_step, path[1:])): value for path, value in paths}


def _places(names: Sequence[str], count: int) -> list[str]:
    """The names of so many positional arguments."""
    if names and names[-1].startswith("*"):
        rest, known = names[-1][1:], names[:-1]
        return [*known[:count], *(f"{rest}.{i}" for i in range(count - len(known)))]
    if count > len(names):
        raise CaptureError(f"the model takes {len(names)} arguments by position, not {count}")
    return list(names[:count])


def _step(step: Any) -> str:
    """One step of a path into nested values."""
    return str(next(getattr(step, a) for a in ("key", "idx", "name") if hasattr(step, a)))


# any other module


def example_feed(forward: Callable[..., Any], example: Any, *, dynamic: bool) -> Feed:
    """Feed a module with the inputs that its user gave.

    Dimension 0 is the batch; dimension 1 of integer and boolean matrices is the length, and so is
    every dimension of that size where a mask or a hidden state is expected to have it.

    Raises:
        CaptureError: the inputs do not fit the forward, or hold no tensor.
    """
    given = _as_arguments(example)
    args, kwargs = given.args, dict(given.kwargs)
    try:
        inspect.signature(forward).bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(
            f"example_inputs= do not fit the model's forward: {error}; give a tuple of its "
            "positional arguments or a dict of its named ones"
        ) from error
    named = argument_leaves(argument_names(forward), args, kwargs)
    if not any(isinstance(value, Tensor) for value in named.values()):
        raise CaptureError("example_inputs= hold no tensor; give the tensors of one usual call")
    feed = Feed(args, kwargs, _leaves(named), constants=_constants(named))
    return feed if dynamic else freeze(feed, feed.names)


def _as_arguments(example: Any) -> Arguments:
    """What the user gave for an example."""
    if isinstance(example, Arguments):
        return example
    if isinstance(example, Mapping):
        return Arguments(kwargs=example)
    return Arguments(tuple(example) if isinstance(example, tuple | list) else (example,))


def _constants(named: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a call that a program holds as they are."""
    return {n: v for n, v in named.items() if isinstance(v, PLAIN)}


def _leaves(named: Mapping[str, Any]) -> tuple[Leaf | None, ...]:
    """Name, role and dimensions of each tensor."""
    tensors = [value for value in named.values() if isinstance(value, Tensor)]
    batch = next((t.shape[0] for t in tensors if t.dim() > 1), None)
    length = _length(tensors)
    leaves: list[Leaf | None] = []
    for name, value in named.items():
        if not isinstance(value, Tensor):
            leaves.append(None)
            continue
        role = ROLES.get(name) or _guess_role(value, {leaf.role for leaf in leaves if leaf})
        leaves.append(Leaf(name, role, _dims(value, batch, length)))
    return tuple(leaves)


def _length(tensors: Sequence[Tensor]) -> int | None:
    """The number of tokens: of the first matrix of ids, else of the first hidden state."""
    matrices = (t.shape[1] for t in tensors if t.dim() == 2 and not t.is_floating_point())
    states = (t.shape[1] for t in tensors if t.dim() == 3 and t.is_floating_point())
    return next(matrices, None) or next(states, None)


def _guess_role(tensor: Tensor, taken: set[Role]) -> Role:
    """The role of an input whose name says nothing, from its kind and its values."""
    if tensor.is_floating_point():
        return {3: Role.EMBEDS, 4: Role.PIXELS}.get(tensor.dim(), Role.OTHER)
    if tensor.dim() != 2:
        return Role.OTHER
    if tensor.dtype == torch.bool:
        return Role.VALID
    if Role.IDS not in taken:
        return Role.IDS
    if bool(((tensor == 0) | (tensor == 1)).all()):
        return Role.VALID
    return Role.POSITIONS if bool((tensor.diff(dim=1) >= 0).all()) else Role.OTHER


def _dims(tensor: Tensor, batch: int | None, length: int | None) -> Dims:
    """Names for the dimensions that are thought to vary, sizes for the rest."""
    sizes: list[str | int] = list(tensor.shape)
    if tensor.dim() == 1:
        return (LENGTH if sizes[0] == length else BATCH if sizes[0] == batch else sizes[0],)
    if tensor.dim() > 1 and sizes[0] == batch:
        sizes[0] = BATCH
    if tensor.dim() in (2, 3) and sizes[1] == length:
        sizes[1] = LENGTH
    if tensor.dim() == 4 and list(tensor.shape[2:]) == [length, length]:
        sizes[2:] = [LENGTH, LENGTH]
    return tuple(sizes)


# changing a feed


def freeze(feed: Feed, names: set[str]) -> Feed:
    """Fix some dimensions to the sizes that they have in the example."""
    return _with_dims(feed, lambda name, size: size if name in names else name)


def merge(feed: Feed, name: str, into: str) -> Feed:
    """Give a dimension the name of another that it must equal."""
    return _with_dims(feed, lambda old, _: into if old == name else old)


def bound(feed: Feed, name: str, lo: int, hi: int) -> Feed:
    """Narrow the bounds of a dimension."""
    low, high = feed.limits.get(name, (1, hi))
    return replace(feed, limits={**feed.limits, name: (max(low, lo), min(high, hi))})


def _with_dims(feed: Feed, change: Callable[[str | int, int], str | int]) -> Feed:
    """The feed with each dimension changed by a function of its name and its size."""
    leaves = tuple(
        leaf and replace(leaf, dims=tuple(map(change, leaf.dims, value.shape)))
        for leaf, value in zip(feed.leaves, feed.flat(), strict=True)
    )
    return replace(feed, leaves=leaves)


def stretch(feed: Feed) -> Feed:
    """Repeat examples along each dimension that may vary and has size 1.

    Export takes a size of 1 for a constant.
    """
    values, spec = pytree.tree_flatten((feed.args, feed.kwargs))
    longer = [
        _repeat(value, leaf.dims) if leaf else value
        for value, leaf in zip(values, feed.leaves, strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(longer, spec)
    return replace(feed, args=args, kwargs=kwargs)


def _repeat(tensor: Tensor, dims: Dims) -> Tensor:
    """One tensor, grown where a varying dimension has size 1."""
    times = [
        EXAMPLE[d] if isinstance(d, str) and n == 1 else 1
        for d, n in zip(dims, tensor.shape, strict=True)
    ]
    return tensor.repeat(times) if max(times, default=1) > 1 else tensor
