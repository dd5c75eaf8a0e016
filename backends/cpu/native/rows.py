"""The kernel of `rows.cpp` as a function of tensors: rows of floats to rows of the int8 grid.

A `Rows` is made once for each op and holds what the kernel reads by address. Tensors are taken as
they are if their last axis is dense and their rows lie evenly, as slices of a product do; any other
is copied.
"""

import ctypes
import functools
from pathlib import Path

import torch

from elidir.backends.cpu.native import load
from elidir.backends.protocol import Answer, BackendError, No, Yes

SOURCE = Path(__file__).with_name("rows.cpp")
KINDS = ("plain", "norm", "add_norm", "gated")
ACTS = ("silu", "gelu_tanh", "relu")

_P, _L, _I, _F = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_QUANTIZE = (_I, _I, _I, *(_P,) * 7, *(_L,) * 5, _F, _F)


def available() -> Answer:
    """Return whether the kernels can be built and loaded here."""
    found = _library()
    return No(found) if isinstance(found, str) else Yes()


@functools.cache
def _library() -> "ctypes.CDLL | str":
    library = load(SOURCE)
    if not isinstance(library, str):
        library.elidir_quantize.argtypes = _QUANTIZE
    return library


def _loaded() -> ctypes.CDLL:
    library = _library()
    if isinstance(library, str):
        raise BackendError(library)
    return library


class Rows:
    """Rows of floats, or what a norm or gate makes of them, to rows of bytes.

    Args:
        kind: one of `KINDS`.
        inverse: of the scale.
        columns: channels that are also given as they are.
        weight: of the norm, f32.
        eps: of the norm.
        act: one of `ACTS`, of the gate.
    """

    def __init__(
        self,
        kind: str,
        inverse: float,
        columns: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
        eps: float = 0.0,
        act: str = "silu",
    ) -> None:
        self._call = _loaded().elidir_quantize
        self._columns = None if columns is None else columns.contiguous()  # held, read by address
        self._weight = None if weight is None else weight.float().contiguous()
        self._count = 0 if columns is None else len(columns)
        self._head = (KINDS.index(kind), ACTS.index(act))
        self._adds, self._last = kind == "add_norm", (inverse, eps)

    def __call__(
        self, a: torch.Tensor, b: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return the grid; the sum before it, and the columns after it, where the op has them."""
        a, stride_a = _rows(a)
        b, stride_b = (None, 0) if b is None else _rows(b)
        grid = torch.empty(a.shape, dtype=torch.uint8)
        total = a.new_empty(a.shape) if self._adds else None
        apart = None
        if self._columns is not None:
            apart = a.new_empty((*a.shape[:-1], self._count))
        width = a.shape[-1]
        addresses = map(_address, (a, b, self._weight, total, grid, apart, self._columns))
        sizes = (self._count, a.numel() // width if width else 0, width, stride_a, stride_b)
        if self._call(_is_bf16(a), *self._head, *addresses, *sizes, *self._last):
            raise BackendError("no memory is left for a row of values; free some")
        made = tuple(t for t in (total, grid, apart) if t is not None)
        return made if len(made) > 1 else grid


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return a tensor whose rows lie at one distance from each other, and that distance."""
    if x.is_contiguous() or x.dim() < 2:
        return x.contiguous(), x.shape[-1]
    step = x.stride(-2)
    even = all(
        size == 1 or x.stride(i) == x.stride(i + 1) * x.shape[i + 1]
        for i, size in enumerate(x.shape[:-2])
    )
    return (x, step) if x.stride(-1) == 1 and even else (x.contiguous(), x.shape[-1])


def _address(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _is_bf16(x: torch.Tensor) -> int:
    return int(x.dtype is torch.bfloat16)
