"""Where the weights of a raised model are loaded from, and how the table describes them.

A weight that came in a block format (q4_1, q8_0) keeps it: the store holds the blocks, and the
table says so. Any other weight is the model's own tensor, by reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from elidir.backends import Source, TensorSource, content_hash
from elidir.frontends.gguf import Storage, dequantize
from elidir.ir import Entry

if TYPE_CHECKING:
    from elidir.frontends.raising import Raised

PLAIN = frozenset({"f64", "f32", "f16", "bf16"})


@dataclass(frozen=True, eq=False)
class StoredSource:
    """A weight in the blocks that it was stored in, dequantised when it is loaded."""

    storage: Storage

    @property
    def format(self) -> str:
        """The storage format."""
        return "" if self.storage.format in PLAIN else self.storage.format

    @cached_property
    def sha(self) -> str:
        """The content hash of the blocks."""
        return content_hash(torch.from_numpy(self.storage.raw))

    @property
    def raw(self) -> torch.Tensor | None:
        """The blocks as bytes; None for a weight that is stored dense."""
        return torch.from_numpy(self.storage.raw) if self.format else None

    def load(self) -> torch.Tensor:
        """Return the weight as a dense tensor."""
        return dequantize(self.storage)


def weight_sources(
    raised: "Raised", storages: Mapping[str, Storage]
) -> tuple[dict[str, Source], dict[str, Entry]]:
    """Return the source of each stored weight, and the table of weights with formats and hashes."""
    sources: dict[str, Source] = {}
    entries = dict(raised.module.weights)
    for name, tensor in raised.tensors.items():
        storage = storages.get(raised.origins.get(name, ""))
        kept = storage is not None and storage.shape == tuple(tensor.shape)
        source = StoredSource(storage) if kept and storage is not None else TensorSource(tensor)
        sources[name] = source
        entries[name] = replace(entries[name], format=source.format, sha=source.sha)
    return sources, entries
