"""Weights on disk: one safetensors file, written as a stream and mapped when it is read.

The safetensors library reads the file; it is written here because the library copies all tensors
before it writes one, and puts them anywhere. Here each begins at a multiple of 64 bytes wherever
its size and those before it allow: kernels may round differently on data that is not aligned, and
a loaded model answers to the bit. Blocks (q4_1 and the like) stay blocks.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elidir.backends import Source, WeightStore
from elidir.frontends.gguf import Storage
from elidir.frontends.sealing import ArtifactError
from elidir.frontends.sources import StoredSource

ALIGNMENT = 64

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}


def write_weights(store: WeightStore, path: Path) -> dict[str, Any]:
    """Write all weights of a store; returns format and shape of those that are blocks."""
    blocks: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name in store:
        tensors[name], block = _as_stored(store.source(name))
        if block is not None:
            blocks[name] = {"format": block.format, "shape": block.shape}
    names = sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT > 0, name))
    _write({name: tensors[name] for name in names}, path)
    return blocks


def _as_stored(source: Source) -> tuple[torch.Tensor, Storage | None]:
    if isinstance(source, StoredSource):
        return torch.from_numpy(np.ascontiguousarray(source.storage.raw)), source.storage
    return source.load(), None


def _write(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file: the length of its header, the header, the tensors without gaps."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ArtifactError(f"the weight '{name}' is {tensor.dtype}, which has no form on disk")
        end = at + tensor.nbytes
        kind = DTYPES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            flat = tensor.detach().contiguous().reshape(-1)
            file.write(memoryview(flat.view(torch.uint8).numpy()))


def read_weights(path: Path, blocks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the source of each weight, mapped from the file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return {name: _source(tensor, blocks.get(name)) for name, tensor in tensors.items()}


def _source(tensor: torch.Tensor, block: Mapping[str, Any] | None) -> Any:
    if block is not None:
        return StoredSource(Storage(block["format"], tensor.numpy(), tuple(block["shape"])))
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor
