"""The cache of one layer: its shape, and its state while a step runs.

Storage belongs to the cache, which all layers of one length share; see `placed.py` for the rest.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from elidir.backends.dtypes import torch_dtype
from elidir.backends.runtime.errors import CacheError
from elidir.ir import KV, Value, format_dim


@dataclass(frozen=True)
class LayerSpec:
    """One layer's cache: key heads, channels of keys and of values, dtype.

    `placed` names the number of tokens that a placed state holds, "" for one that holds all;
    `scored` says whether it keeps a score for each.
    """

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    placed: str = ""
    scored: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of one token."""
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


def layer_specs(params: Iterable[Value]) -> tuple[LayerSpec, ...]:
    """Return the layers that the parameters of a `@step` ask for, in order."""
    return tuple(_spec(p.type) for p in params if isinstance(p.type, KV))


def _spec(kv: KV) -> LayerSpec:
    sizes, dtype = (kv.heads, kv.key_dim, kv.value_dim), torch_dtype(kv.dtype)
    if not all(isinstance(n, int) for n in sizes):
        raise CacheError(f"{kv} has symbolic heads or channels; a cache needs them as numbers")
    placed = format_dim(kv.length) if kv.placed else ""
    widths = (int(kv.heads), int(kv.key_dim), int(kv.value_dim))
    return LayerSpec(*widths, dtype, placed, kv.scored)


class LayerKV:
    """One layer's keys and values up to some length: the value of a `kv` while a step runs."""

    __slots__ = ("keys", "length", "limit", "values")

    def __init__(self, keys: Tensor, values: Tensor, length: int, limit: int) -> None:
        self.keys, self.values = keys, values
        self.length, self.limit = length, limit

    def append(self, k: Tensor, v: Tensor) -> "LayerKV":
        """Write keys [B, G, N, D] and values [B, G, N, Dv] after the last; return the longer state.

        Raises `CacheError` if they are more tokens than the step has staged.
        """
        new = k.shape[2]
        longer = self.extend(new)
        self.keys.narrow(2, self.length, new).copy_(k)
        self.values.narrow(2, self.length, new).copy_(v)
        return longer

    def extend(self, new: int) -> "LayerKV":
        """Return the state with room for more tokens; raises `CacheError` as `append` does."""
        if self.length + new > self.limit:
            room = self.limit - self.length
            raise CacheError(
                f"a layer appends {new} tokens where {room} were staged; stage them all"
            )
        return LayerKV(self.keys, self.values, self.length + new, self.limit)

    def storage(self) -> tuple[Tensor, Tensor, int]:
        """Return keys and values of the whole capacity, and the length."""
        return self.keys, self.values, self.length

    def read(self) -> tuple[Tensor, Tensor]:
        """Return views of all keys [B, G, S, D] and values [B, G, S, Dv]."""
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)
