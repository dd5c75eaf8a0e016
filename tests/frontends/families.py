"""Families of models raised once for all tests of a file, and what the tests run them with.

`family(name)` captures and raises one entry of the zoo and keeps it. Here too are the oracle (the
forward over a whole sequence, a row at a time and without padding) and small makers of executables.
Nothing here asserts anything.
"""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from elidir.backends import Executable, WeightStore, lower
from elidir.backends.runtime import Session
from elidir.frontends.capture import capture
from elidir.frontends.raising import Raised, raise_capture
from elidir.ir import Module, Op, Region, Value, flatten
from elidir.passes import History, Pipeline, PipelineResult, Verify, framed
from tests.zoo import NAMED, OTHERS, Entry, Inputs

CAPTURED = (3, 7)
CAUSAL = [n for n, entry in NAMED.items() if entry.causal]


@dataclass(frozen=True, eq=False)
class Family:
    """A model beside the module that it was raised to."""

    entry: Entry
    model: nn.Module
    raised: Raised

    @property
    def module(self) -> Module:
        """The module as raised."""
        return self.raised.module

    @functools.cached_property
    def forward(self) -> Executable:
        """The raised `@forward` on the reference backend."""
        return executable(self, self.module)

    @functools.cached_property
    def stepped(self) -> PipelineResult:
        """The module with `@step`, where it can have one, and no other pass."""
        return Pipeline.parse("incrementalize").run(self.module, instruments=[Verify()])

    @functools.cached_property
    def lossless(self) -> tuple[PipelineResult, tuple[tuple[str, Module], ...]]:
        """The result of the default pipeline, and the module after each pass that changed it."""
        history = History()
        result = framed("lossless").run(self.module, instruments=[Verify(), history])
        return result, tuple(history.rows)


def raised(entry: Entry) -> Family:
    """Capture and raise an entry of the zoo."""
    model = entry.factory()
    example = entry.example(*CAPTURED) if entry.needs_example else None
    return Family(entry, model, raise_capture(capture(model, example), entry.name))


@functools.cache
def family(name: str) -> Family:
    """Capture and raise a family of the zoo, once in each process."""
    return raised((NAMED | OTHERS)[name])


# ---- running


def executable(
    known: Family, module: Module, name: str = "forward", backends: Sequence[str] = ("reference",)
) -> Executable:
    """Lower a function of a module that was made from the family's."""
    return lower(module[name], module, WeightStore(known.raised.tensors), tuple(backends))


def arguments(known: Family, inputs: Inputs) -> list[Tensor]:
    """Return what `@forward` takes for inputs of the model; positions not given count slots."""
    params = known.module["forward"].region.params
    given = zip(params, known.raised.inputs, strict=True)
    return [_argument(p, inputs.get(n), inputs) for p, n in given]


def _argument(param: Value, value: Tensor | None, inputs: Inputs) -> Tensor:
    ids = next(iter(inputs.values()))
    if param.name == "pos":
        return torch.arange(ids.shape[1]).expand(ids.shape) if value is None else value
    if param.name == "valid":
        return torch.ones_like(ids).bool() if value is None else value.bool()
    if param.name == "decoder_attention_mask" and value is None:
        return torch.ones_like(inputs["decoder_input_ids"])
    return torch.zeros_like(ids) if value is None else value  # token types


def eager(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The model's own outputs, flat, without a cache."""
    takes = inspect.signature(model.forward).parameters
    options = {"use_cache": False} if "use_cache" in takes else {}
    with torch.no_grad():
        return pytree.tree_leaves(model(**inputs, **options))


def at_valid(tensor: Tensor, inputs: Inputs) -> Tensor:
    """The part of an output that padding does not decide."""
    mask = inputs.get("attention_mask")
    if mask is None or tensor.shape[:2] != mask.shape:
        return tensor
    return tensor[mask.bool()]


def session(known: Family, module: Module, batch: int, backend: str = "reference") -> Session:
    """Start a session on the `@step` of a module."""
    return Session(executable(known, module, "step", (backend,)), batch=batch)


def whole(known: Family, ids: Tensor) -> Tensor:
    """Logits [T, V] of one row of token ids [T] by the stateless forward, all of them valid."""
    length = len(ids)
    valid, pos = torch.ones(1, length, dtype=torch.bool), torch.arange(length)[None]
    logits: Tensor = known.forward(ids[None], valid, pos)[0][0]
    return logits


# ---- looking


def flat(module: Module, name: str = "forward") -> Region:
    """The region of a function with its layers inlined."""
    return flatten(module[name])


def of_kind(region: Region, kind: str) -> list[Op]:
    """The ops of one kind."""
    return [op for op in region.ops if op.kind == kind]
