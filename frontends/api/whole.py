"""`@forward` as it is called, whatever sizes it was captured with.

A program of fixed sizes is run on a few rows at a time, each padded: an encoder's tokens by invalid
ones, a decoder's by others at later positions, which no token before them sees. So the logits are
those of the sequence alone. That none sees them is tried out at the first padded call, with other
padding: a decoder whose tokens do is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn.functional import pad

from elidir.frontends import Program
from elidir.ir import ElidirError

Forward = Callable[..., Tensor]

OTHER = 1
"""Fills what is padded with 0 otherwise, to see whether it matters; every model has two tokens."""

_BLIND: WeakSet[Program] = WeakSet()
"""Programs that were tried: none of their tokens sees those behind it."""


def call(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run `@forward`; a decoder of fixed sizes takes any number of rows, and less tokens."""
    region = program.module["forward"].region
    named = {p.name: x for p, x in zip(region.params, inputs, strict=True)}
    sizes = region.params[0].type.dims
    decodes = list(named) == ["ids", "valid", "pos"] and all(isinstance(n, int) for n in sizes)
    if not decodes or not all(r.type.dims[:2] == sizes for r in region.results):
        return list(program.forward(*inputs))
    return _run(program, named, "ids")


def decoder_forward(program: Program) -> Forward:
    """Return logits [B, T, V] as a function of ids, validity and positions, each [B, T]."""

    def forward(ids: Tensor, valid: Tensor, pos: Tensor) -> Tensor:
        return _run(program, {"ids": ids, "valid": valid, "pos": pos}, "ids")[0]

    return forward


def pair_forward(program: Program) -> Forward:
    """Return logits [B, U, V] as a function of encoder ids and validity, and those of a decoder."""

    def forward(
        ids: Tensor, valid: Tensor, decoder_ids: Tensor, decoder_valid: Tensor, pos: Tensor
    ) -> Tensor:
        del pos  # the decoder counts its own
        slots = torch.arange(ids.shape[1]).expand(ids.shape)
        inputs = {"ids": ids, "valid": valid, "pos": slots, "decoder_input_ids": decoder_ids}
        inputs["decoder_attention_mask"] = decoder_valid.long()
        return _run(program, inputs, "decoder_input_ids")[0]

    return forward


def _run(program: Program, inputs: Mapping[str, Tensor], decoded: str) -> list[Tensor]:
    """Return the results at the tokens that are given, of which `decoded` are the decoder's."""
    sizes = {p.name: p.type.dims[1] for p in program.module["forward"].region.params}
    length = inputs[decoded].shape[1]
    given = {name: _padded(inputs[name], n, name, inputs) for name, n in sizes.items()}
    found = [r[:, :length] for r in _in_batches(program, given)]
    if program not in _BLIND and isinstance(sizes[decoded], int) and length < sizes[decoded]:
        given[decoded][:, length:] = OTHER
        _check_unseen(found[0], _in_batches(program, given)[0][:, :length], sizes[decoded])
        _BLIND.add(program)
    return found


def _check_unseen(logits: Tensor, others: Tensor, size: int) -> None:
    """Refuse a decoder whose logits depend on what stands behind their tokens."""
    noise = 1e-3 * float(logits.abs().max())
    if torch.allclose(logits, others, rtol=0, atol=noise, equal_nan=True):
        return
    raise ElidirError(
        f"in this model a token sees those behind it, and it was captured for {size} tokens: with "
        f"less it cannot be run, and it cannot generate; give sequences of {size} tokens"
    )


def _in_batches(program: Program, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Run as many rows at a time as the program takes."""
    batch = program.module["forward"].region.params[0].type.dims[0]
    given = list(inputs.values())
    rows = len(given[0])
    if not isinstance(batch, int):
        return list(program.forward(*given))
    given = [torch.cat([x, x[-1:].expand(-rows % batch, -1)]) for x in given]
    parts = [program.forward(*(x[i : i + batch] for x in given)) for i in range(0, rows, batch)]
    return [torch.cat(part)[:rows] for part in zip(*parts, strict=True)]


def _padded(x: Tensor, length: Any, name: str, inputs: Mapping[str, Any]) -> Tensor:
    """Return an input at the program's own length, if that is fixed."""
    missing = length - x.shape[1] if isinstance(length, int) else 0
    if missing == 0:
        return x
    if missing < 0:
        raise ElidirError(
            f"the prompt has {x.shape[1]} tokens, and the model was compiled for {length}; shorten "
            "it, or compile with a larger static="
        )
    wide = pad(x, (0, missing))
    if name == "pos":
        wide[:, x.shape[1] :] = torch.arange(x.shape[1], length)
    if name == "decoder_attention_mask" or (name == "valid" and "decoder_input_ids" not in inputs):
        wide[:, x.shape[1] :] = 1
    return wide
