"""`@forward` as generation calls it where there is no cache, whatever sizes it was captured with.

A program of fixed sizes is run on a few rows at a time, each padded: an encoder's tokens by invalid
ones, a decoder's by others at later positions, which no token before them sees. So the logits are
those of the sequence alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from elidir.frontends import Program
from elidir.ir import ElidirError

Forward = Callable[..., Tensor]


def decoder_forward(program: Program) -> Forward:
    """Return logits [B, T, V] as a function of ids, validity and positions, each [B, T]."""

    def forward(ids: Tensor, valid: Tensor, pos: Tensor) -> Tensor:
        return _run(program, {"ids": ids, "valid": valid, "pos": pos}, ids.shape[1])

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
        return _run(program, inputs, decoder_ids.shape[1])

    return forward


def _run(program: Program, inputs: Mapping[str, Tensor], length: int) -> Tensor:
    params = program.module["forward"].region.params
    batch = params[0].type.dims[0]
    rows = len(inputs["ids"])
    given = [_padded(inputs[p.name], p.type.dims[1], p.name, inputs) for p in params]
    if not isinstance(batch, int):
        logits: Tensor = program.forward(*given)[0]
        return logits[:, :length]
    given = [torch.cat([x, x[-1:].expand(-rows % batch, -1)]) for x in given]
    parts = [program.forward(*(x[i : i + batch] for x in given))[0] for i in range(0, rows, batch)]
    return torch.cat(parts)[:rows, :length]


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
