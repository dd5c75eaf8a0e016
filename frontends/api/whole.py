"""`@forward` as generation calls it where there is no cache, whatever sizes it was captured with.

A program of fixed sizes is run on a few rows at a time, each padded: an encoder's tokens by invalid
ones, a decoder's by others at later positions, which no token before them sees. So the logits are
those of the sequence alone. That none sees them is tried out at the first padded call, with other
padding: a decoder whose tokens do is refused.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from elidir.frontends import Program
from elidir.ir import ElidirError

Forward = Callable[..., Tensor]


OTHER = 1
"""Fills what is padded with 0 otherwise, to see whether it matters; every model has two tokens."""


def decoder_forward(program: Program) -> Forward:
    """Return logits [B, T, V] as a function of ids, validity and positions, each [B, T]."""
    run = _runner(program, "ids")

    def forward(ids: Tensor, valid: Tensor, pos: Tensor) -> Tensor:
        return run({"ids": ids, "valid": valid, "pos": pos})

    return forward


def pair_forward(program: Program) -> Forward:
    """Return logits [B, U, V] as a function of encoder ids and validity, and those of a decoder."""
    run = _runner(program, "decoder_input_ids")

    def forward(
        ids: Tensor, valid: Tensor, decoder_ids: Tensor, decoder_valid: Tensor, pos: Tensor
    ) -> Tensor:
        del pos  # the decoder counts its own
        slots = torch.arange(ids.shape[1]).expand(ids.shape)
        inputs = {"ids": ids, "valid": valid, "pos": slots, "decoder_input_ids": decoder_ids}
        inputs["decoder_attention_mask"] = decoder_valid.long()
        return run(inputs)

    return forward


def _runner(program: Program, decoded: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Return logits as a function of all inputs, of which `decoded` are the decoder's tokens."""
    sizes = {p.name: p.type.dims[1] for p in program.module["forward"].region.params}
    tried = False

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        nonlocal tried
        length = inputs[decoded].shape[1]
        given = {name: _padded(inputs[name], n, name, inputs) for name, n in sizes.items()}
        logits = _in_batches(program, given)[:, :length]
        if not tried and isinstance(sizes[decoded], int) and length < sizes[decoded]:
            given[decoded][:, length:] = OTHER
            _check_unseen(logits, _in_batches(program, given)[:, :length])
            tried = True
        return logits

    return run


def _check_unseen(logits: Tensor, others: Tensor) -> None:
    """Refuse a decoder whose logits depend on what stands behind their tokens."""
    noise = 1e-3 * float(logits.abs().max())
    if torch.allclose(logits, others, rtol=0, atol=noise, equal_nan=True):
        return
    raise ElidirError(
        "the model cannot generate: in it a token sees those behind it, and at the sizes that it "
        "was captured with these are padding; call it with sequences that are as long"
    )


def _in_batches(program: Program, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run as many rows at a time as the program takes."""
    batch = program.module["forward"].region.params[0].type.dims[0]
    given = list(inputs.values())
    rows = len(given[0])
    if not isinstance(batch, int):
        logits: Tensor = program.forward(*given)[0]
        return logits
    given = [torch.cat([x, x[-1:].expand(-rows % batch, -1)]) for x in given]
    parts = [program.forward(*(x[i : i + batch] for x in given))[0] for i in range(0, rows, batch)]
    return torch.cat(parts)[:rows]


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
